"""How late the event loop is: what blocks it delays every rollout, and is somebody's mistake."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import deque
from collections.abc import Iterator, Mapping

import anyio
import structlog

#: Seconds between two looks at the clock.
LOOK_EVERY_S = 0.05

#: Looks that the percentile is over: the last 100 s.
KEPT = 2_000

#: Seconds between two full garbage collections, and a threshold that is never reached.
FULL_EVERY_S = 60.0
_NEVER = 1_000_000_000

#: A delay that is said, once: no request should wait so long for another rollout's work.
SAID_S = 0.5

_log = structlog.get_logger(__name__)


class _Collector:
    """Python's garbage collector, spared: there is one in a process, so those who ask for it share this."""

    def __init__(self) -> None:
        self._asked = 0
        self._before = gc.get_threshold()
        self._full_every_s = 0.0
        self._last_full = 0.0

    def spare(self, full_every_s: float) -> None:
        self._asked += 1
        if self._asked > 1:
            return
        self._before, self._full_every_s = gc.get_threshold(), full_every_s
        gc.collect()
        gc.freeze()
        self._last_full = time.monotonic()
        self._set()
        gc.callbacks.append(self._collected)

    def restore(self) -> None:
        self._asked -= 1
        if self._asked:
            return
        gc.callbacks.remove(self._collected)
        gc.set_threshold(*self._before)
        gc.unfreeze()

    def _set(self) -> None:
        young, middle, old = self._before
        due = time.monotonic() - self._last_full >= self._full_every_s
        gc.set_threshold(young, middle, old if due else _NEVER)

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "stop" and info["generation"] > 0:
            if info["generation"] == 2:
                self._last_full = time.monotonic()
            self._set()


_collector = _Collector()


@contextlib.contextmanager
def spared_collector(*, full_every_s: float = FULL_EVERY_S) -> Iterator[None]:
    """Spares the event loop Python's full garbage collections, which stop it for as long as all objects take to visit.

    What is there already is left out: libraries, tokenizers, the caller's own objects. What comes is looked through
    whole once in `full_every_s`: 0.2 s where 4,096 rollouts are in flight. Young objects are collected as ever. For a
    process whose work is to play rollouts: the command uses it, `Engine` does not.
    """
    _collector.spare(full_every_s)
    try:
        yield
    finally:
        _collector.restore()


class Lag:
    """The loop's delays, in seconds."""

    def __init__(self) -> None:
        self.max_s = 0.0
        self._last: deque[float] = deque(maxlen=KEPT)
        self._p99_s: float | None = None
        """Known until the next look: a crew's processes say it with every rollout that ends."""

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
