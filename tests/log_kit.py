"""What the library logs while a block runs, for tests: an event a dict."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from rollout.log import event_of, handled_by


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        event, fields = event_of(record)
        if record.exc_info:
            fields["exc_info"] = record.exc_info[1]
        self.events.append({"event": event, "log_level": record.levelname.lower(), **fields})


@contextlib.contextmanager
def capture_logs() -> Iterator[list[dict[str, Any]]]:
    """Every event of every level, as its name, its level and its fields; an exception is `exc_info`."""
    handler = _Kept()
    with handled_by(handler, logging.DEBUG):
        yield handler.events
