"""Case seams/e2: a plain group reward that hangs, a lambda that returns an awaitable, an object that is called."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rollout import Group
from tests.rollout.test_engine import collect, engine


async def judged(group: Group) -> list[float]:
    return [1.0] * len(group.finished)


class Judge:
    async def __call__(self, group: Group) -> list[float]:
        return await judged(group)


@pytest.mark.parametrize("reward", [lambda group: judged(group), Judge()], ids=["lambda", "object"])
async def test_any_awaitable_is_taken(reward: Any) -> None:
    """Whatever returns one is a group reward."""
    running, _ = engine()
    async with running:
        groups = await collect(running, 2, rollouts_per_task=2, group_reward=reward)
    assert [group.rewards for group in groups] == [[1.0, 1.0]] * 2


async def test_a_plain_function_is_bounded() -> None:
    """Both groups' functions hang at once, and both are ended by the same `score_timeout_s`."""
    returns = threading.Event()
    running, _ = engine(score_timeout_s=0.2)
    try:
        async with running:
            groups = await collect(running, 2, rollouts_per_task=2, group_reward=lambda group: returns.wait(60))
            assert running.stats().hanging_calls == 2
    finally:
        returns.set()
    assert [group.finished for group in groups] == [[], []]
