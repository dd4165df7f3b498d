"""A deadline for an answer, in which only the time counts that we could have heard it.

An environment that blocks the event loop for ten seconds would otherwise make a well server silent for ten seconds:
the timer is due before the answer is read. So the loop's own steps are watched, and the deadline moves on by every
stretch in which the loop stood still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

#: Seconds between two looks at how late the loop is.
TICK_S = 0.1


@contextmanager
def answered_within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError where the body is not done in so many seconds of a loop that runs."""
    loop = asyncio.get_running_loop()
    tick_s = min(TICK_S, seconds / 4)
    with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
        ticks = _Ticks(loop, scope, tick_s)
        try:
            yield
        finally:
            ticks.stop()
    if scope.cancelled_caught:
        raise TimeoutError


class _Ticks:
    def __init__(self, loop: asyncio.AbstractEventLoop, scope: anyio.CancelScope, tick_s: float) -> None:
        self._loop, self._scope, self._tick_s = loop, scope, tick_s
        self._due = loop.time() + tick_s
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        if now - self._due > self._tick_s:
            self._scope.deadline += now - self._due
        self._due = now + self._tick_s
        self._timer = self._loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        self._timer.cancel()
