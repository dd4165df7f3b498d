"""The engine for a synchronous trainer: its event loop in a thread of its own.

with EngineThread(EngineConfig(), GuessNumber) as engine:
    for group in engine.stream(tasks, rollouts_per_task=8):
        train(group.samples())

The rollouts go on while the trainer computes, for as long as it takes; admission waits as in `Engine.stream`. Streams
and submissions end as those of an `Engine` do (see `rollout.schedule.stream`). Control-C is a KeyboardInterrupt where
the trainer waits: it gives up the stream that is waited for. What had finished is in `untaken`, also after the engine
is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self, TypeVar

from rollout.config import EngineConfig
from rollout.engine import Engine
from rollout.env import Env, Task
from rollout.loop.thread import LoopThread
from rollout.observe.stats import Stats
from rollout.records import Group
from rollout.servers.weights import InFlight
from rollout.transport import Transport

T = TypeVar("T")


class ThreadStream(Iterator[Group]):
    """A stream's groups, for a plain loop. To be read by one thread at a time."""

    def __init__(self, owner: EngineThread, groups: AsyncGenerator[Group]) -> None:
        self._owner = owner
        self._groups = groups
        self._reading = threading.Lock()

    def __next__(self) -> Group:
        """Raises what ended the stream, and EngineClosed once the engine is closed."""
        if not self._reading.acquire(blocking=False):
            raise RuntimeError("another thread reads this stream: one at a time, or a stream for each")
        try:
            group = self._owner.call(self._following, unclaimed=self._unclaimed)
        finally:
            self._reading.release()
        if group is None:
            raise StopIteration
        return group

    def close(self) -> None:
        """Ends what runs of it. What had finished is in `untaken`."""
        if self._owner.open:  # else the engine has ended it
            self._owner.call(self._groups.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Whichever thread finds it unused must not wait, and may be the loop's.
        with contextlib.suppress(Exception):
            self._owner.end_unread(self._groups)

    async def _following(self) -> Group | None:
        return await anext(self._groups, None)

    def _unclaimed(self, group: Group | None) -> None:
        self._owner.keep_unclaimed([group] if group is not None else [])


class EngineThread(AbstractContextManager["EngineThread"]):
    """An `Engine` whose methods block. Any thread may call them but the engine's own."""

    def __init__(
        self, config: EngineConfig, make_env: Callable[[], Env], *, transport: Transport | None = None
    ) -> None:
        self.engine = Engine(config, make_env, transport=transport)
        self._thread: LoopThread | None = None
        self._ending: set[asyncio.Task[None]] = set()
        """Streams that nobody reads any more, while they end."""

    def __repr__(self) -> str:
        return f"<EngineThread {self.engine}>"

    def __enter__(self) -> Self:
        """Starts the thread, connects, and loads the tokenizer. Raises ServerError, ConfigError."""
        if self._thread is not None:
            raise RuntimeError("an EngineThread is entered once: make another")
        self._thread = LoopThread(self.engine, name="rollout-engine")
        self._thread.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        """Ends what runs, closes its requests, and ends the thread. What had finished is in `untaken`."""
        if self._thread is not None:
            self._thread.__exit__(*exc_info)

    @property
    def open(self) -> bool:
        """Whether it is entered, and not left."""
        return self._thread is not None and self._thread.open

    @property
    def untaken(self) -> list[Group]:
        """As `Engine.untaken`: what was played and not taken. There also after the engine was closed."""
        self._settle()
        return self.engine.untaken

    def take_untaken(self) -> list[Group]:
        """As `Engine.take_untaken`."""
        self._settle()
        return self.engine.take_untaken()

    def stream(self, tasks: Iterable[Task] | AsyncIterable[Task], **options: Any) -> ThreadStream:
        """As `Engine.stream`. Leaving the loop early ends the stream's requests."""
        return ThreadStream(self, self.engine.stream(tasks, **options))

    def submit(self, task: Task, *, rollouts: int = 1) -> Callable[[], Group]:
        """As `Engine.submit`; call what it returns to wait for the group."""
        submission = self.call(lambda: self.engine.submit(task, rollouts=rollouts))

        def result() -> Group:
            if not self.open and submission.done:
                return submission.take()
            return self.call(submission.result, unclaimed=lambda group: self.keep_unclaimed([group]))

        return result

    def collect(self, count: int) -> list[Group]:
        """As `Engine.collect`."""
        if self._thread is not None and not self.open:
            return self.engine.collected(count)
        return self.call(lambda: self.engine.collect(count), unclaimed=self.keep_unclaimed)

    def cancel(self) -> None:
        """As `Engine.cancel`."""
        self._now(self.engine.cancel)

    def stop_admitting(self) -> None:
        """As `Engine.stop_admitting`."""
        self._now(self.engine.stop_admitting)

    def pause(self, in_flight: InFlight = "keep") -> None:
        """As `Engine.pause`."""
        self.call(lambda: self.engine.pause(in_flight))

    def resume(self) -> None:
        """As `Engine.resume`."""
        self.call(self.engine.resume)

    def update_weights(
        self, version: str | int, path: str | Path | None = None, *, in_flight: InFlight = "keep"
    ) -> None:
        """As `Engine.update_weights`."""
        self.call(lambda: self.engine.update_weights(version, path, in_flight=in_flight))

    def stats(self) -> Stats:
        """As `Engine.stats`."""
        return self._now(self.engine.stats) if self.open else self.engine.stats()

    def call(self, function: Callable[[], Awaitable[T]], *, unclaimed: Callable[[T], object] | None = None) -> T:
        """Has something awaited in the engine's loop, and waits for it: see `LoopThread.call`."""
        if self._thread is None:
            raise RuntimeError("enter the engine first: with EngineThread(...) as engine")
        return self._thread.call(function, unclaimed=unclaimed)

    def keep_unclaimed(self, groups: list[Group]) -> None:
        """Keeps what came when its caller had been interrupted."""
        self.engine.keep_untaken(groups)

    def end_unread(self, groups: AsyncGenerator[Group]) -> None:
        """Ends a stream that nobody reads any more, without waiting."""
        if self._thread is not None:
            self._thread.tell(lambda: self._end(groups))

    def _end(self, groups: AsyncGenerator[Group]) -> None:
        async def close() -> None:
            await groups.aclose()

        task = asyncio.get_running_loop().create_task(close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _settle(self) -> None:
        """Waits for streams that are ending."""

        async def settled() -> None:
            if self._ending:
                await asyncio.wait(self._ending)

        if self.open:
            self.call(settled)

    def _now(self, function: Callable[[], T]) -> T:
        async def called() -> T:
            return function()

        return self.call(called)
