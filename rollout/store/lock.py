"""One writer of a folder at a time: a lock that a crash gives back, also over NFS.

The lock is a POSIX record lock (`fcntl.lockf`) on the file `lock`. The kernel, or the NFS server, gives it back when
its process ends, however it ends, and children that an environment forks do not hold it. What is in the file only says
who holds it. Two properties of POSIX locks need care. A process never conflicts with itself, so the folders that this
process holds are in a registry. And closing any descriptor of the file gives the lock back, so nothing here opens the
file of a folder that this process holds.

Some file systems have no locks (NFS without its lock daemon, some FUSE). There a file that only one can create,
`lock.held`, stands for it. Its owner touches it now and then, so that one that a crash left behind can be told.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from rollout.errors import UsageError

LOCK, HELD = "lock", "lock.held"

#: How often the owner of `lock.held` touches it, and for how long it may not before it counts as dead.
BEAT_S, STALE_S = 5.0, 60.0

#: What a file system without locks answers.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})

#: Folders that this process writes, by device and inode.
_ours: set[tuple[int, int]] = set()
_ours_guard = threading.Lock()


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock."""

    host: str = "an unknown host"
    pid: int = 0
    since: str = "an unknown time"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def is_gone(self) -> bool:
        """Whether it is surely dead: only a process of this host can be asked."""
        if self.host != socket.gethostname() or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


class FolderLock:
    """The right to write a folder, held until `release`."""

    def __init__(self, folder: Path, *, lockf: Callable[[int, int], None] = fcntl.lockf) -> None:
        """Takes it. Raises UsageError, naming the holder, where another has it, and OSError. `lockf` is for tests."""
        found = folder.stat()
        self._folder = folder
        self._key = found.st_dev, found.st_ino
        self._fd: int | None = None
        self._held: Path | None = None
        self._stop = threading.Event()
        with _ours_guard:
            if self._key in _ours:
                raise UsageError(_refusal(folder, f"this process ({os.getpid()}) already"))
            _ours.add(self._key)
        try:
            self._take(lockf)
        except BaseException:
            self.release()
            raise

    def __repr__(self) -> str:
        way = "released" if self._fd is None and self._held is None else HELD if self._held else LOCK
        return f"<FolderLock {self._folder} {way}>"

    def release(self) -> None:
        """Gives it back. May be called twice."""
        self._stop.set()
        if self._held is not None:
            with contextlib.suppress(OSError):
                self._held.unlink()
            self._held = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        with _ours_guard:
            _ours.discard(self._key)

    def _take(self, lockf: Callable[[int, int], None]) -> None:
        fd = self._fd = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UsageError(_refusal(self._folder, str(_holder(os.pread(fd, 4096, 0))))) from None
            if error.errno not in _NO_LOCKS:
                raise
            os.close(fd)
            self._fd = None
            self._held = _create(self._folder)
            threading.Thread(target=self._beat, args=(self._held,), name="lock-beat", daemon=True).start()
            return
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its owner's name
            os.ftruncate(fd, 0)
            os.pwrite(fd, _me(), 0)

    def _beat(self, held: Path) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(held)


def writer_of(folder: Path) -> str:
    """Who holds a folder's lock, or held it last; "" where nobody is named. Only for words: it decides nothing."""
    with _ours_guard:
        with contextlib.suppress(OSError):
            found = folder.stat()
            if (found.st_dev, found.st_ino) in _ours:  # reading the file would give our own lock back
                return f"process {os.getpid()} on {socket.gethostname()}"
        for name in (HELD, LOCK):
            with contextlib.suppress(OSError):
                return str(_holder((folder / name).read_bytes()))
    return ""


def _create(folder: Path) -> Path:
    """Creates `lock.held`, which one alone can. Raises UsageError where a living owner has it."""
    path = folder / HELD
    for _ in range(3):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            _remove_stale(folder, path)
            continue
        with os.fdopen(fd, "wb") as file:
            file.write(_me())
        return path
    raise UsageError(_refusal(folder, "another process, which takes it at this moment"))


def _remove_stale(folder: Path, path: Path) -> None:
    """Removes what a dead owner left. Raises UsageError where the owner lives, or may live."""
    try:
        holder, age = _holder(path.read_bytes()), _now_of(folder) - path.stat().st_mtime
    except FileNotFoundError:
        return
    if not holder.is_gone and age < STALE_S:
        raise UsageError(_refusal(folder, str(holder)))
    # Renamed first: of two that find it stale at once, only one can, and a fresh lock is not removed with it.
    grave = folder / f".{HELD}.{os.getpid()}.{threading.get_ident()}"
    with contextlib.suppress(FileNotFoundError):
        path.rename(grave)
        if _holder(grave.read_bytes()) != holder:  # somebody took it over in between
            with contextlib.suppress(FileExistsError):
                os.link(grave, path)
        grave.unlink()


def _now_of(folder: Path) -> float:
    """The time by the clock of the file system, which may be another host's."""
    probe = folder / f".clock.{os.getpid()}.{threading.get_ident()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _me() -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S%z")
    return msgspec.json.encode(Holder(host=socket.gethostname(), pid=os.getpid(), since=since)) + b"\n"


def _holder(content: bytes) -> Holder:
    try:
        return msgspec.json.decode(content, type=Holder)
    except msgspec.DecodeError:
        return Holder()


def _refusal(folder: Path, holder: str) -> str:
    return f"{str(folder)!r} is being written by {holder}: wait until it has ended, or give another -o"
