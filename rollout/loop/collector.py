"""Python's garbage collector, where it would stop the event loop for long: full collections are made seldom."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping

#: Seconds between two full garbage collections, and a threshold that is never reached.
FULL_EVERY_S = 60.0
_NEVER = 1_000_000_000

#: Some Pythons freeze a few objects of their own before anything runs.
_FROZEN_AT_FIRST = gc.get_freeze_count()


class _Collector:
    """Python's garbage collector, spared: there is one in a process, so those who ask for it share this."""

    def __init__(self) -> None:
        self._asked = 0
        self._before = gc.get_threshold()
        self._full_every_s = 0.0
        self._last_full = 0.0
        self._froze = False
        """Whether it was us: what a program has frozen itself, before it forks, say, is not ours to thaw."""

    def spare(self, full_every_s: float) -> None:
        self._asked += 1
        if self._asked > 1:
            return
        self._before, self._full_every_s = gc.get_threshold(), full_every_s
        gc.collect()
        self._froze = gc.get_freeze_count() <= _FROZEN_AT_FIRST
        if self._froze:
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
        if self._froze:
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
def infrequent_full_gc(*, full_every_s: float = FULL_EVERY_S) -> Iterator[None]:
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
