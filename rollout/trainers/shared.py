"""An engine that many callers of one event loop share, where none of them owns it.

A trainer that calls us for one rollout at a time opens nothing and closes nothing. The first call opens an engine for
what it asks, the next ones find it, and one that nobody has used for a while is closed: what its environments share is
freed, and the next call opens another. An engine is entered and left in one task of its own, as it must be.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

#: Makes what is shared: an engine, and whatever it needs around it.
Make = Callable[[], AbstractAsyncContextManager[T]]

#: How long one that nobody uses stays open, in seconds.
IDLE_S = 120.0


class SharedEngines(Generic[T]):
    """What is open, by event loop and by what it was opened for."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._open = WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Kept[T]]]()

    def __repr__(self) -> str:
        return f"<SharedEngines {sum(map(len, self._open.values()))} open>"

    @asynccontextmanager
    async def use(self, key: Hashable, make: Make[T]) -> AsyncIterator[T]:
        """The one of this key, open while the block lasts. Raises what opening it raised, to each who waits for it."""
        kept = self._open.setdefault(asyncio.get_running_loop(), {})
        if (found := kept.get(key)) is None or found.over:
            found = kept[key] = _Kept(make, self._idle_s)
        async with found.used() as opened:
            yield opened

    async def aclose(self) -> None:
        """Closes those of this event loop, for whoever knows that nothing more is played on it."""
        kept = self._open.pop(asyncio.get_running_loop(), {})
        for each in kept.values():
            await each.aclose()


class _Kept(Generic[T]):
    """One that is open, or about to be."""

    def __init__(self, make: Make[T], idle_s: float) -> None:
        self._idle_s, self._users = idle_s, 0
        self._done = asyncio.Event()
        self._ready: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._idle: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._own(make))

    @property
    def over(self) -> bool:
        """Whether it is closed, is about to be, or could not be opened."""
        return self._done.is_set() or self._task.done()

    async def _own(self, make: Make[T]) -> None:
        try:
            async with make() as opened:
                self._ready.set_result(opened)
                await self._done.wait()
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    @asynccontextmanager
    async def used(self) -> AsyncIterator[T]:
        self._users += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            # Shielded: who gives up waiting does not end it for the others.
            yield await asyncio.shield(self._ready)
        finally:
            self._users -= 1
            if not self._users and not self.over:
                self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._done.set)

    async def aclose(self) -> None:
        self._done.set()
        if self._idle is not None:
            self._idle.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
