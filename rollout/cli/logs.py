"""Logs as events: warnings to the terminal, everything to events.log, nothing to standard output.

A thousand rollouts have the same trouble. The terminal shows each kind once, the first one with its whole traceback
where user code raised, and says at the end how many more there were; events.log has them all.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from rollout.door import type_name
from rollout.log import UnlockedHandler, event_of, handled_by, shown

Event = MutableMapping[str, Any]

#: Lines that wait for a slow disk. What comes beyond them is dropped, counted, and said in the file itself.
MOST_WAITING = 20_000

#: Kinds of trouble that are told apart on the terminal; further ones are one kind together.
MOST_KINDS = 200

#: How long the end waits for the last lines to be written.
CLOSE_S = 5.0

_LEVELS = ("debug", "info", "warning", "error", "critical")

_SHOWN = ("warning", "error", "critical", "exception")

_HIDDEN = ("event", "level", "timestamp", "exc_info", "exception", "stack", "session")

#: An exception's type, at the beginning of a text.
_ERROR = re.compile(r"\w{1,60}(?:Error|Exception|Exit|Interrupt|Group|Timeout)(?=: |$)")

#: What is long on a terminal: the whole of it is in events.log.
_MOST_SHOWN = 2_000

#: Characters of one traceback in the log.
_MOST_TRACEBACK = 20_000


def printable(text: str, *, lines: bool = False) -> str:
    """A text without what a terminal would obey: control characters as escapes. `lines` keeps ends of lines."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


class _ToStructlog(UnlockedHandler):
    """Has structlog process what the library logs, as it does what an environment logs by structlog itself."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the handler's lock: what shows an event may wait for a terminal, for which nobody else is to wait."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        event, fields = event_of(record)
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        level = record.levelname.lower()
        try:
            getattr(structlog.get_logger(), level if level in _LEVELS else "warning")(event, **fields)
        except Exception:  # no event is worth a rollout
            self.handleError(record)


class EventLog:
    """Where events go. The file is written by a thread of its own, so that no log line waits for a disk."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        """`show` prints a line for people; None prints to standard error."""
        self.show = show or (lambda line: print(line, file=sys.stderr))
        self.path: Path | None = None
        """The file, once there is one."""
        self._lines: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._kinds: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()
        self._traceback_shown = False
        self._attached = contextlib.ExitStack()

    def __repr__(self) -> str:
        return f"<EventLog {self.path or 'no file yet'}, {len(self._kinds)} kinds>"

    def __enter__(self) -> Self:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                self._for_people,
                structlog.processors.format_exc_info,
                _bounded,
                structlog.processors.JSONRenderer(ensure_ascii=False, default=_text),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=lambda *args: self,
            cache_logger_on_first_use=False,
        )
        self._attached.enter_context(handled_by(_ToStructlog(), logging.INFO, structlog=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._attached.close()
        structlog.reset_defaults()
        self._say_repeated()
        if self._thread is not None:
            with contextlib.suppress(queue.Full):  # a disk that hangs does not keep the command
                self._lines.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)

    def open(self, path: Path) -> None:
        """Starts writing to a file; what was logged before is written too."""
        file = path.open("ab")
        self.path = path
        self._thread = threading.Thread(target=self._drain, args=(file,), name="events.log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        """Takes a rendered event: what structlog calls for every level."""
        try:
            self._lines.put_nowait(line.encode("utf-8", "replace") + b"\n")
        except queue.Full:
            self._dropped += 1

    debug = info = warning = warn = error = critical = exception = fatal = log = msg

    def _drain(self, file: Any) -> None:
        with contextlib.suppress(OSError), file:
            while (line := self._lines.get()) is not None:
                try:
                    dropped, self._dropped = self._dropped, 0
                    if dropped:
                        file.write(b'{"event": "events_dropped", "count": %d}\n' % dropped)
                    file.write(line)
                    file.flush()
                except OSError:  # a full disk ends the run elsewhere; what can be written later still is
                    self._dropped += 1

    def _for_people(self, logger: object, method: str, event: Event) -> Event:
        """Shows warnings and errors, each kind once."""
        if method not in _SHOWN:
            return event
        with self._lock:
            kind = _kind(event)
            if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
                kind = ("other",)
            self._kinds[kind] += 1
            first = self._kinds[kind] == 1
        if first:
            self.show(f"{method}: {_line(event)}")
            self._show_traceback(event)
        return event

    def _show_traceback(self, event: Event) -> None:
        """The first one of a run: whoever wrote the environment wants the file and the line, not a kind."""
        if self._traceback_shown:
            return
        text = event.get("exception") or _traceback_of(event.get("exc_info"))
        if text:
            self._traceback_shown = True
            self.show(printable(_cut(str(text).rstrip()), lines=True))

    def _say_repeated(self) -> None:
        where = f"; all are in {self.path}" if self.path else ""
        for kind, count in self._kinds.items():
            if count > 1:
                self.show(f"{printable(' '.join(kind))}: {count - 1} more{where}")


def _text(value: object) -> str:
    """What is no JSON goes as text."""
    try:
        return repr(value)
    except Exception:
        return shown(value)


def _bounded(logger: object, method: str, event: Event) -> Event:
    """Cuts a traceback that the log has no room for."""
    if isinstance(text := event.get("exception"), str):
        event["exception"] = _cut(text)
    return event


def _cut(text: str) -> str:
    """A traceback without its middle: its exception may carry a whole page, or a tensor, or be raised very deep."""
    half = _MOST_TRACEBACK // 2
    return text if len(text) <= _MOST_TRACEBACK else f"{text[:half]}\n...\n{text[-half:]}"


def _kind(event: Event) -> tuple[str, ...]:
    """What makes two events the same to people: never a text that differs from rollout to rollout."""
    error = event.get("exc_info")
    raised = type_name(error[1]) if isinstance(error, tuple) and error[1] else ""
    raised = type_name(error) if isinstance(error, BaseException) else raised
    if not raised and (named := _ERROR.match(str(event.get("error", "")))):
        raised = named[0]  # a worker's event has no exception any more
    fields = [event.get(name) for name in ("kind", "reason", "cause", "call", "bridge", "server", "error_type")]
    return tuple(str(part)[:80] for part in (event.get("event", ""), raised, *fields) if part)


def _line(event: Event) -> str:
    fields = " ".join(f"{name}={shown(value)}" for name, value in event.items() if name not in _HIDDEN)
    text = printable(f"{event.get('event')} {fields}".rstrip())
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _traceback_of(error: object) -> str:
    if error is True:
        return traceback.format_exc()
    if isinstance(error, tuple):
        error = error[1]
    return "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""


def write_traceback(error: BaseException, path: Path) -> None:
    """Puts a traceback into a log that is not open any more, or into a file that is none yet."""
    event = {
        "event": "internal_error",
        "level": "error",
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "exception": "".join(traceback.format_exception(error)),
    }
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(str(structlog.processors.JSONRenderer(ensure_ascii=False)(None, "", event)) + "\n")
