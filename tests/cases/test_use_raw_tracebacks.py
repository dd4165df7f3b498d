"""What an environment does wrong before anything is played: one line, and status 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cases.commands import env_file, ran

WRONG = """
class E(Env):
    def __init__(self, how: str):
        self.how = how
        if how == "init": raise RuntimeError("no docker")
        if how == "exit": sys.exit(3)
    def tasks(self, n, seed):
        if self.how == "raises": raise FileNotFoundError("data/train.jsonl")
        if self.how == "generator": return (1 / 0 for _ in range(n))
        if self.how == "none": return None
        return []
    def reset(self, task): return [user("hi")]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("init", "making it raised RuntimeError: no docker (case_env.py:7)"),
        ("exit", "making it raised SystemExit: 3 (case_env.py:8)"),
        ("raises", "tasks() raised FileNotFoundError: data/train.jsonl (case_env.py:10)"),
        ("generator", "tasks() raised ZeroDivisionError: division by zero (case_env.py:11)"),
        ("none", "tasks()"),
        ("empty", "tasks() gave none of the 2 tasks"),
    ],
)
def test_a_mistake_before_anything_is_played_is_one_line(how: str, said: str, tmp_path: Path) -> None:
    """It names the call, the error and the place; the whole traceback is in the file that the line names."""
    done = ran("run", env_file(tmp_path, WRONG), "-a", f"how={how}", "-n", 2, "-o", tmp_path / "r")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr
    if "raised" in said:
        found = re.search(r"the traceback is in (\S+)", done.stderr)
        assert found is not None
        log = Path(found[1])
        assert "Traceback (most recent call last)" in log.read_text()
        log.unlink()
