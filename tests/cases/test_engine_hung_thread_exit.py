"""Cases engine/hung_thread_exit and use/hang: the command ends after a step that hangs in its thread."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROLLOUT = Path(sys.executable).with_name("rollout")

ENV = """
import time
from rollout import Env, Step, user


class Hang(Env):
    def reset(self, task):
        self.index = task["index"]
        return [user("hi")]

    def step(self, message):
        if self.index == 1:
            time.sleep(100000)
        return Step(done=True, reward=1)
"""


@pytest.mark.slow
def test_the_command_ends_with_a_call_that_hangs(tmp_path: Path) -> None:
    """The rollout fails of its deadline, and nobody waits for the thread."""
    (tmp_path / "env.py").write_text(ENV)
    command = [str(ROLLOUT), "run", "env.py:Hang", "-n", "3", "--max-tokens", "4", "--step-timeout", "0.5", "-o", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert sorted((line.get("failure") or {}).get("kind", "none") for line in lines) == ["none", "none", "timeout"]
    assert done.returncode == 1
    assert "environment_calls_hang" in (tmp_path / "run" / "events.log").read_text()
