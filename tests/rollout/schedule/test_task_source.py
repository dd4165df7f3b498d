"""Tasks come from anything that holds them, and no source keeps the loop, or the stream's end, waiting."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from rollout import Group
from rollout.engine import Engine
from rollout.errors import ConfigError, RolloutError
from rollout.play.host import Hosts
from rollout.process.threads import Threads
from rollout.schedule.task_source import Drawn, checked, task_source
from tests.rollout.test_engine import engine
from transports.scripted import Stalled, reply


async def taken(running: Engine, tasks: Any, groups: list[Group], **options: Any) -> None:
    async for group in running.stream(tasks, **options):
        groups.append(group)  # noqa: PERF401  # what came before an error counts


async def later(tasks: Any) -> AsyncIterator[Any]:
    for task in tasks:
        await anyio.lowlevel.checkpoint()
        yield task


GIVEN = [{"n": n} for n in range(5)]


@pytest.mark.parametrize(
    "tasks",
    [GIVEN, tuple(GIVEN), deque(GIVEN), iter(GIVEN), (task for task in GIVEN), {"a": GIVEN[0]}.values(), later(GIVEN)],
    ids=["list", "tuple", "deque", "iterator", "generator", "view", "async"],
)
async def test_tasks_come_from_any_iterable(tasks: Any) -> None:
    """Each is played once, and in order."""
    running, _ = engine(concurrency=1)
    groups: list[Group] = []
    async with running:
        await taken(running, tasks, groups)
    assert [group.task["n"] for group in groups] == list(range(len(groups)))
    assert groups


@pytest.mark.parametrize("tasks", [5, None, object()])
async def test_what_holds_no_tasks_is_named(tasks: Any) -> None:
    """A wrong argument is the caller's mistake, said at once."""
    running, _ = engine()
    async with running:
        with pytest.raises(ConfigError, match="tasks must be a list or another iterable"):
            await taken(running, tasks, [])


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError("the shard is gone"), OSError, "the shard is gone"),
        (SystemExit(3), RolloutError, "tasks' iterator raised SystemExit: 3"),
        (KeyboardInterrupt(), RolloutError, "tasks' iterator raised KeyboardInterrupt"),
        (StopAsyncIteration(), RolloutError, "tasks' iterator raised StopAsyncIteration"),
        (ExceptionGroup("two", [ValueError("a")]), ExceptionGroup, "two"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("in_loop", [False, True], ids=["thread", "async"])
async def test_an_iterator_that_raises_ends_its_stream_after_what_was_drawn(
    error: BaseException, raised: type[BaseException], said: str, in_loop: bool
) -> None:
    """What had begun is played and delivered; then the stream raises, by its own name, and the engine plays on."""

    def tasks() -> Iterator[Any]:
        yield from GIVEN[:3]
        raise error

    class Raising:
        def __init__(self) -> None:
            self.given = iter(GIVEN[:3])

        def __aiter__(self) -> Raising:
            return self

        async def __anext__(self) -> Any:
            await anyio.lowlevel.checkpoint()
            for task in self.given:
                return task
            raise error

    if in_loop and isinstance(error, StopAsyncIteration):
        pytest.skip("that is how an async iterator ends")
    running, _ = engine(concurrency=2)
    groups: list[Group] = []
    async with running:
        with pytest.raises(raised, match=said):
            await taken(running, Raising() if in_loop else tasks(), groups)
        assert sorted(group.task["n"] for group in groups) == [0, 1, 2]
        assert all(group.finished for group in groups)
        await taken(running, GIVEN, groups)
    assert running.untaken == []
    assert running.stats().finished == len(groups) == 8


async def test_an_iterator_that_cannot_begin_ends_its_stream() -> None:
    """`__iter__` may read a file that is not there."""

    class Missing:
        def __iter__(self) -> Iterator[Any]:
            raise FileNotFoundError("tasks.jsonl")

    running, _ = engine()
    async with running:
        with pytest.raises(FileNotFoundError, match=r"tasks\.jsonl"):
            await taken(running, Missing(), [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "played"),
    [(list, []), (tuple, []), (iter, [0, 1]), (later, [0, 1])],
    ids=["list", "tuple", "iterator", "async"],
)
async def test_a_task_that_cannot_be_written_ends_its_stream(source: Any, played: list[int]) -> None:
    """It is named: of a list before anything is played, else when it is drawn, behind those before it."""
    running, _ = engine(concurrency=1)
    groups: list[Group] = []
    async with running:
        with pytest.raises(ConfigError, match=r"task 2 .*x is of type object"):
            await taken(running, source([*GIVEN[:2], {"x": object()}, *GIVEN]), groups)
    assert [group.task["n"] for group in groups] == played


async def test_an_iterator_that_blocks_blocks_its_stream_only() -> None:
    """While it waits for its next task the loop goes on, and another stream plays to its end."""
    goes_on = threading.Event()

    def tasks() -> Iterator[Any]:
        yield GIVEN[0]
        assert goes_on.wait(30)
        yield GIVEN[1]

    running, _ = engine(concurrency=4)
    groups: list[Group] = []
    other: list[Group] = []
    async with running, anyio.create_task_group() as beside:
        beside.start_soon(taken, running, tasks(), groups)
        await taken(running, GIVEN, other)
        assert len(other) == 5
        goes_on.set()
    assert [group.task["n"] for group in groups] == [0, 1]


async def test_an_iterator_lives_in_one_thread() -> None:
    """From its first task to its end, also when it is closed: what it holds may belong to a thread."""
    where: list[int] = []
    closed = threading.Event()

    def tasks() -> Iterator[Any]:
        try:
            for n in itertools.count():
                where.append(threading.get_ident())
                yield {"n": n}
        finally:
            where.append(threading.get_ident())
            closed.set()

    running, _ = engine(concurrency=2)
    async with running:
        stream = running.stream(tasks())
        for _ in range(6):
            await anext(stream)
        await stream.aclose()
        assert await anyio.to_thread.run_sync(closed.wait, 30)
    assert len(set(where)) == 1
    assert where[0] != threading.get_ident()


async def test_an_async_iterator_lives_in_one_task() -> None:
    """A context that it holds, such as a task group, is left where it was entered; also when the stream is given up."""
    left: list[bool] = []

    async def tasks() -> AsyncIterator[Any]:
        where = asyncio.current_task()
        try:
            async with anyio.create_task_group():
                for n in itertools.count():
                    yield {"n": n}
        finally:
            left.append(asyncio.current_task() is where)

    running, _ = engine(*[reply("x")] * 100, concurrency=2)
    async with running:
        async for group in running.stream(tasks()):
            if group.task["n"] == 5:
                break
    assert left == [True]


async def test_an_iterator_that_hangs_does_not_keep_the_stream_from_ending() -> None:
    """Neither while it is waited for, nor when it is closed; that it hangs is counted."""
    goes_on = threading.Event()

    def tasks() -> Iterator[Any]:
        yield GIVEN[0]
        goes_on.wait(60)

    running, transport = engine(Stalled(), concurrency=2)
    try:
        async with running:
            stream = running.stream(tasks())
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as beside:
                    beside.start_soon(anext, stream)
                    await transport.wait_for(1)
                    scope.cancel()
            await stream.aclose()
            assert running._streams.hanging == 1
        assert [len(group.rollouts) for group in running.untaken] == [1]
    finally:
        goes_on.set()


async def test_tasks_are_drawn_no_further_than_they_are_wanted() -> None:
    """An endless source is asked for as many as slots are free, and then as the consumer takes."""
    drawn: list[int] = []

    def tasks() -> Iterator[Any]:
        for n in itertools.count():
            drawn.append(n)
            yield {"n": n}

    running, _ = engine(*[reply("x")] * 400, concurrency=3)
    async with running:
        count = 0
        async for _ in running.stream(tasks(), ahead=3):
            count += 1
            assert len(drawn) <= count + 3 + 3
            if count == 50:
                break


def test_a_listed_source_is_not_copied() -> None:
    """Of a hundred thousand tasks those are looked at that are asked for."""
    source = task_source([{"n": n} for n in range(100_000)], Hosts(Threads(1)))
    drawn = source.draw_now(3)
    assert drawn is not None
    assert [drawn.tasks, drawn.ended] == [[{"n": 0}, {"n": 1}, {"n": 2}], False]
    assert checked(Drawn(tasks=[{"a": 1}, 5, {"b": 1}]), 7).tasks == [{"a": 1}]
