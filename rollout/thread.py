"""The engine for a synchronous trainer: its event loop in a thread of its own.

with EngineThread(EngineConfig(), GuessNumber) as engine:
    for group in engine.stream(tasks, rollouts_per_task=8):
        train(group.samples())

The rollouts go on while the trainer computes, for as long as it takes; admission waits as in `Engine.stream`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from rollout.config import EngineConfig
from rollout.engine import Engine
from rollout.env import Env, Task
from rollout.records import Group
from rollout.stats import Stats
from rollout.transport import Transport
from rollout.weights import InFlight

T = TypeVar("T")


class EngineThread(AbstractContextManager["EngineThread"]):
    """An `Engine` whose methods block. To be used from one thread at a time, but not from its own."""

    def __init__(
        self, config: EngineConfig, make_env: Callable[[], Env], *, transport: Transport | None = None
    ) -> None:
        self.engine = Engine(config, make_env, transport=transport)
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __repr__(self) -> str:
        return f"<EngineThread {self.engine}>"

    def __enter__(self) -> Self:
        """Starts the thread, connects, and loads the tokenizer. Raises ServerError, ConfigError."""
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal(name="rollout-engine"))
            stack.enter_context(portal.wrap_async_context_manager(self.engine))
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        """Ends what runs, closes its requests, and ends the thread. What had finished is in `untaken`."""
        self._portal = None
        self._stack.close()

    @property
    def untaken(self) -> list[Group]:
        """Groups of streams that were given up which had finished members."""
        return self.engine.untaken

    def stream(self, tasks: Iterable[Task], **options: Any) -> Generator[Group, None, None]:
        """As `Engine.stream`. Leaving the loop early ends the stream's requests."""
        groups = self.engine.stream(tasks, **options)

        async def following() -> Group | None:
            return await anext(groups, None)

        try:
            while (group := self._call(following)) is not None:
                yield group
        finally:
            if self._portal is not None:  # else the engine has closed it
                self._call(groups.aclose)

    def submit(self, task: Task, *, rollouts: int = 1) -> Callable[[], Group]:
        """As `Engine.submit`; call what it returns to wait for the group."""
        submission = self._call(lambda: self.engine.submit(task, rollouts=rollouts))
        return lambda: self._call(submission.result)

    def collect(self, count: int) -> list[Group]:
        """As `Engine.collect`."""
        return self._call(lambda: self.engine.collect(count))

    def pause(self, in_flight: InFlight = "keep") -> None:
        """As `Engine.pause`."""
        self._call(lambda: self.engine.pause(in_flight))

    def resume(self) -> None:
        """As `Engine.resume`."""
        self._call(self.engine.resume)

    def update_weights(
        self, version: str | int, path: str | Path | None = None, *, in_flight: InFlight = "keep"
    ) -> None:
        """As `Engine.update_weights`."""
        self._call(lambda: self.engine.update_weights(version, path, in_flight=in_flight))

    def stats(self) -> Stats:
        """As `Engine.stats`."""
        return self.engine.stats()

    def _call(self, function: Callable[[], Awaitable[T]]) -> T:
        if self._portal is None:
            raise RuntimeError("enter the engine first: with EngineThread(...) as engine")
        return self._portal.call(function)
