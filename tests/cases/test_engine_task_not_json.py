"""Case engine/task_not_json: a task with a numpy number, and one that no folder could hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.commands import env_file, kinds, lines, ran

ENV = """
import numpy as np
class E(Env):
    def __init__(self, named: bool = False, bad: bool = False): self.named, self.bad = named, bad
    def tasks(self, n, seed):
        for i in range(n):
            task = {"n": i, "answer": 7}
            if i == 2: task["answer"] = {1, 2} if self.bad else np.int64(7)
            yield {**task, "id": f"task{i}"} if self.named else task
    async def reset(self, task): assert type(task["answer"]) is int; return [user("hi")]
    async def step(self, m): return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("named", ["false", "true"])
def test_numpy_numbers_in_tasks_are_numbers(named: str, tmp_path: Path) -> None:
    """Every task is played and written; the environment gets the number that is written."""
    out = tmp_path / "run"
    done = ran("run", env_file(tmp_path, ENV), "-a", f"named={named}", "-n", 6, "--max-tokens", 4, "-o", out)
    assert done.returncode == 0, done.stderr
    assert kinds(out) == [None] * 6
    assert {line["task"]["answer"] for line in lines(out)} == {7}


@pytest.mark.slow
def test_a_task_that_cannot_be_written_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    """One line with the task's index and id, the place and the type, status 2, and nothing played."""
    out = tmp_path / "run"
    done = ran("run", env_file(tmp_path, ENV), "-a", "named=true", "-a", "bad=true", "-n", 6, "-o", out)
    assert done.returncode == 2
    assert "task 2 (id 'task2')" in " ".join(done.stderr.split())
    assert "answer is of type set" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (out / "rollouts.jsonl").exists() or not lines(out)
