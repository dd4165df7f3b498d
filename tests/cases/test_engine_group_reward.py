"""Case engine/group_reward: a reward function that hangs, and one that raises."""

from __future__ import annotations

import threading

import anyio

from rollout import Group
from rollout.records import FailureKind
from tests.rollout.test_engine import collect, engine


async def test_a_group_reward_that_hangs_is_ended_by_score_timeout_s() -> None:
    """Its group is delivered as failed of kind timeout, long before the function returns."""
    returns = threading.Event()

    def hangs(group: Group) -> list[float]:
        returns.wait(60)
        return [1.0 for _ in group.finished]

    running, _ = engine(score_timeout_s=0.2)
    try:
        async with running:
            with anyio.fail_after(20):
                (group,) = await collect(running, 1, group_reward=hangs)
    finally:
        returns.set()
    assert [rollout.failure.kind for rollout in group.rollouts if rollout.failure] == [FailureKind.TIMEOUT]


async def test_a_group_reward_that_raises_loses_nothing() -> None:
    """All that finished is taken or kept: the group whose reward failed, too, with the failure."""
    calls: list[Group] = []

    def broken(group: Group) -> list[float]:
        calls.append(group)
        if len(calls) == 2:
            raise RuntimeError("the judge is down")
        return [1.0 for _ in group.finished]

    running, _ = engine(concurrency=1)
    async with running:
        taken = await collect(running, 4, group_reward=broken)
    assert len(taken) + len(running.untaken) == running.stats().finished == 4
    failures = [rollout.failure for group in taken for rollout in group.rollouts if rollout.failure]
    assert ["the judge is down" in failure.message for failure in failures] == [True]
