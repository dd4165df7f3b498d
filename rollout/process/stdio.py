"""Standard output belongs to the command: one object of JSON, or one table, and nothing else.

An environment prints, its libraries in C print, the processes that it starts print, and a program that reads the
command's output must not see any of it. So the command keeps file descriptor 1 to itself under another number, and
whatever else writes to 1 comes out on standard error: at the level of descriptors, since `print` is only one of the
ways. That is for the rest of the process's life, also behind the last line of ours.

Standard error may be full, closed, or a pipe that nobody reads. Nothing that is said there is worth a rollout, so a
failing write to it is passed over, for us and for the code of others.

A library leaves its process's streams alone: only `rollout.cli.app.main` asks for this.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import TextIO

#: How long a write waits for a terminal or pipe that takes nothing just now.
_PATIENCE_S = 5.0

#: Nobody reads what is written: no fault of the run.
_UNREAD = (errno.EPIPE, errno.EBADF, errno.ECONNRESET)


class Output:
    """Where a command's results go: `sys.stdout` as it stands, as in tests, until it is claimed."""

    def __init__(self) -> None:
        self._fd: int | None = None
        """The command's own descriptor, once it has one."""
        self.fault: OSError | None = None
        """Why a result could not be written, where somebody wanted it."""
        self.unread = False
        """Whether nobody reads any more."""

    def __repr__(self) -> str:
        return f"<Output {'sys.stdout' if self._fd is None else f'descriptor {self._fd}'}>"

    @property
    def is_terminal(self) -> bool:
        return os.isatty(self._fd) if self._fd is not None else False

    def claim(self) -> None:
        """Takes standard output for the command. What others write to it goes to standard error from now on."""
        missing = _open_missing()
        self._fd = os.open(os.devnull, os.O_WRONLY) if 1 in missing or sys.stdout is None else os.dup(1)
        # A forked child that outlives the command must not keep the reader of a pipe waiting for its end.
        os.register_at_fork(after_in_child=self._close)
        os.dup2(2, 1)
        tolerate()

    def write(self, text: str) -> None:
        """Writes all of a text. What cannot be written is not raised: it is `fault`, where somebody reads."""
        if self._fd is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        try:
            rest = memoryview(text.encode("utf-8", "backslashreplace"))
            while rest:
                rest = rest[_write(self._fd, rest) :]
        except OSError as error:
            self.unread = error.errno in _UNREAD
            self.fault = None if self.unread else error

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def tolerate() -> None:
    """Has this process's `sys.stdout` and `sys.stderr` pass over what cannot be written."""
    _open_missing()
    sys.stdout = _tolerant(sys.stdout, 1)
    sys.stderr = _tolerant(sys.stderr, 2)


class _Tolerant(io.FileIO):
    """A descriptor whose failing writes are nobody's trouble."""

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]  # FileIO's own word for a buffer is private
        try:
            return _write(self.fileno(), view)
        except OSError:
            return view.nbytes


class _Text(io.TextIOWrapper):
    """A stream that user code may close: whoever writes to it afterwards, the command included, still can."""

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.flush()


def _tolerant(stream: TextIO | None, fd: int) -> TextIO:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    raw = io.BufferedWriter(_Tolerant(fd, "w", closefd=False))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return _Text(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)


def _write(fd: int, data: memoryview) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not poll.poll(_PATIENCE_S * 1e3):
            raise
        return os.write(fd, data)


def _open_missing() -> set[int]:
    """Opens those of 0, 1 and 2 that are closed, else the run's own files would get their numbers."""
    missing = set()
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            missing.add(fd)
            found = os.open(os.devnull, os.O_RDWR)
            if found == fd:
                os.set_inheritable(fd, True)
            else:
                os.dup2(found, fd)
                os.close(found)
    return missing
