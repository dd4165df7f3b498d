"""A trainer embeds the engine without the command line and without the embedded server."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from rollout import __main__ as script
from rollout.registry import extra_of
from tests.local_server import serving
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app

#: What the extras `cli` and `serve` install.
EXTRAS = ("typer", "rich", "structlog", "tomli_w", "safetensors", "threadpoolctl", "starlette", "uvicorn")

BLOCK = f"""
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""

PLAYS = """
import anyio
from rollout import Engine, EngineConfig, EngineThread, Env, Step, user
from rollout.store.folder import read_rollouts
class Short(Env):
    def reset(self, task): return [user("hello")]
    def step(self, message): return Step(done=True, reward=1.0)
async def main():
    config = EngineConfig(base_url=sys.argv[1], renderer="server", max_tokens=4, transport="auto")
    async with Engine(config, Short) as engine:
        async for group in engine.stream([{"n": 0}, {"n": 1}], rollouts_per_task=2):
            print(group.rewards)
anyio.run(main)
"""

EMBEDDED = """
import anyio
from rollout import Engine, EngineConfig, Env
from rollout.errors import ConfigError
async def main():
    try:
        async with Engine(EngineConfig(), Env): pass
    except ConfigError as error:
        print(error)
anyio.run(main)
"""


def without_extras(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + script, *args], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_an_engine_plays_on_a_server_without_the_extras() -> None:
    """Nothing of the command line or of the embedded server is imported, and nothing is printed but what it plays."""
    app = create_app(MODEL_DIR, served_name="rollout-tiny")
    with serving(app) as url:
        done = without_extras(PLAYS, url)
    app.state.engine.close()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[1.0, 1.0]"] * 2


def test_the_embedded_model_says_what_to_install() -> None:
    """Where no server is named: one line, with the extra and the other way out."""
    done = without_extras(EMBEDDED)
    (said,) = done.stdout.splitlines()
    assert said.startswith("transport 'embedded' needs ")
    assert said.endswith("pip install 'rollout-engine[serve]'; or name a server by base_url")


def test_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One line and status 2."""
    monkeypatch.setattr(script, "find_spec", lambda name: None if name == "typer" else object())
    monkeypatch.setattr(script, "leave_quietly", lambda: None)  # this process is not the command's
    with pytest.raises(SystemExit) as left:
        script.main()
    assert left.value.code == 2
    said = "rollout: the command line needs typer: pip install 'rollout-engine[all]'\n"
    assert capsys.readouterr() == ("", said)


def test_an_extra_is_found_by_what_it_installs() -> None:
    """As the installed package says; what none installs has none."""
    assert [extra_of(name) for name in ("starlette", "tomli_w", "anyio", "nothing")] == ["serve", "cli", None, None]
