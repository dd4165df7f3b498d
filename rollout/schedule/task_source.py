"""Where a stream's tasks come from, drawn as they are wanted and without blocking the event loop.

A list's tasks are simply taken. Any other iterable may fetch a shard of a data set before it gives the next one, or
hang: it is drawn from in a thread, in one and the same from its first task to its last, since what it holds (a
database's connection, say) may belong to a thread. An async iterable is drawn from in one task, for the same reason.

An iterator that raises has given its last task. What it raises is handed over beside the tasks drawn before.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import msgspec

from rollout import door
from rollout.env import Task
from rollout.errors import ConfigError, RolloutError
from rollout.log import get_logger
from rollout.play.faults import EnvironmentFault
from rollout.play.host import Host, Hosts
from rollout.process.threads import Threads

#: Tasks that are looked at before the event loop may do something else: about a millisecond.
_CHECKED_AT_ONCE = 500

#: How long an iterator may take to end once the stream has.
CLOSE_S = 5.0

_END = object()

_log = get_logger(__name__)


class Drawn(msgspec.Struct):
    """What a source gave."""

    tasks: list[Any]
    ended: bool = False
    """Whether there are no more."""
    error: Exception | None = None
    """What ended them, where something did."""


class TaskSource(Protocol):
    """Tasks, one after another."""

    def draw_now(self, count: int) -> Drawn | None:
        """The next tasks, `count` at most; None where drawing may take time: see `draw`."""
        ...

    async def draw(self, count: int) -> Drawn:
        """The next tasks: one at least, if there is one, and `count` at most."""
        ...

    async def aclose(self) -> None:
        """Lets the iterator end. Does not wait for one that hangs."""
        ...


def task_source(tasks: Iterable[Task] | AsyncIterable[Task], hosts: Hosts) -> TaskSource:
    """The way to draw from these tasks. Raises ConfigError for what holds none."""
    if isinstance(tasks, list | tuple | range | deque):
        return _Listed(tasks)
    if isinstance(tasks, AsyncIterable):
        return _Async(tasks, hosts)
    if isinstance(tasks, Iterable):
        return _Threaded(tasks, hosts.threads)
    raise ConfigError(f"tasks must be a list or another iterable of tasks, not {door.type_name(tasks)}")


async def refuse_unwritable(tasks: object) -> None:
    """Raises ConfigError for a list with a task that cannot be written, before anything of it is played.

    Other iterables' tasks are seen when they are drawn: see `checked`.
    """
    if not isinstance(tasks, list | tuple | deque):
        return
    for index, task in enumerate(list(tasks)):
        if index % _CHECKED_AT_ONCE == _CHECKED_AT_ONCE - 1:
            await anyio.lowlevel.checkpoint()
        if type(task) is not dict or not door.is_plain(task):
            door.task(task, index)


def checked(drawn: Drawn, first_index: int) -> Drawn:
    """The same tasks as they can be written. One that cannot be is the end, and its ConfigError the error."""
    for at, task in enumerate(drawn.tasks):
        try:
            drawn.tasks[at] = door.task(task, first_index + at)
        except ConfigError as error:
            return Drawn(tasks=drawn.tasks[:at], ended=True, error=error)
    return drawn


def as_error(error: BaseException, source: str) -> Exception:
    """What the caller's code raised: as it is, but for what would end more than its stream, which is said by name."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    raised = RolloutError(f"{source} raised {door.type_name(error)}: {door.error_text(error)}")
    raised.__cause__ = error
    return raised


def _ended_by(error: BaseException, tasks: list[Any]) -> Drawn:
    return Drawn(tasks=tasks, ended=True, error=as_error(error, "the tasks' iterator"))


class _Listed:
    """Tasks that are all there."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)

    def draw_now(self, count: int) -> Drawn:
        tasks: list[Any] = []
        try:
            tasks.extend(itertools.islice(self._tasks, count))
        except Exception as error:  # a deque that was changed
            return _ended_by(error, tasks)
        return Drawn(tasks=tasks, ended=len(tasks) < count)

    async def draw(self, count: int) -> Drawn:
        return self.draw_now(count)

    async def aclose(self) -> None:
        pass


class _Async:
    """Tasks that are awaited one by one, in a task that is the iterator's own."""

    def __init__(self, tasks: AsyncIterable[Task], hosts: Hosts) -> None:
        self._tasks = tasks
        self._iterator: AsyncIterator[Task] | None = None
        self._host = Host(hosts, "tasks")

    def draw_now(self, count: int) -> None:
        return None

    async def draw(self, count: int) -> Drawn:
        try:
            task = await self._host.call("the tasks' iterator", self._next, in_task=True)
        except EnvironmentFault as fault:
            return _ended_by(fault.raised or fault, [])
        return Drawn(tasks=[], ended=True) if task is _END else Drawn(tasks=[task])

    async def aclose(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is not None and self._host.pending is None:
            try:
                with anyio.CancelScope(shield=True):
                    await self._host.call("the tasks' iterator", close, limit_s=CLOSE_S, in_task=True)
            except EnvironmentFault as fault:
                _log.warning("tasks_close_failed", error=str(fault), exc_info=fault.raised)
        self._host.end()

    async def _next(self) -> Any:
        if self._iterator is None:
            self._iterator = aiter(self._tasks)
        return await anext(self._iterator, _END)


class _Threaded:
    """Tasks of an iterator that may block, in a thread that is the iterator's own."""

    def __init__(self, tasks: Iterable[Task], threads: Threads) -> None:
        self._threads = threads
        self._requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._asked = 0
        """How many tasks were asked for that have not come."""
        self._drawn = Drawn(tasks=[])
        self._arrived = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hand_over(drawn: Drawn) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._take, drawn)

        self._thread = threads.call(_serve, tasks, self._requests.get, hand_over)

    def draw_now(self, count: int) -> None:
        return None

    async def draw(self, count: int) -> Drawn:
        if not self._thread.begun:
            await self._threads.start(self._thread)
        if (more := count - self._asked) > 0:
            self._asked += more
            self._requests.put(more)
        while not self._drawn.tasks and not self._drawn.ended:
            self._arrived.clear()
            await self._arrived.wait()
        drawn, self._drawn = self._drawn, Drawn(tasks=[])
        return drawn

    async def aclose(self) -> None:
        self._requests.put(None)
        if self._thread.begun:
            self._threads.abandon(self._thread)  # it ends by itself once the iterator has

    def _take(self, drawn: Drawn) -> None:
        self._asked -= len(drawn.tasks)
        self._drawn.tasks += drawn.tasks
        self._drawn.ended, self._drawn.error = drawn.ended, drawn.error
        self._arrived.set()


def _serve(tasks: Iterable[Task], next_request: Callable[[], int | None], hand_over: Callable[[Drawn], None]) -> None:
    """Draws as it is asked to, hands each task over as it comes, and closes the iterator; in its thread."""
    try:
        iterator = iter(tasks)
        while (count := next_request()) is not None:
            for _ in range(count):
                hand_over(Drawn(tasks=[next(iterator)]))
    except StopIteration:
        hand_over(Drawn(tasks=[], ended=True))
    except BaseException as error:
        hand_over(_ended_by(error, []))
    else:
        _close(iterator)


def _close(iterator: Iterator[Task]) -> None:
    """Has a generator end that was not drawn to its end."""
    try:
        getattr(iterator, "close", lambda: None)()
    except BaseException as error:
        _log.warning("tasks_close_failed", error=door.error_text(error), exc_info=error)
