"""A reward for whole groups may be any function, and may do anything: it costs its group at most, and no time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import numpy as np
import pytest

from rollout import Group
from rollout.engine import Engine
from rollout.errors import EngineClosed
from rollout.records import FailureKind
from tests.log_kit import capture_logs
from tests.rollout.test_engine import collect, engine
from transports.scripted import Stalled, reply


def plain(group: Group) -> list[float]:
    return [float(rollout.member) for rollout in group.finished]


async def judged(group: Group) -> list[float]:
    await anyio.lowlevel.checkpoint()
    return plain(group)


async def one(member: int) -> float:
    return float(member)


def by_name(name: str, group: Group) -> list[float]:
    assert name == "judge"
    return plain(group)


class Judge:
    async def __call__(self, group: Group) -> list[float]:
        return await judged(group)

    def ranked(self, group: Group) -> Iterator[float]:
        yield from plain(group)


class Awaited:
    """An awaitable that is no coroutine."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __await__(self) -> Any:
        return judged(self.group).__await__()


@pytest.mark.parametrize(
    "reward",
    [
        plain,
        judged,
        lambda group: judged(group),
        Judge(),
        Judge().ranked,
        functools.partial(by_name, "judge"),
        functools.partial(judged),
        Awaited,
        lambda group: asyncio.ensure_future(judged(group)),
        lambda group: asyncio.gather(*[one(rollout.member) for rollout in group.finished]),
        lambda group: tuple(plain(group)),
        lambda group: np.array(plain(group), dtype=np.float32),
        lambda group: [np.int64(rollout.member) for rollout in group.finished],
        lambda group: [rollout.member == 1 for rollout in group.finished],
    ],
    ids=range(14),
)
# A function that needs the loop is found out by calling it in a thread, where its coroutines are never awaited.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_every_shape_of_function_is_taken(reward: Any) -> None:
    """A plain function, an async one, an object, a partial, a generator, any awaitable; any numbers, in any row."""
    running, _ = engine(score_timeout_s=30)
    async with running:
        groups = await collect(running, 3, rollouts_per_task=2, group_reward=reward)
    assert [group.rewards for group in groups] == [[0.0, 1.0]] * 3
    assert [[rollout.group_reward for rollout in group.finished] for group in groups] == [[0.0, 1.0]] * 3
    assert all(group.rewarded and type(reward) is float for group in groups for reward in group.rewards)
    assert running.stats().unrewarded == 0


def raising(error: BaseException) -> Any:
    def reward(group: Group) -> list[float]:
        raise error

    return reward


def raising_in_loop(error: BaseException) -> Any:
    async def reward(group: Group) -> list[float]:
        raise error

    return reward


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (raising(RuntimeError("the judge is down")), "group_reward raised RuntimeError: the judge is down"),
        (raising(SystemExit(1)), "group_reward raised SystemExit: 1"),
        (raising(KeyboardInterrupt()), "group_reward raised KeyboardInterrupt"),
        (raising(Mute()), "group_reward raised Mute"),
        (raising(TimeoutError("its own")), "group_reward raised TimeoutError: its own"),
        (raising_in_loop(RuntimeError("down")), "group_reward raised RuntimeError: down"),
        (raising_in_loop(SystemExit(1)), "group_reward raised SystemExit: 1"),
        (raising_in_loop(asyncio.CancelledError()), "group_reward raised CancelledError"),
        (raising_in_loop(TimeoutError()), "group_reward raised TimeoutError"),
        (raising_in_loop(ExceptionGroup("two", [ValueError("a"), ValueError("b")])), "raised ExceptionGroup"),
        (lambda group: [1.0], "group_reward gave 1 rewards for 2 finished rollouts"),
        (lambda group: [1.0, float("nan")], "group_reward gave nan where a finite number belongs"),
        (lambda group: ["good", "bad"], "group_reward gave str where a number belongs"),
        (lambda group: None, "group_reward gave NoneType, not a list of numbers"),
        (lambda group: {"a": 1}, "group_reward gave dict, not a list of numbers"),
        (lambda group: "12", "group_reward gave str, not a list of numbers"),
        (lambda group: 1.0, "group_reward gave float, not a list of numbers"),
    ],
    ids=range(17),
)
async def test_a_function_that_fails_costs_its_group(reward: Any, said: str) -> None:
    """The group is delivered, its finished members fail with what happened, and the others are scored."""

    def second_fails(group: Group) -> Any:
        return reward(group) if group.task["n"] == 1 else plain(group)

    running, _ = engine(concurrency=2, score_timeout_s=30)
    with capture_logs() as logs:
        async with running:
            groups = await collect(running, 3, rollouts_per_task=2, group_reward=second_fails)
    groups.sort(key=lambda group: group.task_index)
    assert [group.rewards for group in groups] == [[0.0, 1.0], [], [0.0, 1.0]]
    assert [group.rewarded for group in groups] == [True, False, True]
    for rollout in groups[1].rollouts:
        assert rollout.stop is None
        assert rollout.failure is not None
        assert rollout.failure.kind is FailureKind.ENVIRONMENT
        assert said in rollout.failure.message
        assert len(rollout.turns) == 2
    (line,) = [line for line in logs if line["event"] == "environment_raised"]
    assert [line["call"], line["group"]] == ["group_reward", groups[1].task_id]
    assert isinstance(line["exc_info"], BaseException)
    stats = running.stats()
    assert [stats.finished, stats.unrewarded, running.untaken] == [6, 2, []]


