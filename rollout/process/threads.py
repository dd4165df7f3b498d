"""Threads for what may block: environments' plain functions, group rewards, iterators of tasks.

Python cannot end a thread. A call that takes longer than it may is therefore abandoned: its caller goes on, its slot is
given back at once, and another thread takes its place. The threads are daemons, and nobody joins them, so that a call
that hangs for ever does not keep the process from ending. (Those of `anyio.to_thread` and of asyncio's executor are
joined at the end.) What hangs is counted, and past a set number of such calls the process is told to give up: each
holds a thread and whatever the call has taken.

Whatever the function raises is raised where the call is awaited, as an ordinary exception: `sys.exit()` in a thread is
a fault of that call, and not the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, Generic, TypeVar, cast

from rollout.door import type_name
from rollout.errors import RolloutError
from rollout.process.forks import stay_in
from rollout.process.imports import frames_of

_library: contextvars.ContextVar[str | None] | None
try:
    from sniffio import current_async_library_cvar as _library
except ImportError:  # anyio does without it, too
    _library = None

T = TypeVar("T")

#: Seconds after which a thread that has nothing to do ends.
IDLE_S = 10.0

#: Calls that may hang at once, where nothing else is said.
MOST_ABANDONED = 256


class ContainedError(Exception):
    """Stands for what would end more than the call if it were raised as it is. `error` is what was raised.

    SystemExit, KeyboardInterrupt and GeneratorExit would end the event loop, CancelledError would be taken for a
    cancellation of the caller, and StopIteration cannot be raised out of a coroutine at all.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type_name(error)} was raised")
        self.error = error


class ThreadsExhausted(RolloutError):
    """So many calls hang that no more are begun, or the system gives no more threads."""


