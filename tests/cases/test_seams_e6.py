"""Case seams/e6: a task with an integer over 64 bits, where there are processes."""

from __future__ import annotations

import pytest

from envs.echo import Echo
from rollout import Engine, EngineConfig


@pytest.mark.slow
async def test_a_long_integer_ends_no_stream() -> None:
    """All of the tasks are played, the long one with the number that was given, and none is finished unplayed."""
    tasks = [{"index": 1}, {"index": 2, "seed": 2**70}, {"index": 3}, {"index": 4}]
    async with Engine(EngineConfig(concurrency=4, processes=2, max_tokens=8), Echo) as engine:
        groups = [group async for group in engine.stream(tasks)]
    rollouts = [group.rollouts[0] for group in groups]
    assert all(rollout.ok and rollout.turns for rollout in rollouts)
    assert [dict(rollout.task) for rollout in sorted(rollouts, key=lambda rollout: rollout.task_index)] == tasks
