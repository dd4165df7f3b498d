"""A logger in a thread of its own: it never holds up the event loop, and what it breaks is its own.

What it is to be told waits in a bounded queue. Where that is full, because the logger is slow or hangs, what comes is
dropped and counted; that, and the first thing that it raises, is said once. At the end it has a few seconds for what
waits; a thread that hangs then is left behind, as a daemon.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

import anyio
import anyio.to_thread

from rollout.door import error_text, type_name
from rollout.log import get_logger
from rollout.observe.loggers import Logger
from rollout.observe.secrets import without_secrets
from rollout.observe.stats import Stats
from rollout.records import Group

#: What waits for one logger at most: groups hold their rollouts.
MOST_WAITING = 256

#: Seconds between two looks at where the engine stands.
LOG_EVERY_S = 10.0

#: Seconds that a logger has, at the end, for what waits and for its own closing.
CLOSE_S = 30.0

_log = get_logger(__name__)


class LogThread:
    """One logger, and what waits for it."""

    def __init__(self, logger: Logger, *, most_waiting: int = MOST_WAITING) -> None:
        self.name = type_name(logger)
        self.dropped = 0
        """What it was not told, since too much waited."""
        self.failed = 0
        """What it raised at."""
        self._logger = logger
        self._most = most_waiting
        self._waiting: deque[Callable[[Logger], None]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"log to {self.name}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<LogThread {self.name} {len(self._waiting)} waiting, {self.dropped} dropped, {self.failed} failed>"

    def tell(self, what: Callable[[Logger], None]) -> None:
        """Has the logger called; waits for nothing."""
        with self._changed:
            full = len(self._waiting) >= self._most
            if not full:
                self._waiting.append(what)
                self._changed.notify()
        if full:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("logger_is_behind", logger=self.name, waiting=self._most, so="what comes is dropped")

    def end(self) -> None:
        """Nothing more comes: it is closed once it was told what waits."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self, limit_s: float) -> None:
        """Waits for its end, within a limit, and says what became of it. For a thread that may wait."""
        self.end()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            _log.warning("logger_hangs", logger=self.name, waiting=len(self._waiting), waited_s=round(limit_s, 1))
        if self.dropped or self.failed:
            _log.warning("logger_missed", logger=self.name, dropped=self.dropped, failed=self.failed)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                what = self._waiting.popleft() if self._waiting else None
            self._call(what or (lambda logger: logger.close()))
            if what is None:
                return

    def _call(self, what: Callable[[Logger], None]) -> None:
        try:
            what(self._logger)
        except BaseException as error:  # the package's, or the user's; SystemExit ends no process from here either
            self.failed += 1
            if self.failed == 1:
                said = without_secrets(f"{type_name(error)}: {error_text(error)}")
                whole = "".join(traceback.format_exception(error))
                shown = error if without_secrets(whole) == whole else None
                _log.warning("logger_raised", logger=self.name, error=said, exc_info=shown)


class LogThreads:
    """The loggers of an engine."""

    def __init__(self) -> None:
        self.groups = 0
        """Those that have come, also to whoever went before: the step."""
        self._threads: list[LogThread] = []

    def __repr__(self) -> str:
        return f"<LogThreads {self._threads}>"

    def __len__(self) -> int:
        return len(self._threads)

    def add(self, logger: Logger) -> None:
        """From now on it is told."""
        self._threads.append(LogThread(logger))

    def on_group(self, group: Group, evaluation: bool) -> None:
        """A group has come."""
        self.groups += 1
        step = self.groups
        for thread in self._threads:
            thread.tell(lambda logger: logger.on_group(group, step, evaluation))

    def on_stats(self, stats: Stats) -> None:
        """Where the engine stands."""
        step = self.groups
        for thread in self._threads:
            thread.tell(lambda logger: logger.on_stats(stats, step))

    async def keep_telling(self, stats: Callable[[], Stats]) -> None:
        """Tells them where the engine stands, now and then. Never returns."""
        while True:
            await anyio.sleep(LOG_EVERY_S)
            if self._threads:
                self.on_stats(stats())

    async def aclose(self) -> None:
        """Lets all end, at the same time; also where it is cancelled, since they are bounded."""
        threads, self._threads = self._threads, []
        deadline = time.monotonic() + CLOSE_S
        with anyio.CancelScope(shield=True):
            for thread in threads:
                thread.end()
            for thread in threads:
                await anyio.to_thread.run_sync(thread.close, max(0.1, deadline - time.monotonic()))
