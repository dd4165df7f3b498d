"""Case seams/e9: a process whose loop hangs in a regular expression, under the GIL."""

from __future__ import annotations

import re
from typing import Any

import anyio
import pytest

from rollout import Engine, EngineConfig, Env, Message, Step, user
from rollout.records import FailureKind


class Hangs(Env):
    """Task 0 backtracks for ever, and holds the interpreter meanwhile."""

    def reset(self, task: Any) -> list[Message]:
        self.index = task["index"]
        return [user("hi")]

    def step(self, message: Message) -> Step:
        if self.index == 0:
            re.match(r"(a|aa)+$", "a" * 60 + "b")
        return Step(done=True, reward=1.0)


@pytest.mark.slow
async def test_a_process_that_hangs_is_found_out() -> None:
    """It is ended and replaced; what it played fails as `process`, all else is played, and nothing waits on it."""
    config = EngineConfig(concurrency=4, processes=2, max_tokens=4, step_timeout_s=2.0, worker_silence_s=1.5)
    with anyio.fail_after(60):
        async with Engine(config, Hangs) as engine:
            groups = [group async for group in engine.stream([{"index": n} for n in range(4)])]
            stats = engine.stats()
            again = [group async for group in engine.stream([{"index": n} for n in range(1, 5)])]
    failures = {group.task_index: group.rollouts[0].failure for group in groups}
    assert len(failures) == 4
    assert failures[0] is not None
    assert "silent" in failures[0].message
    assert failures[0].message.endswith("in step")  # where it hung
    assert {failure.kind for failure in failures.values() if failure} == {FailureKind.PROCESS}
    assert (stats.running, stats.process_deaths) == (0, 1)
    assert all(group.rollouts[0].ok for group in again)
