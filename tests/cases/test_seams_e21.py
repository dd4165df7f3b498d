"""Case seams/e21: an environment that runs a process of its own, as graders of code and mathematics do."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

from rollout import Engine, EngineConfig, Env, Message, Step, user


def grade() -> None:
    """What a grader's process does."""


class Grades(Env):
    """Grades in a process of multiprocessing, started in the way that the task names."""

    def reset(self, task: Any) -> list[Message]:
        self.method = task["method"]
        return [user("hi")]

    def step(self, message: Message) -> Step:
        process = multiprocessing.get_context(self.method).Process(target=grade)
        process.start()
        process.join(300)
        return Step(done=True, reward=float(process.exitcode == 0))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_an_environment_may_start_processes(processes: int) -> None:
    """Alone as in a worker, spawned as forked from a server."""
    config = EngineConfig(concurrency=2, processes=processes, max_tokens=4)
    async with Engine(config, Grades) as engine:
        groups = [group async for group in engine.stream([{"method": name} for name in ("spawn", "forkserver")])]
    assert [group.rewards for group in groups] == [[1.0]] * 2
