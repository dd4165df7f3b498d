"""A process that an environment forks ends with the call that forked it: no second engine writes into the folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = """
import os, sys
from rollout import Env, Step, user

class Forks(Env):
    {blocks}
    def reset(self, task): return [user("hello")]
    {step} step(self, message):
        child = os.fork()
        if child == 0:
            {child}
        os.waitpid(child, 0)
        return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("child", ["raise ValueError('the child fails')", "sys.exit(0)", "return Step(done=True)"])
@pytest.mark.parametrize(
    ("blocks", "step"), [("", "def"), ("blocks = False", "def"), ("", "async def")], ids=["thread", "loop", "task"]
)
def test_a_forked_child_does_not_come_back(tmp_path: Path, blocks: str, step: str, child: str) -> None:
    """The parent, which waits for it, goes on at once, and each rollout is written once."""
    (tmp_path / "forks.py").write_text(ENVIRONMENT.format(blocks=blocks, step=step, child=child))
    command = [sys.executable, "-m", "rollout", "run", "forks.py:Forks", "-n", "2", "--max-tokens", "4", "-o", "run"]
    environ = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()) == 2
    assert ("the child fails" in done.stderr) == ("ValueError" in child)
