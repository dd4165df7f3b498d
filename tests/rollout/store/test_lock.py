"""A folder has one writer at a time, whatever happened to the one before."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rollout.errors import UsageError
from rollout.store.lock import HELD, LOCK, STALE_S, FolderLock, Holder, writer_of

HOLD = """
import sys
from pathlib import Path
from rollout.store.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


def no_locks(fd: int, how: int) -> None:
    """A file system without locks."""
    raise OSError(errno.ENOLCK, "No locks available")


def holding(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_another_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    """The second writer learns the first one's process, host and start."""
    process = holding(tmp_path)
    try:
        with pytest.raises(UsageError, match=rf"written by process {process.pid} on .+ since .+another -o"):
            FolderLock(tmp_path)
        assert f"process {process.pid} " in writer_of(tmp_path)
    finally:
        end(process)


@pytest.mark.slow
def test_a_crash_gives_the_lock_back(tmp_path: Path) -> None:
    """kill -9 of the holder frees the folder at once."""
    process = holding(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    FolderLock(tmp_path).release()


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    """Two runs in one process are two writers, by whatever path they name the folder."""
    lock = FolderLock(tmp_path)
    (tmp_path.parent / "other-name").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=f"this process \\({os.getpid()}\\)"):
        FolderLock(tmp_path.parent / "other-name")
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_asking_who_writes_keeps_the_lock(tmp_path: Path) -> None:
    """The holder may ask who holds it: another process is still refused after that."""
    lock = FolderLock(tmp_path)
    assert str(os.getpid()) in writer_of(tmp_path)
    done = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], input="", capture_output=True, text=True)
    assert "is being written by" in done.stderr
    lock.release()


def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    """What an environment forked does not keep the folder after the run was killed."""
    script = HOLD.replace("print", "import os, time\nif not os.fork(): time.sleep(60)\nprint", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    try:
        FolderLock(tmp_path).release()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_without_locks_a_file_stands_for_it(tmp_path: Path) -> None:
    """Where the file system has none, a second writer is refused all the same, and the first one's end frees it."""
    lock = FolderLock(tmp_path, lockf=no_locks)
    (tmp_path.parent / "copy").mkdir()
    held = (tmp_path / HELD).read_bytes()
    (tmp_path.parent / "copy" / HELD).write_bytes(held)  # as another process sees it
    with pytest.raises(UsageError, match=f"written by process {os.getpid()}"):
        FolderLock(tmp_path.parent / "copy", lockf=no_locks)
    lock.release()
    assert not (tmp_path / HELD).exists()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_without_locks_a_dead_owner_is_told(tmp_path: Path, host: str) -> None:
    """A process of this host that is gone, or one elsewhere that has not touched its file for long, owns nothing."""
    process = holding(tmp_path)
    end(process)
    here = msgspec.json.decode((tmp_path / LOCK).read_bytes(), type=Holder).host
    owner = Holder(host=here if host == "here" else "elsewhere", pid=process.pid, since="then")
    (tmp_path / HELD).write_bytes(msgspec.json.encode(owner))
    if host == "elsewhere":
        with pytest.raises(UsageError, match="on elsewhere since then"):
            FolderLock(tmp_path, lockf=no_locks)
        old = (tmp_path / HELD).stat().st_mtime - STALE_S - 1
        os.utime(tmp_path / HELD, (old, old))
    FolderLock(tmp_path, lockf=no_locks).release()


def test_another_fault_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    """An error of the disk is an error of the disk."""

    def broken(fd: int, how: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        FolderLock(tmp_path, lockf=broken)
    FolderLock(tmp_path).release()
