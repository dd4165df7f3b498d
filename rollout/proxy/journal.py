"""Where turns are until their session has ended: files beside rollouts.jsonl, which a crash leaves as they are.

    sessions.jsonl        which sessions there are: a line as each opens, and as it has ended
    turns.000001.jsonl    what each turn added, session among session; flushed before the turn's last event is sent
    turns.000002.jsonl    the next, once that one is large, and in each process that goes on

One thread writes, all that waits at once: a hundred turns that end together cost one write, and one fsync. A file of
turns goes once every session in it has ended, for then rollouts.jsonl has them. A last line that a crash has cut is
left out: its turn was never answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from rollout.errors import RolloutError, UsageError
from rollout.proxy.journal_lines import Line, SessionLine
from rollout.store.folder import decode_array, decoded_lines, encode_array

SESSIONS, TURNS = "sessions.jsonl", "turns.*.jsonl"

#: Bytes of a file of turns, after which another is begun.
FILE_BYTES = 64 * 2**20

#: Lines that are written at once at most.
_AT_ONCE = 1_000

_ENCODER = msgspec.json.Encoder(enc_hook=encode_array)
_LINES = msgspec.json.Decoder(Line, dec_hook=decode_array)
_SESSION_LINES = msgspec.json.Decoder(SessionLine)


class NotJournalled(RolloutError):
    """A turn could not be written down, so it is not answered."""


class JournalFailed(UsageError):
    """The disk takes nothing more."""


class _Waiting(NamedTuple):
    line: Line | SessionLine | None
    """None where a session's turns are not needed any more."""
    session: str
    done: asyncio.Future[None] | None
    loop: asyncio.AbstractEventLoop


