"""Events of the library's log, by the standard `logging`: a name, and fields in place of a sentence.

    _log = get_logger(__name__)
    _log.warning("env_close_cut", rollout="a-0", limit_s=5.0)      # env_close_cut rollout=a-0 limit_s=5.0

A record's message is its name and its fields; the name alone is `record.event`, the fields `record.fields`, so that a
handler may count, filter or write them as JSON. A library prints nothing and configures nothing: what is logged goes
where the program sends it, and nowhere else. `LOGGERS` are all that there is to attach a handler to.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

#: The loggers above all of ours, one for each package.
LOGGERS = ("rollout", "transports", "envs")

#: What `logging` takes for the exception of an event: itself, what `sys.exc_info` says, or True for the current one.
ExcInfo = BaseException | tuple[type[BaseException], BaseException, TracebackType | None] | bool | None

for _name in LOGGERS:
    # Without a handler `logging` would print warnings to standard error.
    logging.getLogger(_name).addHandler(logging.NullHandler())


class EventLogger:
    """Logs events. One that nobody wants costs the question for its level."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def __repr__(self) -> str:
        return f"<EventLogger {self._logger.name}>"

    def debug(self, event: str, /, *, exc_info: ExcInfo = None, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._say(logging.DEBUG, event, exc_info, fields)

    def info(self, event: str, /, *, exc_info: ExcInfo = None, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.INFO):
            self._say(logging.INFO, event, exc_info, fields)

    def warning(self, event: str, /, *, exc_info: ExcInfo = None, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.WARNING):
            self._say(logging.WARNING, event, exc_info, fields)

    def error(self, event: str, /, *, exc_info: ExcInfo = None, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.ERROR):
            self._say(logging.ERROR, event, exc_info, fields)

    def critical(self, event: str, /, *, exc_info: ExcInfo = None, **fields: Any) -> None:
        if self._logger.isEnabledFor(logging.CRITICAL):
            self._say(logging.CRITICAL, event, exc_info, fields)

    def _say(self, level: int, event: str, exc_info: ExcInfo, fields: dict[str, Any]) -> None:
        extra = {"event": event, "fields": fields}
        self._logger.log(level, message(event, fields), exc_info=exc_info, extra=extra, stacklevel=3)


def get_logger(name: str) -> EventLogger:
    """The logger of a module."""
    return EventLogger(logging.getLogger(name))


def message(event: str, fields: Mapping[str, Any]) -> str:
    """An event for people. A traceback that came as text, from another process, stands below."""
    text = " ".join([event, *(f"{name}={shown(value)}" for name, value in fields.items() if name != "exception")])
    return f"{text}\n{shown(fields['exception'])}" if "exception" in fields else text


def shown(value: object) -> str:
    """A field's text. Any object may be logged, and each may raise when it is looked at."""
    try:
        return str(value)
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"


def event_of(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """A record's event and fields; of one that others logged, its message."""
    fields = getattr(record, "fields", None)
    if isinstance(fields, dict):
        return str(getattr(record, "event", "")), dict(fields)
    return record.getMessage(), {}


class UnlockedHandler(logging.Handler):
    """A handler without turns: what shows an event may wait for a terminal, and nobody else is to wait for it."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Hands a record on. Python 3.13 demands a lock in its own `handle`, so that having none is not enough."""
        passed: Any = self.filter(record)  # from Python 3.12 on a filter may give another record
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)


class _Taken:
    """What is taken beside our own events."""

    structlog = False
    """Whether environments' events of structlog are, from other processes, too."""


def takes_structlog() -> bool:
    """Whether what environments log by structlog goes where our events go: with the command line, it does."""
    return _Taken.structlog


@contextlib.contextmanager
def handled_by(handler: logging.Handler, level: int, *, structlog: bool = False) -> Iterator[None]:
    """Gives what is logged to a handler, and to no other, until the block is left.

    `structlog` says that whoever attaches it takes what environments log by structlog, too.
    """
    taken, _Taken.structlog = _Taken.structlog, structlog
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        _Taken.structlog = taken
        for logger, (level_before, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level_before)
            logger.propagate = propagate
