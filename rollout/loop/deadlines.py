"""A clock that can be stopped, and deadlines by it: time in which we paused the servers ourselves is nobody's.

clock = Clock()
with clock.fail_after(600):   # raises TimeoutError
    ...
clock.stop()                  # every deadline stands still
clock.go()                    # and has as long left as it had
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import anyio


class Deadline:
    """A cancel scope that a clock ends. As a context manager; it may be cancelled before, by whoever holds it."""

    __slots__ = ("_clock", "_left_s", "_raises", "expired", "scope")

    def __init__(self, clock: Clock, seconds: float | None, raises: bool) -> None:
        self._clock = clock
        self._left_s = math.inf if seconds is None else seconds
        """While the clock is stopped, and before it is entered."""
        self._raises = raises
        self.scope = clock.make_scope()
        self.expired = False
        """Whether the time was up."""

    def __enter__(self) -> Self:
        self._clock.add(self)
        self.scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._clock.discard(self)
        caught = self.scope.__exit__(kind, error, trace)
        self.expired = self.scope.cancelled_caught and anyio.current_time() >= self.scope.deadline
        if self.expired and self._raises:
            raise TimeoutError
        return bool(caught)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Time does not count meanwhile, whatever becomes of the clock."""
        if not self._clock.stopped:
            self.halt()
        self._clock.discard(self)
        try:
            yield
        finally:
            self._clock.add(self)

    def run(self) -> None:
        """Time counts from now on."""
        self.scope.deadline = anyio.current_time() + self._left_s

    def halt(self) -> None:
        """Time does not count, but for what is over already."""
        left_s = self.scope.deadline - anyio.current_time()
        if left_s > 0:
            self._left_s, self.scope.deadline = left_s, math.inf


class Clock:
    """Time that stands still between `stop` and `go`."""

    def __init__(self) -> None:
        self._deadlines: set[Deadline] = set()
        self._scope_of: type[anyio.CancelScope] | None = None
        self._stopped_at: float | None = None
        self._stood_s = 0.0

    def __repr__(self) -> str:
        state = "runs" if self._stopped_at is None else "is stopped"
        return f"<Clock {state}, {len(self._deadlines)} deadlines>"

    @property
    def stopped(self) -> bool:
        return self._stopped_at is not None

    def now(self) -> float:
        """Seconds from some moment on, without those in which it was stopped."""
        return (anyio.current_time() if self._stopped_at is None else self._stopped_at) - self._stood_s

    def stop(self) -> None:
        """Every deadline stands still. May be called twice."""
        if self._stopped_at is None:
            self._stopped_at = anyio.current_time()
            for deadline in self._deadlines:
                deadline.halt()

    def go(self) -> None:
        """Goes on after `stop`. May be called twice."""
        if self._stopped_at is not None:
            self._stood_s += anyio.current_time() - self._stopped_at
            self._stopped_at = None
            for deadline in self._deadlines:
                deadline.run()

    def fail_after(self, seconds: float | None) -> Deadline:
        """Raises TimeoutError when so many seconds have passed; None never."""
        return Deadline(self, seconds, raises=True)

    def move_on_after(self, seconds: float | None) -> Deadline:
        """Ends what is inside when so many seconds have passed; None never. `expired` says whether it did."""
        return Deadline(self, seconds, raises=False)

    async def sleep(self, seconds: float) -> None:
        """Waits until so many seconds have passed."""
        with self.move_on_after(seconds):
            await anyio.sleep_forever()

    def make_scope(self) -> anyio.CancelScope:
        """A cancel scope of the event loop that runs. anyio looks up which that is each time, which takes 8 µs."""
        if self._scope_of is None:
            self._scope_of = type(anyio.CancelScope())
        return self._scope_of()

    def add(self, deadline: Deadline) -> None:
        """From when it is entered."""
        self._deadlines.add(deadline)
        if self._stopped_at is None:
            deadline.run()

    def discard(self, deadline: Deadline) -> None:
        """From when it is left."""
        self._deadlines.discard(deadline)