class Journal:
    """Writes. Made for a folder that this process has the lock of."""

    def __init__(
        self,
        folder: Path,
        *,
        fsync: bool = False,
        on_failed: Callable[[JournalFailed], None] = lambda error: None,
        file_bytes: int = FILE_BYTES,
        places: dict[str, set[str]] | None = None,
    ) -> None:
        """`on_failed` is told once, on the event loop, when the disk takes no more. Raises OSError.

        `places` are the files that hold turns of sessions which go on: what `live_in` gave.
        """
        self._folder, self._fsync, self._file_bytes = folder, fsync, file_bytes
        self._on_failed = on_failed
        self._places = places or {}
        self._failed: JournalFailed | None = None
        self._sessions = (folder / SESSIONS).open("ab", buffering=0)
        _end_line(folder / SESSIONS, self._sessions)
        self._number = max((int(path.name.split(".")[1]) for path in folder.glob(TURNS)), default=0)
        self._turns = self._next_file()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Journal {self._folder}, {len(self._places)} files{', failed' if self._failed else ''}>"

    def tell(self, line: Line | SessionLine) -> None:
        """Writes a line before all that are told later."""
        self._put(line, line.session, None)

    async def write(self, line: Line | SessionLine) -> None:
        """Writes a line: it is flushed, and on the disk where `fsync` is asked for, when this returns.

        Raises JournalFailed, and NotJournalled for what cannot be written as JSON.
        """
        if self._failed is not None:
            raise self._failed
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(line, line.session, done)
        await done

    def forget(self, session: str) -> None:
        """A session's turns are in rollouts.jsonl. From the event loop, as all of these."""
        self._put(None, session, None)

    def close(self) -> None:
        """Writes what was told, and ends."""
        self._queue.put(None)
        self._thread.join()
        for file in (self._sessions, self._turns):
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
            file.close()
        current = Path(self._turns.name)
        if not self._places.get(current.name):
            current.unlink(missing_ok=True)

    def _put(self, line: Line | SessionLine | None, session: str, done: asyncio.Future[None] | None) -> None:
        self._queue.put(_Waiting(line, session, done, asyncio.get_running_loop()))

    def _work(self) -> None:
        ends = False
        while not ends:
            batch = [self._queue.get()]
            while len(batch) < _AT_ONCE:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ends = None in batch
            self._write([each for each in batch if each is not None])

    def _write(self, batch: list[_Waiting]) -> None:
        errors: list[Exception | None] = [self._failed] * len(batch)
        if self._failed is None:
            texts = [self._encoded(each, at, errors) for at, each in enumerate(batch)]
            try:
                self._append(batch, texts)
            except OSError as error:
                self._failed = JournalFailed(
                    f"cannot write the journal in {str(self._folder)!r}: {error.strerror or error}; what was answered "
                    "is kept, and goes on with the same -o once there is room"
                )
                errors = [self._failed] * len(batch)
                _call(batch[0].loop, self._on_failed, self._failed)
        for session in [each.session for each in batch if each.line is None]:
            self._drop(session)
        if batch:
            dones = [each.done for each in batch]
            _call(batch[0].loop, _settle, dones, errors)

    def _encoded(self, waiting: _Waiting, at: int, errors: list[Exception | None]) -> bytes:
        if waiting.line is None:
            return b""
        try:
            return _ENCODER.encode(waiting.line) + b"\n"
        except Exception as error:
            errors[at] = NotJournalled(f"a turn cannot be written: {type(error).__name__}: {error}")
            return b""

    def _append(self, batch: list[_Waiting], texts: list[bytes]) -> None:
        """Sessions first: no turn is there without its session."""
        sessions = [text for each, text in zip(batch, texts, strict=True) if isinstance(each.line, SessionLine)]
        turns = [
            (each.session, text)
            for each, text in zip(batch, texts, strict=True)
            if text and not isinstance(each.line, SessionLine)
        ]
        if sessions:
            self._all_of(self._sessions, b"".join(sessions))
        if turns:
            if self._turns.tell() > self._file_bytes:
                self._turns.close()
                self._turns = self._next_file()
            self._places.setdefault(Path(self._turns.name).name, set()).update(session for session, _ in turns)
            self._all_of(self._turns, b"".join(text for _, text in turns))

    def _all_of(self, file: IO[bytes], data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        if self._fsync:
            os.fsync(file.fileno())

    def _next_file(self) -> IO[bytes]:
        self._number += 1
        file = (self._folder / TURNS.replace("*", f"{self._number:06}")).open("xb", buffering=0)
        if self._fsync:  # its name, too, is to be there after a power failure
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return file

    def _drop(self, session: str) -> None:
        """Removes the files that no session needs any more; never the one that is being written."""
        for name in [name for name, sessions in self._places.items() if session in sessions]:
            self._places[name].discard(session)
            if not self._places[name] and name != Path(self._turns.name).name:
                del self._places[name]
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()


def read_sessions(folder: Path) -> Iterator[SessionLine]:
    """Which sessions a folder has. Raises UsageError for a line in the middle that cannot be read."""
    path = folder / SESSIONS
    if not path.exists():
        return
    with path.open("rb") as file:
        for _, line in decoded_lines(file, path, _SESSION_LINES.decode):
            yield line


def read_turns(folder: Path) -> Iterator[tuple[str, Line]]:
    """The lines of turns, each with its file's name, as they were written. Raises UsageError as `read_sessions`."""
    for path in sorted(folder.glob(TURNS)):
        with path.open("rb") as file:
            for _, line in decoded_lines(file, path, _LINES.decode):
                yield path.name, line


def remove_unneeded(folder: Path, places: Mapping[str, set[str]]) -> None:
    """Removes the files of turns that no session needs, in a folder that nobody writes."""
    for path in folder.glob(TURNS):
        if not places.get(path.name):
            path.unlink(missing_ok=True)


def _end_line(path: Path, file: IO[bytes]) -> None:
    """Cuts off what a crash has left of a last line."""
    whole = path.read_bytes().rfind(b"\n") + 1
    file.truncate(whole)


def _settle(dones: list[asyncio.Future[None] | None], errors: list[Exception | None]) -> None:
    for done, error in zip(dones, errors, strict=True):
        if done is None or done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(function, *args)
