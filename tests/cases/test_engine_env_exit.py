"""Case engine/env_exit: `sys.exit` and KeyboardInterrupt in an environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROLLOUT = Path(sys.executable).with_name("rollout")

ENV = """
import sys
from rollout import Env, Step, user


class E(Env):
    def __init__(self, how: str = "exit"):
        self.how = how

    def reset(self, task):
        self.index = task["index"]
        return [user("hi")]

    def step(self, message):
        if self.index == 2 and self.how == "interrupt":
            raise KeyboardInterrupt
        if self.index == 2:
            sys.exit(0 if self.how == "exit" else 3)
        return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "exit3", "interrupt"])
def test_an_environment_that_exits_costs_its_rollout(how: str, tmp_path: Path) -> None:
    """The others are played, the result is printed, and the traceback is in the log."""
    (tmp_path / "env.py").write_text(ENV)
    command = [
        str(ROLLOUT),
        "run",
        "env.py:E",
        "-a",
        f"how={how}",
        "-n",
        "8",
        "--max-tokens",
        "4",
        "-o",
        "run",
        "--json",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    failures = [line["failure"] for line in lines if line.get("failure")]
    assert len(lines) == 8
    assert [failure["kind"] for failure in failures] == ["environment"]
    assert failures[0]["error"] == ("KeyboardInterrupt" if how == "interrupt" else "SystemExit")
    assert done.returncode == 1
    assert json.loads(done.stdout)["failures"]
    assert "Traceback" in (tmp_path / "run" / "events.log").read_text()
