"""An event loop in a thread of its own, on which other loops have coroutines run."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

import anyio.to_thread

T = TypeVar("T")

#: How long the end waits for what still runs there, seconds.
CLOSE_S = 10.0


class Apart:
    """The loop, from when it is made until it is closed. A daemon's: what hangs there keeps no process from ending."""

    def __init__(self, name: str) -> None:
        self._end = asyncio.Event()
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)), name=name, daemon=True)
        self._thread.start()
        self._loop = ready.result()

    def __repr__(self) -> str:
        return f"<Apart {self._thread.name}, {'open' if self._thread.is_alive() else 'closed'}>"

    async def _run(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        ready.set_result(asyncio.get_running_loop())
        await self._end.wait()

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Gives or raises what the function does, there. Whoever cancels this cancels that, and waits for its end."""
        here = asyncio.get_running_loop()
        ended: asyncio.Future[None] = here.create_future()
        tasks: list[asyncio.Task[T]] = []

        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        def over(task: asyncio.Task[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop that waited is closed
                here.call_soon_threadsafe(tell)

        async def made() -> T:
            return await function()

        def begin() -> None:
            tasks.append(self._loop.create_task(made()))
            tasks[0].add_done_callback(over)

        self._loop.call_soon_threadsafe(begin)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            await asyncio.shield(ended)  # what it holds, such as a program, is given back first
            raise
        return tasks[0].result()

    async def close(self) -> None:
        """Cancels what still runs there."""
        self._loop.call_soon_threadsafe(self._end.set)
        await anyio.to_thread.run_sync(self._thread.join, CLOSE_S)
