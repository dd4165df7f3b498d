"""Streams end in a few stated ways, share their slots, and play attempts again: each rollout ends once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.abc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout import EngineConfig, Env, Group, Message, Rollout, Step, user
from rollout.engine import Engine, differing_rewards
from rollout.errors import ConfigError, EngineClosed, EngineStopped, NoServerLeft, RolloutError, ServerBusy
from rollout.play.host import Hosts
from rollout.process.threads import Threads
from rollout.records import FailureKind, Job, StopReason
from rollout.schedule.scheduler import Scheduler
from rollout.schedule.stream import StreamRun
from rollout.schedule.submissions import Submission
from rollout.schedule.task_source import task_source
from tests.rollout.test_engine import collect, engine
from transports.scripted import Fault, Held, ScriptedTransport, Stalled, reply


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
        assert [len(run.scheduler.running) for run in running._streams.runs] == [1, 3]
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


class Made:
    """A rollout that is played at once, in an engine's place."""

    def __init__(self, job: Job) -> None:
        self.rollout = job.rollout()

    async def play(self) -> Rollout:
        await anyio.lowlevel.checkpoint()
        self.rollout.stop = StopReason.DONE
        return self.rollout


class Makers:
    """What a stream needs of its engine, and no more."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.ended = 0
        self.run: StreamRun | None = None

    def episode(self, job: Job, *, evaluation: bool) -> Made:
        if self.fault is not None and job.task["n"] == 1:
            raise self.fault
        return Made(job)

    def count_end(self, rollout: Rollout) -> None:
        self.ended += 1

    def again(self, rollout: Rollout) -> bool:
        return False

    def slot_freed(self) -> None:
        if self.run is not None:
            self.run.wake()


def stream_of(makers: Makers, tasks: int, members: int = 1, **options: Any) -> StreamRun:
    scheduler = Scheduler(cap=8, rollouts_per_task=members, max_waiting_groups=8)
    source = task_source([{"n": n} for n in range(tasks)], Hosts(Threads(1)))
    makers.run = StreamRun(makers, makers, scheduler, source, **options)
    return makers.run


@pytest.mark.slow
async def test_a_long_stream_leaves_nothing_behind() -> None:
    """Of thousands of rollouts a stream holds those that run and wait, no timers, and nothing at its end."""
    makers, most = Makers(), 0
    run = stream_of(makers, 2_000, 3, straggler_s=3600.0)
    async with anyio.create_task_group() as group:
        group.start_soon(run.play)
        count = 0
        while await run.next() is not None:
            count += 1
            held: list[Any] = [
                run._ready,
                run._playing,
                run._timers,
                run._hand_over.under_way if run._hand_over else (),
                run.scheduler._open,
            ]
            most = max(most, sum(map(len, held)))
            run.taken()
    assert [count, makers.ended] == [2_000, 6_000]
    assert most <= 8 * 5
    assert [len(each) for each in held] == [0] * 5
    assert [run.scheduler.waiting_groups, len(run.scheduler.running), run.left()] == [0, 0, []]


async def test_a_fault_of_ours_costs_its_rollout() -> None:
    """What cannot even be begun is a failure of kind internal, with its text; the stream goes on."""
    run = stream_of(Makers(KeyError("bug")), 3)
    groups = []
    async with anyio.create_task_group() as group:
        group.start_soon(run.play)
        while (found := await run.next()) is not None:
            groups.append(found)
            run.taken()
    failures = {one.task["n"]: one.rollouts[0].failure for one in groups}
    assert [failures[0], failures[2]] == [None, None]
    assert failures[1] is not None
    assert [failures[1].kind, failures[1].error] == [FailureKind.INTERNAL, "KeyError"]


async def test_an_on_rollout_that_hangs_does_not_keep_the_stream_from_ending() -> None:
    """It has a while once the stream is given up; the rollout is kept all the same, and the stream says why."""

    async def hang(rollout: Rollout) -> None:
        await anyio.sleep_forever()

    run = stream_of(Makers(), 1, on_rollout=hang, hand_over_s=0.05)
    async with anyio.create_task_group() as group:
        group.start_soon(run.play)
        await anyio.wait_all_tasks_blocked()
        kept = await run.give_up()
    assert [len(one.finished) for one in kept] == [1]
    assert isinstance(run.error, RolloutError)
    assert "on_rollout took longer than 0.05 s" in str(run.error)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError("disk full"), OSError, "disk full"),
        (SystemExit(1), RolloutError, "on_rollout raised SystemExit: 1"),
        (asyncio.CancelledError(), RolloutError, "on_rollout raised CancelledError"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_on_rollout_raises_ends_the_stream(
    error: BaseException, raised: type[BaseException], said: str
) -> None:
    """What ran is ended and delivered, the error comes out, and nothing else of the engine ends."""

    async def broken(rollout: Rollout) -> None:
        raise error

    running, _ = engine(*[reply("x")] * 60, concurrency=2)
    groups: list[Group] = []

    async def consume() -> None:
        async for group in running.stream([{"n": n} for n in range(9)], rollouts_per_task=2, on_rollout=broken):
            groups.append(group)  # noqa: PERF401  # what came before the error counts

    async with running:
        with pytest.raises(raised, match=said):
            await consume()
        assert running.stats().running == 0
        kept = [*groups, *running.take_untaken()]
        assert sum(len(group.finished) for group in kept) == running.stats().finished >= 1
        assert len(await collect(running, 2)) == 2


async def test_a_keep_that_raises_loses_nothing() -> None:
    """The group that it was asked about is in `untaken`, with what was played besides."""

    def broken(group: Group) -> bool:
        raise ZeroDivisionError

    running, _ = engine(concurrency=2)
    async with running:
        with pytest.raises(ZeroDivisionError):
            await collect(running, 4, keep=broken)
        kept = running.take_untaken()
        assert sum(len(group.finished) for group in kept) == running.stats().finished >= 1


async def test_a_cancelled_trainer_loses_nothing() -> None:
    """Where the engine is cancelled from outside, with all that runs, what had finished is in `untaken`."""
    running, transport = engine(*[reply("x")] * 3, *[Stalled()] * 3, concurrency=6, max_turns=1)
    taken: list[Group] = []

    async def train() -> None:
        async for group in running.stream([{"n": n} for n in range(6)]):
            taken.append(group)
            await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group, running:
            group.start_soon(train)
            await transport.wait_for(6)
            while running.stats().finished < 3 or not taken:
                await anyio.lowlevel.checkpoint()
            scope.cancel()
    stats = running.stats()
    assert [stats.running, stats.finished, stats.failed, transport.closed] == [0, 3, 3, True]
    assert len(taken) == 1
    assert sum(len(group.finished) for group in running.untaken) == 2


async def test_a_stopped_engine_begins_no_stream() -> None:
    """It says so at once, and what was stopped is delivered: nobody mistakes it for a stream that was played."""
    held = Held(reply("x"))
    running, transport = engine(held, concurrency=1)
    async with running, anyio.create_task_group() as group:
        groups: list[Group] = []

        async def consume() -> None:
            groups.extend(await collect(running, 3, rollouts_per_task=2))

        group.start_soon(consume)
        await transport.wait_for(1)
        running.stop_admitting()
        with pytest.raises(EngineStopped, match="stop_admitting"):
            await collect(running, 1)
        held.release()
    assert [len(group.rollouts) for group in groups] == [1]


class Quick(Env):
    """One turn, and no thread."""

    blocks = False

    async def reset(self, task: Any) -> list[Message]:
        return [user("hello")]

    async def step(self, message: Message) -> Step:
        return Step(done=True, reward=1.0)


class Play:
    """An engine whose one stream is consumed while other things are done to it; and what came of each rollout."""

    def __init__(self, entries: list[str], **options: Any) -> None:
        made: dict[str, Any] = {"reply": reply("x"), "fault": Fault(ServerBusy("full")), "stall": Stalled()}
        transport = ScriptedTransport([made[entry] for entry in entries])
        transport._info.can_tokenize = True
        config = EngineConfig(transport="scripted", renderer="server", concurrency=3, rollout_retries=1)
        self.engine = Engine(config, Quick, transport=transport)
        self.options = options
        self.played: list[Rollout] = []
        self.delivered: list[Group] = []
        self.dropped: list[Group] = []
        self.submitted: list[Group] = []
        self.submissions: list[Submission] = []
        self.asked = 0
        self.errors: list[Exception] = []
        self.unplayed = 0

    async def on_rollout(self, rollout: Rollout) -> None:
        self.played.append(rollout)
        if len(self.played) == self.options["disk_full_after"]:
            raise OSError("disk full")

    def keep(self, group: Group) -> bool:
        if group.task["n"] == self.options["keep_raises_at"]:
            raise ZeroDivisionError
        kept = bool(group.task["n"] % 3 != 1)
        if not kept:
            self.dropped.append(group)
        return kept

    def reward(self, group: Group) -> Any:
        if group.task["n"] % 4 == 3:
            raise LookupError("no judge")
        return [2.0 for _ in group.finished]

    async def judged(self, group: Group) -> Any:
        await anyio.lowlevel.checkpoint()
        return self.reward(group)

    def tasks(self) -> Any:
        given = [{"n": n} for n in range(self.options["tasks"])]
        if self.options["source"] == "list":
            return given
        return self._iterated(given) if self.options["source"] == "iterator" else self._awaited(given)

    def _iterated(self, given: list[Any]) -> Iterator[Any]:
        yield from given
        if self.options["tasks_raise"]:
            raise EOFError("shard")

    async def _awaited(self, given: list[Any]) -> AsyncIterator[Any]:
        for task in self._iterated(given):
            await anyio.lowlevel.checkpoint()
            yield task

    async def consume(self) -> None:
        stream = self.engine.stream(
            self.tasks(),
            rollouts_per_task=self.options["members"],
            on_rollout=self.on_rollout,
            keep=self.keep,
            group_reward=self.judged if self.options["rewarded"] else None,
            ahead=self.options["ahead"],
        )
        try:
            async for group in stream:
                self.delivered.append(group)
                if len(self.delivered) == self.options["leave_after"]:
                    break
        except Exception as error:
            self.errors.append(error)
        finally:
            await stream.aclose()

    async def wait_for(self, submission: Submission) -> None:
        try:
            self.submitted.append(await submission.result())
        except Exception as error:
            self.unplayed += 1
            self.errors.append(error)

    async def do(self, action: str, outside: anyio.abc.TaskGroup, consumer: anyio.CancelScope) -> None:
        match action:
            case "step":
                await anyio.lowlevel.checkpoint()
            case "settle":
                await anyio.wait_all_tasks_blocked()
            case "submit":
                try:
                    submission = await self.engine.submit({"n": 9}, rollouts=2)
                except RolloutError as error:
                    self.errors.append(error)
                else:
                    self.submissions.append(submission)
                    outside.start_soon(self.wait_for, submission)
            case "withdraw":
                for submission in self.submissions[-1:]:
                    submission.cancel()
            case "leave":
                consumer.cancel()
            case "cancel":
                self.engine.cancel()
            case "stop":
                self.engine.stop_admitting()
            case "fail":
                self.engine._streams.fail(NoServerLeft("all gone"))

    async def run(self, actions: list[str]) -> None:
        consumer = anyio.CancelScope()

        async def consume() -> None:
            with consumer:
                await self.consume()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as outside, self.engine, anyio.create_task_group() as inside:
                # Inside the engine a consumer is cancelled; outside it is told that the engine was closed.
                (inside if self.options["inside"] else outside).start_soon(consume)
                for action in actions:
                    await self.do(action, outside, consumer)
                await anyio.lowlevel.checkpoint()
                inside.cancel_scope.cancel()

    def check(self) -> None:
        """Whatever was done: every rollout that was played is in one group, and nobody heard an unstated error."""
        engine, stats = self.engine, self.engine.stats()
        assert stats.running == engine._streams.slots.used == 0
        groups = [*self.delivered, *self.dropped, *engine.untaken]
        in_groups = [id(rollout) for group in groups for rollout in group.rollouts]
        assert len(in_groups) == len(set(in_groups)), "a rollout is in two groups"
        assert set(in_groups) == {id(rollout) for rollout in self.played}, "a rollout is in no group"
        assert len({group.task_index for group in groups}) == len(groups), "a task came twice"
        finished = sum(len(group.finished) for group in [*groups, *self.submitted])
        assert stats.finished - stats.unrewarded == finished
        assert len(self.dropped) == stats.dropped_groups
        ended = sum(len(group.rollouts) for group in [*groups, *self.submitted])
        assert stats.finished + stats.failed == ended
        assert len(self.submitted) + self.unplayed == len(self.submissions)
        if self.options["rewarded"]:
            assert {reward for group in [*self.delivered, *self.dropped] for reward in group.rewards} <= {2.0}
        known = EngineClosed | EngineStopped | NoServerLeft | OSError | EOFError | ZeroDivisionError
        assert all(isinstance(error, known) for error in self.errors)


ACTIONS = ["step", "settle", "submit", "withdraw", "cancel", "stop", "fail", "leave"]


@pytest.mark.slow
@given(
    entries=st.lists(st.sampled_from(["reply", "reply", "fault", "stall"]), max_size=30),
    actions=st.lists(st.sampled_from(["step", "step", "settle", *ACTIONS]), max_size=14),
    options=st.fixed_dictionaries(
        {
            "tasks": st.integers(0, 6),
            "members": st.integers(1, 3),
            "source": st.sampled_from(["list", "iterator", "async"]),
            "tasks_raise": st.booleans(),
            "rewarded": st.booleans(),
            "ahead": st.none() | st.integers(1, 3),
            "leave_after": st.none() | st.integers(1, 3),
            "keep_raises_at": st.none() | st.integers(0, 5),
            "disk_full_after": st.none() | st.integers(1, 6),
            "inside": st.booleans(),
        }
    ),
)
@settings(max_examples=60)
def test_nothing_is_lost_whatever_ends_a_stream(
    entries: list[str], actions: list[str], options: dict[str, Any]
) -> None:
    """Under ends of every kind in any order: each rollout is in one group, permits are back, counts are exact."""
    play = Play(entries, **options)
    asyncio.run(play.run(actions))
    play.check()
