"""`rollout run --launch ray`, as a user runs it, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[3]

ROLLOUT = str(Path(sys.executable).with_name("rollout"))


def environ() -> dict[str, str]:
    """This checkout's packages, whichever the environment was installed from, and no cluster of anybody's.

    Without tokens, said so: a head takes one that it finds in the home folder, where any `ray.init()` leaves one, and
    a node that joins it does not.
    """
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**here, "PYTHONPATH": str(PROJECT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def start(*args: str, cwd: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A command of the command line."""
    return subprocess.Popen(
        [*prefix, ROLLOUT, *args],
        cwd=cwd,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def played(folder: Path) -> list[dict[str, Any]]:
    """The rollouts that a run has written, a line each; a last one that is being written is left out."""
    file = folder / "rollouts.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def wait_for(folder: Path, count: int, process: subprocess.Popen[str], limit_s: float = 120.0) -> None:
    """Until so many rollouts are written. Raises AssertionError where the run ends before."""
    until = time.monotonic() + limit_s
    while written(folder) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"{written(folder)} rollouts after {limit_s:g} s"
        time.sleep(0.05)


def written(folder: Path) -> int:
    """How many rollouts a run has written."""
    file = folder / "rollouts.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def assert_each_once(folder: Path, tasks: int, members: int) -> list[dict[str, Any]]:
    """Every member of every task has one result, none two."""
    rollouts = played(folder)
    seen = Counter((rollout["task_index"], rollout["member"]) for rollout in rollouts)
    assert seen == Counter((task, member) for task in range(tasks) for member in range(members))
    return rollouts
