"""Submitted tasks: each ends for itself, with its group or a clear error, and nobody waits for what will not come."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from rollout.errors import ConfigError, EngineClosed, EngineStopped, NoServerLeft
from rollout.records import FailureKind
from rollout.schedule.streams import Streams
from tests.rollout.test_engine import collect, engine
from transports.scripted import Held, Stalled, reply


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


async def test_nothing_can_be_submitted_for_no_rollouts() -> None:
    """A submission plays one rollout at least."""
    running, _ = engine()
    async with running:
        with pytest.raises(ConfigError, match="rollouts must be 1 or more"):
            await running.submit({}, rollouts=0)


@pytest.mark.parametrize("task", [{"x": object()}, {"x": float("nan")}, {"x": b"1"}, ["n"], None])
async def test_a_task_that_cannot_be_written_is_refused_to_its_caller(task: Any) -> None:
    """`submit` raises, names the task, and leaves those that were submitted before and are submitted later."""
    held = Held(reply("x"))
    running, transport = engine(held, *[reply("x")] * 9)
    async with running:
        before = await running.submit({"n": 0})
        await transport.wait_for(1)
        with pytest.raises(ConfigError, match="task 1"):
            await running.submit(task)
        after = await running.submit({"n": 1})
        held.release()
        assert [len((await each.result()).finished) for each in (before, after)] == [1, 1]


async def test_after_cancel_submissions_are_played_as_ever() -> None:
    """`cancel` ends those there are, with what was played of them; a later one plays."""
    running, transport = engine(Stalled(), *[reply("x")] * 9, concurrency=1)
    async with running:
        begun, waiting = await running.submit({"n": 0}, rollouts=2), await running.submit({"n": 1})
        await transport.wait_for(1)
        running.cancel()
        later = await running.submit({"n": 2})
        kinds = [rollout.failure.kind for rollout in (await begun.result()).rollouts if rollout.failure]
        assert kinds == [FailureKind.CANCELLED]
        assert (await waiting.result()).rollouts == []
        assert len((await later.result()).finished) == 1
        assert running.stats().running == 0


async def test_a_stopped_engine_takes_no_submissions() -> None:
    """What runs ends after its turn, what waits comes back empty, and a further one is refused at once."""
    held = Held(reply("x"))
    running, transport = engine(held, concurrency=1)
    async with running:
        begun, waiting = await running.submit({"n": 0}), await running.submit({"n": 1})
        await transport.wait_for(1)
        running.stop_admitting()
        held.release()
        assert [rollout.ok for rollout in (await begun.result()).rollouts] == [False]
        assert (await waiting.result()).rollouts == []
        with pytest.raises(EngineStopped, match="stop_admitting"):
            await running.submit({"n": 2})
        assert len(await running.collect(9)) == 0


async def test_what_had_finished_can_be_taken_after_the_engine_was_closed() -> None:
    """By its submission or by `collect`; what had not begun says that the engine was closed, and nobody waits."""
    running, transport = engine(*[reply("x")] * 6, Stalled(), concurrency=1)
    async with running, anyio.create_task_group() as group:
        submissions = [await running.submit({"n": n}) for n in range(5)]
        await transport.wait_for(7)
        asked: list[Any] = []

        async def ask() -> None:
            asked.append(await running.collect(5))

        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()  # whoever waits and is cancelled loses nothing
    assert asked == []
    assert len((await submissions[0].result()).finished) == 1
    groups = await running.collect(5)
    assert [len(group.finished) for group in groups] == [1, 1, 0]
    for unplayed in (submissions[4].result, lambda: running.collect(1), lambda: running.submit({"n": 9})):
        with pytest.raises(EngineClosed):
            await unplayed()


@pytest.mark.parametrize("error", [EngineClosed, NoServerLeft])
async def test_waiting_for_a_submission_ends_with_the_engine(error: type[Exception]) -> None:
    """A task that waits for a result is told when the engine is closed, or no server is left."""
    running, transport = engine(Stalled(), concurrency=1)
    raised: list[type[BaseException]] = []

    async def ask(result: Any) -> None:
        try:
            await result()
        except Exception as seen:
            raised.append(type(seen))

    async with anyio.create_task_group() as group, running:
        first, waiting = await running.submit({"n": 0}), await running.submit({"n": 1})
        group.start_soon(ask, waiting.result)
        await transport.wait_for(1)
        await anyio.wait_all_tasks_blocked()
        if error is NoServerLeft:
            streams: Streams = running._streams
            streams.fail(NoServerLeft("all gone"))
            with pytest.raises(NoServerLeft):
                await running.submit({"n": 2})
    assert raised == [error]
    assert [rollout.ok for rollout in (await first.result()).rollouts] == [False]


async def test_two_that_collect_share_what_comes() -> None:
    """Each group goes to one of them, and both end."""
    running, _ = engine(*[reply("x")] * 20, concurrency=2)
    got: list[list[int]] = []
    async with running, anyio.create_task_group() as group:
        for n in range(5):
            await running.submit({"n": n})

        async def ask() -> None:
            got.append([one.task["n"] for one in await running.collect(4)])

        group.start_soon(ask)
        group.start_soon(ask)
    assert sorted(map(len, got)) == [1, 4]
    assert sorted(n for part in got for n in part) == list(range(5))


async def test_submissions_that_were_taken_are_not_kept() -> None:
    """A trainer that awaits each result, or cancels it, leaves nothing behind, however many it submits."""
    running, _ = engine(*[reply("x")] * 100, concurrency=2)
    async with running:
        for n in range(40):
            submission = await running.submit({"n": n})
            if n % 4 == 3:
                submission.cancel()
            await submission.result()
            submission.cancel()  # of one that is done: nothing
        submissions = running._streams._submissions
        assert submissions is not None
        scheduler = submissions.run.scheduler
        held: list[Any] = [submissions._open, submissions._finished, submissions.run._playing, scheduler._open]
        assert [len(each) for each in [*held, scheduler._waiting, scheduler.running]] == [0] * 6
        assert scheduler.waiting_groups == 0
        assert await running.collect(1) == []
        assert await collect(running, 1)
