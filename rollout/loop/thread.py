"""An event loop in a thread of its own, with one thing open in it, for callers that block.

    with LoopThread(engine, name="rollout-engine") as thread:     # enters the engine, in the thread
        group = thread.call(lambda: submission.result())          # blocks, and control-C ends it
                                                                  # leaves the engine, and joins the thread

A call that is interrupted is cancelled in the loop, and waited for, so that nothing of it runs on unseen. The thread is
a daemon: a caller that never leaves keeps no process from ending. A process that is forked from this one does not have
the thread: there it is closed, and leaving it is nothing.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager
from typing import Any, Self, TypeVar

from rollout.errors import EngineClosed, RolloutError

T = TypeVar("T")


class LoopThread:
    """Runs an event loop in a thread, and what is opened in it."""

    def __init__(self, opened: AbstractAsyncContextManager[Any], *, name: str, grace_s: float = 10.0) -> None:
        """An interrupted call, or an interrupted end, is waited for `grace_s` at most."""
        self._opened = opened
        self._grace_s = grace_s
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loop = asyncio.new_event_loop()
        self._ready: Future[None] = Future()
        self._over: Future[None] = Future()
        self._stopped = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._lock = threading.RLock()  # a stream may be collected, and tell, anywhere
        self._calls: set[Future[Any]] = set()
        self._process = os.getpid()

    def __repr__(self) -> str:
        state = "over" if self._over.done() else "open" if self._ready.done() else "opening"
        return f"<LoopThread {self._thread.name}, {state}, {len(self._calls)} calls>"

    @property
    def open(self) -> bool:
        """Whether it takes calls."""
        return self._ready.done() and not self._over.done() and not self._forked

    @property
    def _forked(self) -> bool:
        """Whether this process was forked from the one that has the thread."""
        return os.getpid() != self._process

    def __enter__(self) -> Self:
        """Raises what opening raised."""
        try:
            self._thread.start()
            self._ready.result()
        except BaseException:  # it could not be opened, or control-C while it was
            self._abort()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Raises what closing raised, or what ended the loop."""
        if self._forked:
            return
        try:
            self.tell(self._stopped.set)
            self._over.result()
            self._thread.join()
        except BaseException:
            self._abort()
            raise

    def tell(self, function: Callable[[], object]) -> None:
        """Has a function called in the loop, some time, if that still runs. From any thread."""
        if self._forked:  # whoever held the lock is not here to give it back
            return
        with self._lock:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(function)

    def call(self, function: Callable[[], Awaitable[T]], *, unclaimed: Callable[[T], object] | None = None) -> T:
        """Gives or raises what the function does, in the loop. Raises EngineClosed where that has ended.

        Whatever interrupts the caller is raised once the call has been cancelled. A call that had its result all the
        same gives it to `unclaimed`.
        """
        if self._forked:
            raise EngineClosed(
                "this process was forked from the engine's, and has no engine: ask the process that has it, or start "
                "this one by `spawn` and make another"
            )
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "this call blocks, and would wait for its own thread: await the Engine's own method here"
            )
        future: Future[T] = Future()
        task: list[asyncio.Task[None]] = []
        try:
            with self._lock:
                if not self.open:
                    raise EngineClosed("the engine is closed")
                self._calls.add(future)
            self.tell(lambda: task.append(self._begin(function, future)))
            wait([future])
        except EngineClosed:
            raise
        except BaseException:
            self.tell(lambda: task[0].cancel() if task else self._end_call(future, None))
            wait([future], timeout=self._grace_s)
            if unclaimed is not None and future.done() and future.exception() is None:
                unclaimed(future.result())
            raise
        return future.result()

    def _begin(self, function: Callable[[], Awaitable[T]], future: Future[T]) -> asyncio.Task[None]:
        task = self._loop.create_task(self._make(function, future))
        task.add_done_callback(lambda _: self._end_call(future, None))  # one that was cancelled before it began
        return task

    async def _make(self, function: Callable[[], Awaitable[T]], future: Future[T]) -> None:
        try:
            result = await function()
        except asyncio.CancelledError:
            self._end_call(future, None)
        except BaseException as error:  # the caller's, whatever it is: it must not end the loop
            self._end_call(future, error)
        else:
            with self._lock:
                self._calls.discard(future)
                if not future.done():
                    future.set_result(result)

    def _end_call(self, future: Future[Any], error: BaseException | None) -> None:
        """With an error; None where it was cancelled."""
        with self._lock:
            self._calls.discard(future)
            if not future.done():
                future.set_exception(error or EngineClosed("the engine was closed during this call"))

    async def _hold_open(self) -> None:
        async with self._opened:
            self._ready.set_result(None)
            await self._stopped.wait()

    def _abort(self) -> None:
        """Ends it now; does not wait for what does not end."""
        self.tell(lambda: self._main.cancel() if self._main is not None else None)
        wait([self._over], timeout=self._grace_s)
        if self._over.done():
            self._thread.join(self._grace_s)

    def _run(self) -> None:
        """The thread."""
        error: BaseException | None = None
        try:
            self._main = self._loop.create_task(self._hold_open())
            self._loop.run_until_complete(self._main)
        except BaseException as raised:  # SystemExit in a callback of the caller's, for one
            error = raised
        try:
            self._end_tasks()
        finally:
            with self._lock:
                self._loop.close()  # does not wait for the threads of its executor, as asyncio.run() would
            self._say_over(error)

    def _end_tasks(self) -> None:
        """Cancels what is left, the one that was opened first of all, if something else ended the loop."""
        for _ in range(2):
            if left := asyncio.all_tasks(self._loop):
                for task in left:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(left, timeout=self._grace_s))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _say_over(self, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Exception):
            raised = RolloutError(f"the engine's thread was ended by {type(error).__name__}")
            raised.__cause__ = error
            error = raised
        if not self._ready.done():
            self._ready.set_exception(error or RolloutError("the engine's thread ended before it was open"))
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)
        for future in list(self._calls):
            self._end_call(future, error)
