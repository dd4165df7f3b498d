"""User code that a whole run waits for, watched from a thread: an event loop that is blocked can say nothing itself.

    with Watch("Pool.setup to close", limit_s=60.0):
        await manager.__aexit__(None, None, None)

After ten seconds it is said what is waited for, and again after ever longer times. What awaits ends by its deadline.
What blocks the loop instead, such as `time.sleep` in a coroutine, is found out by the loop's silence once the limit is
over. In a process that is ours (the command's) an exception is raised where it stands then; what does not end by that,
such as a call into C, is left behind with the process. In a program of somebody else's that is only said.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import time
from asyncio import events
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from rollout.log import get_logger
from rollout.process.imports import frames_of, place_in, stack_of

#: Seconds until it is said that something is waited for; then as long again, and so on, up to the most.
FIRST_S, MOST_S = 10.0, 600.0

#: A loop that has not answered for so many seconds is blocked.
ANSWER_S = 1.0

#: How often what blocks is interrupted, and how long it then has.
TRIES, TRY_S = 3, 2.0

_log = get_logger(__name__)


class LoopBlocked(TimeoutError):
    """Raised within user code that blocked the event loop for too long, where that is in our power."""


class Interrupted(LoopBlocked):
    """The same, because the run was told to stop."""


class Breaker(Protocol):
    """What can be done about a main thread that is blocked."""

    def interrupt(self, error: Exception) -> None:
        """Raises an error in the main thread, wherever that stands in Python code. From another thread."""
        ...

    def abandon(self, line: str) -> None:
        """Ends the process, with a line that says why."""
        ...


_breaker: Breaker | None = None


@contextlib.contextmanager
def broken_by(breaker: Breaker) -> Iterator[None]:
    """For a process that is ours: what blocks its main thread for too long is broken off."""
    global _breaker
    before, _breaker = _breaker, breaker
    try:
        yield
    finally:
        _breaker = before


class Watch:
    """Watches one piece of user code, on the loop that enters it."""

    def __init__(self, what: str, *, limit_s: float | None = None, where: Callable[[], str] = lambda: "") -> None:
        """`where` tells, from another thread, where the code stands that does not block."""
        self._what = what
        self._limit_s = math.inf if limit_s is None else limit_s
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._over = threading.Event()
        self._tries = 0

    def __repr__(self) -> str:
        return f"<Watch {self._what}>"

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, name="rollout-watch", daemon=True).start()

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        began, say_s, break_s = time.monotonic(), FIRST_S, self._limit_s
        while not self._over.wait(_at_most(min(say_s, break_s) - (time.monotonic() - began))):
            waited_s = time.monotonic() - began
            if waited_s >= say_s:
                _log.warning(f"waiting for {self._what}, {say_s:.0f} s{self._place()}")
                say_s += min(say_s, MOST_S)
            if waited_s >= break_s:
                break_s = waited_s + TRY_S
                if not answers(self._loop) and not self._over.is_set():
                    self._break_off()

    def _place(self) -> str:
        try:
            return self._where()
        except Exception:  # frames go on while they are looked at, and may be a user's own
            return ""

    def _break_off(self) -> None:
        self._tries += 1
        blocks = f"{self._what} blocks the event loop{place_on_loop(self._thread_id)}"
        if _breaker is None or self._thread_id != threading.main_thread().ident:
            if self._tries == 1:
                _log.warning(f"{blocks}, and nothing here can end that: await in it, or use a thread")
        elif self._tries <= TRIES:
            _breaker.interrupt(LoopBlocked(f"it blocked the event loop for {self._limit_s:g} s"))
        else:
            _breaker.abandon(f"{blocks}, and does not end when it is interrupted")


def answers(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop does something else than wait for one call. From another thread; takes a moment where not."""
    answered = threading.Event()
    try:
        loop.call_soon_threadsafe(answered.set)
    except RuntimeError:  # it is closed
        return True
    return answered.wait(ANSWER_S)


def place_on_loop(thread: int | FrameType) -> str:
    """Where user code stands that the event loop of a thread has called; "" where none is under way."""
    frames = frames_of(sys._current_frames().get(thread) if isinstance(thread, int) else thread)
    called = next(
        (at for at, frame in reversed([*enumerate(frames)]) if frame.f_code.co_filename == events.__file__), 0
    )
    return place_in(stack_of(frames[called:]))


def _at_most(seconds: float) -> float:
    """What a thread may wait at once: no more than the system's clocks take."""
    return max(0.0, min(seconds, threading.TIMEOUT_MAX))