@pytest.mark.parametrize("shape", ["plain", "async", "returned"])
async def test_a_function_that_hangs_costs_its_group(shape: str) -> None:
    """After `score_timeout_s` its members fail of kind timeout; the others were scored meanwhile, several at once."""
    goes_on = threading.Event()

    async def hangs(group: Group) -> Any:
        return plain(group) if group.task["n"] else await anyio.sleep_forever()

    def blocks(group: Group) -> list[float]:
        if not group.task["n"]:
            goes_on.wait(60)
        return plain(group)

    reward: Any = {"plain": blocks, "async": hangs, "returned": lambda group: hangs(group)}[shape]
    running, _ = engine(score_timeout_s=0.3)
    try:
        async with running:
            groups = await collect(running, 3, rollouts_per_task=2, group_reward=reward)
            assert running._streams.hanging == (shape == "plain")
    finally:
        goes_on.set()
    assert [group.task["n"] for group in groups][-1] == 0
    assert [group.rewards for group in groups] == [[0.0, 1.0], [0.0, 1.0], []]
    failures = [rollout.failure for rollout in groups[-1].rollouts if rollout.failure]
    assert {failure.kind for failure in failures} == {FailureKind.TIMEOUT}
    assert "group_reward took longer than 0.3 s" in failures[0].message


@pytest.mark.slow
async def test_a_function_that_swallows_its_cancellation_costs_its_group() -> None:
    """It is given up after a while, and counted."""

    async def stubborn(group: Group) -> list[float]:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    running, _ = engine(score_timeout_s=0.05)
    async with running:
        (group,) = await collect(running, 1, group_reward=stubborn)
        assert running.stats().hanging_calls == 1
    assert group.rollouts[0].failure is not None
    assert group.rollouts[0].failure.kind is FailureKind.TIMEOUT


async def test_the_steps_limit_is_the_groups_where_no_other_is_set() -> None:
    """`step_timeout_s` bounds the group reward, as it does the environment's score."""
    running, _ = engine(step_timeout_s=0.3)
    async with running:
        (group,) = await collect(running, 1, group_reward=lambda group: anyio.sleep_forever())
    assert group.rollouts[0].failure is not None
    assert group.rollouts[0].failure.kind is FailureKind.TIMEOUT


async def test_several_groups_are_scored_at_once_while_others_are_played() -> None:
    """No function waits for another, and none for the consumer."""
    begun, all_begun = 0, anyio.Event()

    async def reward(group: Group) -> list[float]:
        nonlocal begun
        begun += 1
        if begun == 4:
            all_begun.set()
        await all_begun.wait()
        return plain(group)

    running, _ = engine(concurrency=4)
    async with running:
        with anyio.fail_after(30):
            assert len(await collect(running, 4, group_reward=reward)) == 4


async def test_a_group_without_finished_members_is_not_scored() -> None:
    """There is nothing to give a number to."""
    running, _ = engine(Stalled(), step_timeout_s=30, episode_timeout_s=0.05)
    async with running:
        (group,) = await collect(running, 1, group_reward=raising(AssertionError()))
    assert group.rollouts[0].failure is not None
    assert group.rollouts[0].failure.kind is FailureKind.TIMEOUT


@pytest.mark.parametrize("how", ["given up", "closed"])
async def test_what_was_not_scored_is_kept_as_such(how: str) -> None:
    """A stream that ends before its reward came leaves the group in `untaken`, finished and not rewarded."""
    asked = anyio.Event()

    async def reward(group: Group) -> list[float]:
        asked.set()
        await anyio.sleep_forever()
        return []

    async def consume(running: Engine) -> None:
        await collect(running, 1, rollouts_per_task=2, group_reward=reward)

    running, _ = engine(*[reply("x")] * 4)
    raised: Any = pytest.raises(EngineClosed) if how == "closed" else anyio.CancelScope()
    async with anyio.create_task_group() as outside, running:

        async def consumed() -> None:
            with raised:
                await consume(running)

        outside.start_soon(consumed)
        await asked.wait()
        if how == "given up":
            raised.cancel()
            while running.stats().running or not running.untaken:
                await anyio.lowlevel.checkpoint()
    (group,) = running.take_untaken()
    assert [len(group.finished), group.rewarded, running.untaken] == [2, False, []]
