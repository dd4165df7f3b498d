"""How a real package's environment is played: by the command of this environment, on the embedded model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rollout.chat.messages import Message
from rollout.cli.preflight import preflight
from rollout.errors import ConfigError
from rollout.registry import env_factory
from rollout.store.settings import RunSettings
from rollout.store.task_list import load_tasks

#: What importing other packages warns of is theirs to mend.
MARKS = [
    pytest.mark.live,
    pytest.mark.adapters,
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def command(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "rollout", "run", *args]
    return subprocess.run(whole, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def all_ended(pids: Iterable[int], limit_s: float = 30.0) -> None:
    """Waits until none of these processes is there; raises TimeoutError where one stays."""
    async with asyncio.timeout(limit_s):
        while any(map(is_there, pids)):  # noqa: ASYNC110  # others end and reap them
            await asyncio.sleep(0.02)


def play(*args: str, cwd: Path, n: int = 16, r: int = 4, max_tokens: int = 12) -> dict[str, Any]:
    """Plays, in the folder `run`, all rollouts at once; nothing may fail. Gives the run's result."""
    size = ["-n", str(n), "-r", str(r), "-c", "256", "--max-tokens", str(max_tokens)]
    done = command(*args, *size, "-o", "run", "--verify", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["rollouts"] == n * r
    assert result["failures"] == 0
    assert result["prefix_breaks"] == 0
    return result


def refused(spec: str, task: Any = None, **given: str) -> str:
    """What a run's user is told of a mistake, before anything is played: one line. `task` is one of a file's."""

    def planned() -> None:
        make = env_factory(spec, given)
        tasks = [task] if task is not None else load_tasks(RunSettings(env=spec, env_args=given), make)
        asyncio.run(preflight(make, spec, tasks[0]))

    with pytest.raises(ConfigError) as raised:
        planned()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


def same_tasks(make: Any, n: int = 8) -> Sequence[Any]:
    """The tasks of a seed, which are the same from two objects, and others than another seed's."""
    first, again, other = list(make().tasks(n, 7)), list(make().tasks(n, 7)), list(make().tasks(n, 8))
    assert first == again
    assert first != other
    assert first == json.loads(json.dumps(first))
    return first
