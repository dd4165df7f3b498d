"""Logs as events: warnings to the terminal, everything to events.log, nothing to standard output."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

Event = MutableMapping[str, Any]


class EventLog:
    """Where events go. The file is written by a thread of its own, so that no log line waits for a disk."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        """`show` prints a line for people; None prints to standard error."""
        self.show = show or (lambda line: print(line, file=sys.stderr))
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._shown: set[tuple[object, object]] = set()

    def __enter__(self) -> Self:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                self._for_people,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=lambda *args: self,
            cache_logger_on_first_use=False,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join()
        structlog.reset_defaults()

    def open(self, path: Path) -> None:
        """Starts writing to a file; what was logged before is written too."""
        file = path.open("ab")

        def drain() -> None:
            with file:
                while (line := self._lines.get()) is not None:
                    file.write(line)
                    file.flush()

        self._thread = threading.Thread(target=drain, name="events.log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        """Takes a rendered event: what structlog calls for every level."""
        self._lines.put(line.encode("utf-8", "replace") + b"\n")

    debug = info = warning = warn = error = critical = exception = fatal = log = msg

    def _for_people(self, logger: object, method: str, event: Event) -> Event:
        """Shows warnings and errors, each kind and reason once: a thousand rollouts have the same trouble."""
        key = (event.get("event"), event.get("reason") or event.get("cause") or event.get("error"))
        if method in ("warning", "error", "critical", "exception") and key not in self._shown:
            self._shown.add(key)
            hidden = ("event", "level", "timestamp", "exc_info", "session")
            details = " ".join(f"{name}={value}" for name, value in event.items() if name not in hidden)
            self.show(f"{method}: {event.get('event')} {details}".rstrip())
        return event
