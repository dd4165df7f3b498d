"""What other packages print and warn of while they are imported, or load what they play, is for the log (events.log).

A user who plays one of their data sets can mend none of it. What the user's own files warn of is shown as ever, as is
whatever another thread prints meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from rollout.log import get_logger

_log = get_logger(__name__)

#: Lines that are logged of one block.
_MOST_LINES = 200

#: Where no file is the user's.
_STDLIB = os.path.join(sysconfig.get_paths()["stdlib"], "")


class _Thread(threading.local):
    """What is put aside of a thread: nothing, where `lines` is None."""

    lines: list[str] | None = None
    prints = False


_here = _Thread()
_swapping = threading.Lock()
_inside = 0
_before: tuple[Any, Any, Any] | None = None
"""Standard output, standard error and what shows warnings, while any thread is inside."""


class _Stream:
    """A stream of everybody's, from which a thread that is inside is kept. It may be held on to: it stays a stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if _here.lines is None or not _here.prints:
            return int(self._stream.write(text) or 0)
        if len(_here.lines) < _MOST_LINES:
            _here.lines += [line for line in text.splitlines() if line.strip()]
        return len(text)


def _show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """In the place of `warnings.showwarning`."""
    if _here.lines is not None and _is_a_packages(filename):
        _here.lines.append(f"{filename}:{lineno}: {category.__name__}: {message}")
        return
    show = _before[2] if _before is not None else _python_shows
    lines, _here.lines = _here.lines, None
    try:
        show(message, category, filename, lineno, file, line)
    finally:
        _here.lines = lines


_python_shows = warnings.showwarning


def _is_a_packages(filename: str) -> bool:
    return "-packages" + os.sep in filename or filename.startswith((_STDLIB, "<"))


@contextlib.contextmanager
def aside(package: str, *, prints: bool = True) -> Iterator[None]:
    """Logs what this thread prints and what packages' files warn of; without `prints` only the latter."""
    before = _here.lines, _here.prints
    lines: list[str] = []
    _here.lines, _here.prints = lines, prints
    _enter()
    try:
        yield
    finally:
        _leave()
        _here.lines, _here.prints = before
        for line in lines[:_MOST_LINES]:
            _log.info("package_said", package=package, text=line)


def _enter() -> None:
    global _inside, _before
    with _swapping:
        _inside += 1
        if _inside == 1:
            _before = sys.stdout, sys.stderr, warnings.showwarning
            sys.stdout, sys.stderr = _Stream(sys.stdout), _Stream(sys.stderr)
            warnings.showwarning = _show


def _leave() -> None:
    """Puts back what was there, unless somebody else has changed it meanwhile."""
    global _inside, _before
    with _swapping:
        _inside -= 1
        if _inside or _before is None:
            return
        if isinstance(sys.stdout, _Stream):
            sys.stdout = _before[0]
        if isinstance(sys.stderr, _Stream):
            sys.stderr = _before[1]
        if warnings.showwarning is _show:
            warnings.showwarning = _before[2]
        _before = None
