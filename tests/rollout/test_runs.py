"""Submitted tasks, shared slots, attempts made again: every rollout ends once, and nothing that finished is lost."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from rollout import Group
from rollout.engine import Engine, differing_rewards
from rollout.errors import ConfigError, ServerBusy
from rollout.records import FailureKind
from tests.rollout.test_engine import collect, engine
from transports.scripted import Fault, Held, Stalled, reply


async def test_submitted_tasks_come_back_by_their_submission() -> None:
    """Each submission has its own task's group, with as many members as were asked for."""
    running, _ = engine(concurrency=3)
    async with running:
        submissions = [await running.submit({"n": n}, rollouts=2) for n in range(4)]
        groups = [await submission.result() for submission in submissions]
        assert [group.task["n"] for group in groups] == [0, 1, 2, 3]
        assert all(len(group.finished) == 2 for group in groups)
        assert await running.collect(9) == []


async def test_collect_gives_the_next_that_finish() -> None:
    """Groups come in the order in which they finish; no more than were submitted, and none twice."""
    running, _ = engine(concurrency=2)
    async with running:
        for n in range(5):
            await running.submit({"n": n})
        first, rest = await running.collect(2), await running.collect(9)
        assert len(first) == 2
        assert sorted(group.task["n"] for group in [*first, *rest]) == list(range(5))
        assert await running.collect(1) == []


async def test_a_submission_can_be_cancelled() -> None:
    """What runs of it ends, what has not begun is not played, and its result says so."""
    running, transport = engine(Stalled(), concurrency=1)
    async with running:
        first, second = await running.submit({"n": 0}, rollouts=2), await running.submit({"n": 1})
        await transport.wait_for(1)
        first.cancel()
        second.cancel()
        group = await first.result()
        assert [rollout.failure.kind for rollout in group.rollouts if rollout.failure] == [FailureKind.CANCELLED]
        assert (await second.result()).rollouts == []
        assert running.stats().running == 0


async def test_streams_share_the_engines_slots() -> None:
    """Two streams at once never run more than the engine's concurrency, and a share limits one of them."""
    held = [Held(reply("x")) for _ in range(4)]
    running, transport = engine(*held, *[reply("x") for _ in range(60)], concurrency=4)
    async with running, anyio.create_task_group() as group:

        async def evaluate() -> None:
            async for _ in running.stream([{"n": n} for n in range(4)], evaluation=True, share=0.25):
                pass

        group.start_soon(evaluate)
        await transport.wait_for(1)
        group.start_soon(collect, running, 6)
        await transport.wait_for(4)
        assert running.stats().running == 4
        assert [len(run.scheduler.running) for run in running._runs] == [1, 3]
        for entry in held:
            entry.release()
    assert running.stats().finished == 10


async def test_a_failed_rollout_is_played_again_and_remembers_why() -> None:
    """A transport fault costs an attempt; the rollout that ends keeps the earlier failures."""
    running, _ = engine(Fault(ServerBusy("full")), *[reply("x")] * 4, concurrency=1, rollout_retries=2)
    async with running:
        (group,) = await collect(running, 1)
    (rollout,) = group.rollouts
    assert rollout.ok
    assert [failure.message for failure in rollout.earlier_failures] == ["full"]
    assert running.stats().retried == 1
    assert running.stats().failed == 0


async def test_retries_end() -> None:
    """After the last attempt the failure stands, with those before it."""
    running, _ = engine(*[Fault(ServerBusy("full"))] * 3, concurrency=1, rollout_retries=2)
    async with running:
        (group,) = await collect(running, 1)
    assert not group.rollouts[0].ok
    assert len(group.rollouts[0].earlier_failures) == 2


async def test_groups_with_nothing_to_learn_are_dropped_and_counted() -> None:
    """`keep` decides what is yielded; rewards may be the group's own, set before."""

    def ranked(group: Group) -> list[float]:
        return [float(i % 2) if group.task["n"] else 0.0 for i, _ in enumerate(group.finished)]

    running, _ = engine()
    async with running:
        groups = await collect(running, 3, rollouts_per_task=2, keep=differing_rewards, group_reward=ranked)
        assert sorted(group.task["n"] for group in groups) == [1, 2]
        assert running.stats().dropped_groups == 1
        assert [sample.advantage for sample in groups[0].samples()] == pytest.approx([-1, 1], abs=1e-3)


async def test_a_group_reward_of_another_length_is_named() -> None:
    """A function that forgets a member is the caller's mistake, said as such."""
    running, _ = engine()
    async with running:
        with pytest.raises(ConfigError, match="1 rewards for 2 finished"):
            await collect(running, 1, rollouts_per_task=2, group_reward=lambda group: [1.0])


async def test_what_finished_is_not_lost_when_a_stream_is_given_up() -> None:
    """Groups that wait, and finished members of groups that never will be whole, are kept."""
    running, _ = engine(concurrency=3)
    async with running:
        stream = running.stream([{"n": n} for n in range(6)], rollouts_per_task=2)
        taken = await anext(stream)
        while running.stats().finished < 5:
            await anyio.lowlevel.checkpoint()
        await stream.aclose()
        assert running.stats().running == 0
    kept = [*taken.finished, *(rollout for group in running.untaken for rollout in group.finished)]
    assert len(kept) == len({rollout.id for rollout in kept}) == running.stats().finished >= 5


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
async def test_an_impossible_share_is_named(share: float) -> None:
    """A share of nothing, or of more than all, is a mistake."""
    running, _ = engine()
    async with running:
        with pytest.raises(ConfigError, match="share must be above 0"):
            await collect(running, 1, share=share)


async def test_nothing_can_be_submitted_for_no_rollouts() -> None:
    """A submission plays one rollout at least."""
    running, _ = engine()
    async with running:
        with pytest.raises(ConfigError, match="rollouts must be 1 or more"):
            await running.submit({}, rollouts=0)


def test_an_engine_must_be_entered() -> None:
    """Using an engine outside its context says what to do."""
    running: Any = engine()[0]
    with pytest.raises(RuntimeError, match="async with Engine"):
        _ = running.server
    assert isinstance(running, Engine)


async def test_stragglers_are_ended_and_their_group_delivered() -> None:
    """Once half of a group has ended the rest have so long: then they are failures of their own kind, counted."""
    # One turn each, so that two rollouts end whichever of them is asked first.
    two = [reply("x")] * 2
    running, _ = engine(*two, Stalled(), Stalled(), concurrency=2, straggler_timeout_s=0.01, max_turns=1)
    async with running:
        (group,) = await collect(running, 1, rollouts_per_task=4)
        assert [len(group.rollouts), len(group.finished)] == [4, 2]
        failures = [rollout.failure for rollout in group.rollouts if rollout.failure]
        assert {failure.kind for failure in failures} == {FailureKind.STRAGGLER}
        assert "half of its group had ended" in failures[0].message
        assert running.stats().stragglers == 2
        assert running.stats().running == 0


async def test_stragglers_that_never_began_are_not_waited_for() -> None:
    """With a slot taken by a straggler, members still in the queue are left out of the group."""
    running, _ = engine(*[reply("x")] * 4, Stalled(), concurrency=1, straggler_timeout_s=0.01)
    async with running:
        (group,) = await collect(running, 1, rollouts_per_task=4)
    assert [rollout.ok for rollout in group.rollouts] == [True, True, False]
