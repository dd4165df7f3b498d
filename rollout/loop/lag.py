"""How late the event loop is: what blocks it delays every rollout, and is somebody's mistake."""

from __future__ import annotations

import time
from collections import deque

import anyio

from rollout.log import get_logger
from rollout.moved import forward_names

#: Seconds between two looks at the clock.
LOOK_EVERY_S = 0.05

#: Looks that the percentile is over: the last 100 s.
KEPT = 2_000

#: A delay that is said, once: no request should wait so long for another rollout's work.
SAID_S = 0.5

_log = get_logger(__name__)


class Lag:
    """The loop's delays, in seconds."""

    def __init__(self) -> None:
        self.max_s = 0.0
        self._last: deque[float] = deque(maxlen=KEPT)
        self._p99_s: float | None = None
        """Known until the next look: a pool's processes say it with every rollout that ends."""

    def __repr__(self) -> str:
        return f"<Lag p99 {self.p99_s * 1e3:.1f} ms, max {self.max_s * 1e3:.1f} ms>"

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the last looks; 0 before the first."""
        if self._p99_s is None:
            ordered = sorted(self._last)
            self._p99_s = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] if ordered else 0.0
        return self._p99_s

    def add(self, late_s: float) -> None:
        """Takes one delay."""
        if late_s > SAID_S >= self.max_s:
            hint = "an environment (async, or blocks = False) or a callback blocks, or other processes take every core"
            _log.warning("loop_blocked", late_s=round(late_s, 2), hint=hint)
        self.max_s = max(self.max_s, late_s)
        self._last.append(late_s)
        self._p99_s = None

    async def watch(self) -> None:
        """Looks at the clock again and again. Never returns."""
        while True:
            asked = time.perf_counter()
            await anyio.sleep(LOOK_EVERY_S)
            self.add(max(0.0, time.perf_counter() - asked - LOOK_EVERY_S))


forward_names("rollout.loop.lag")