def contained(error: BaseException) -> Exception:
    """The error itself where it is an ordinary one, else a `ContainedError` in its place."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    stand_in = ContainedError(error)
    stand_in.__cause__ = error
    return stand_in


class Call(Generic[T]):
    """One call of a function in a thread, which may outlive whoever waits for it."""

    __slots__ = (
        "_context",
        "_error",
        "_function",
        "_threads",
        "_value",
        "_waiter",
        "abandoned",
        "begun",
        "done",
        "loop",
        "taken_back",
        "thread_id",
    )

    def __init__(self, threads: Threads, function: Callable[[], T]) -> None:
        self._threads = threads
        self._function: Callable[[], T] | None = function
        self.loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.begun = False
        """Whether a thread has it. Where it was cancelled before that, the function is never called."""
        self.abandoned = False
        """Whether its caller went on without it, while it ran."""
        self.done = False
        """Whether the function has returned or raised. Set by the thread."""

        self.taken_back = False
        """Whether its thread has been taken back."""
        self.thread_id: int | None = None
        """Of the thread that makes it, while it does."""

    def __repr__(self) -> str:
        state = "done" if self.done else "abandoned" if self.abandoned else "running" if self.begun else "not begun"
        return f"<Call {state}>"

    async def result(self) -> T:
        """Makes the call, once; gives or raises what the function did. Whoever cancels this abandons the call."""
        await self._threads.start(self)
        try:
            return await self._outcome()
        except BaseException:
            self._threads.abandon(self)
            raise

    async def returned(self) -> T:
        """Waits for a call that was begun, however long it hangs; gives or raises what the function did after all."""
        return await self._outcome()

    async def _outcome(self) -> T:
        if not self.done:
            self._waiter = self.loop.create_future()
            await self._waiter
        if self._error is None:
            return cast(T, self._value)
        error, self._error = self._error, None
        try:
            raise contained(error)
        finally:
            del error  # its traceback holds this frame

    def make(self) -> None:
        """Calls the function; in the thread."""
        process = os.getpid()
        try:
            self.thread_id = threading.get_ident()
            if _library is not None:  # else anyio.run() in the thread would see our loop and refuse
                self._context.run(_library.set, None)
            function, self._function = self._function, None
            if function is None:
                raise RuntimeError("the call was cut off from outside, by an exception set in its thread")
            self._value = self._context.run(function)
        except BaseException as error:
            self._error = error
        stay_in(process, self._error)
        self.done = True

    def stack(self) -> list[FrameType]:
        """Where the thread stands, the oldest frame first; nothing once it has returned."""
        return frames_of(None if self.done or self.thread_id is None else sys._current_frames().get(self.thread_id))

    def wake(self) -> None:
        """Tells whoever waits; on the loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Threads:
    """Makes calls in threads of its own, `most` at once. Abandoned ones do not count towards them."""

    def __init__(
        self,
        most: int,
        *,
        most_abandoned: int = MOST_ABANDONED,
        on_exhausted: Callable[[ThreadsExhausted], None] = lambda error: None,
    ) -> None:
        """`on_exhausted` is told, once, when more than `most_abandoned` calls hang."""
        self.most = most
        self.most_abandoned = most_abandoned
        self._on_exhausted = on_exhausted
        self._exhausted = False
        self._busy = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._idle: deque[_Thread] = deque()
        self._hanging: set[Call[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Threads {self._busy} of {self.most} busy, {len(self._line)} waiting, {self.abandoned} abandoned>"

    @property
    def abandoned(self) -> int:
        """Abandoned calls that still hang, also after the event loop has ended."""
        return sum(not call.done for call in self._hanging)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Calls a function in a thread. Raises what it raised: see `ContainedError`."""
        return await self.call(function, *args).result()

    def call(self, function: Callable[..., T], *args: Any) -> Call[T]:
        """A call that is made when its `result` is awaited."""
        return Call(self, (lambda: function(*args)) if args else function)

    def close(self) -> None:
        """Idle threads end now, others once their call returns. Nothing is waited for."""
        self._closed = True
        while self._idle:
            self._idle.pop().stop()

    async def start(self, call: Call[Any]) -> None:
        """Has a thread make the call, once there is a slot. Raises ThreadsExhausted."""
        await self._slot()
        try:
            thread = self._idle.pop() if self._idle else _Thread(self)
        except RuntimeError as error:  # "can't start new thread"
            self._give_back()
            raise ThreadsExhausted(f"the system gives no more threads: {error}; lower the concurrency") from error
        call.begun = True
        thread.make(call)

    def abandon(self, call: Call[Any]) -> None:
        """Goes on without a call, if it has not ended. Its slot is free."""
        if call.done or call.abandoned:
            return
        call.abandoned = True
        self._hanging.add(call)
        self._give_back()
        hanging = self.abandoned
        if hanging > self.most_abandoned and not self._exhausted:
            self._exhausted = True
            self._on_exhausted(
                ThreadsExhausted(
                    f"{hanging} calls of environments hang in threads that cannot be ended, {self.most_abandoned} are "
                    "allowed (max_abandoned_threads): give what they wait for a timeout of its own"
                )
            )

    def ended(self, thread: _Thread, call: Call[Any]) -> None:
        """Takes a thread back whose call has returned."""
        if call.taken_back:
            return
        call.taken_back = True
        if call.abandoned:
            self._hanging.discard(call)
        else:
            self._give_back()
        call.wake()
        if self._closed:
            thread.stop()
            return
        thread.idle_since = time.monotonic()
        self._idle.append(thread)
        if thread.idle_since - self._idle[0].idle_since > IDLE_S:
            self._idle.popleft().stop()

    async def _slot(self) -> None:
        if self._busy < self.most:
            self._busy += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():
                self._give_back()  # it was cancelled when its turn had come
            else:
                with contextlib.suppress(ValueError):
                    self._line.remove(place)
            raise

    def _give_back(self) -> None:
        """A slot is free: it goes to whoever waits longest."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._busy -= 1


class _Thread:
    """One thread, and the calls that it makes one after another.

    Libraries set exceptions in threads to end what takes too long; one that comes too late hits the loop below, at any
    place. So each step of it may be done again, and what it is to do is never only in the hands of a function.
    """

    __slots__ = ("_bell", "_call", "_owner", "_stopped", "idle_since")

    def __init__(self, owner: Threads) -> None:
        self._owner = owner
        self._call: Call[Any] | None = None
        self._stopped = False
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.idle_since = 0.0
        threading.Thread(target=self._make_calls, name="rollout-call", daemon=True).start()

    def make(self, call: Call[Any]) -> None:
        """Has an idle thread make a call."""
        self._call = call
        self._bell.put(None)

    def stop(self) -> None:
        """Ends an idle thread."""
        self._stopped = True
        self._bell.put(None)

    def _make_calls(self) -> None:
        made: Call[Any] | None = None
        while not self._stopped:
            try:
                if made is not None:
                    if self._call is made:
                        self._call = None
                    if not self._tell(made):
                        return
                    made = None
                call = self._call
                if call is None:
                    self._bell.get()
                    continue
                if not call.done:
                    call.make()
                made = call
            except BaseException:
                continue

    def _tell(self, made: Call[Any]) -> bool:
        """Tells the loop; twice is as good as once. False where it is closed: nobody waits any more."""
        try:
            made.loop.call_soon_threadsafe(self._owner.ended, self, made)
        except RuntimeError:
            return False
        return True
