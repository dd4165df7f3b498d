"""`Participant.preflight`: what cannot be played is told once, before anything is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rollout.cli.app import app
from rollout.cli.preflight import preflight
from rollout.env import Env, Step
from rollout.errors import ConfigError, UserCodeFailed

calls: list[Any] = []


class Plain(Env):
    def preflight(self, task: Any) -> None:
        calls.append(("plain", task))

    def close(self) -> None:
        calls.append("closed")


class Later(Env):
    async def preflight(self, task: Any) -> None:
        calls.append(("later", task))
        raise ConfigError("no server at http://there: start it")

    async def close(self) -> None:
        calls.append("closed")


class Broken(Plain):
    def preflight(self, task: Any) -> None:
        raise ValueError("no\nway")


class Leaves(Plain):
    def preflight(self, task: Any) -> None:
        sys.exit(3)


class Without(Env):
    def __init__(self) -> None:
        calls.append("made")

    def step(self, message: Any) -> Step:
        return Step(done=True)


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


async def test_it_is_called_once_with_the_task_and_closed() -> None:
    """Whether it is plain or asynchronous, and where it raises."""
    await preflight(Plain, "plain", {"index": 3})
    assert calls == [("plain", {"index": 3}), "closed"]
    calls.clear()
    with pytest.raises(ConfigError, match=r"^no server at http://there: start it$"):
        await preflight(Later, "later", {"index": 4})
    assert calls == [("later", {"index": 4}), "closed"]


@pytest.mark.parametrize(
    ("kind", "words"), [(Broken, r"preflight\(\) raised ValueError: no\sway"), (Leaves, "SystemExit: 3")]
)
async def test_what_it_raises_is_one_line(kind: type[Env], words: str) -> None:
    """Of whatever type, with its place in the user's file."""
    with pytest.raises(UserCodeFailed, match=words) as raised:
        await preflight(kind, "spec", {})
    assert "test_preflight.py" in str(raised.value)


async def test_nothing_is_made_where_a_class_has_none() -> None:
    """An environment may be heavy."""
    await preflight(Without, "without", {})
    await preflight(lambda: Without(), "unknown", {})
    assert calls == []


NO_SERVER = """
from rollout import Env
from rollout.errors import ConfigError


class Away(Env):
    async def preflight(self, task):
        raise ConfigError(f"no server for {task['name']}: start it")
"""


def test_a_run_that_cannot_be_played_ends_before_it_begins(tmp_path: Path) -> None:
    """One line, status 2, and no folder."""
    (tmp_path / "away.py").write_text(NO_SERVER)
    (tmp_path / "tasks.jsonl").write_text('{"name": "one"}\n')
    tasks, folder = str(tmp_path / "tasks.jsonl"), tmp_path / "run"
    done = CliRunner().invoke(app, ["run", f"{tmp_path}/away.py:Away", "--tasks", tasks, "-o", str(folder)])
    assert (done.exit_code, done.stderr) == (2, "rollout: no server for one: start it\n")
    assert not folder.exists()
