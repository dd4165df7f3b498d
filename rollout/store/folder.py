"""Finished rollouts -> disk: the run folder, and how it is read back.

    runs/<env>--<model>--<time>/
        config.toml       the settings, without secrets, and the folder's format: see `rollout.store.config`
        tasks.jsonl       the run's tasks, one per line, in the order of their indices
        rollouts.jsonl    one line per rollout, appended and flushed as each ends
        images/           the images of its conversations, each once: see `rollout.store.pictures`
        token_fields.bin  what lines name and do not hold, where a run asks for it: see `rollout.store.apart`
        summary.json      the object that `--json` prints
        events.log        what was logged, one JSON object per line
        trackers.json     where its trackers go on: see `rollout.cli.loggers`
        lock              who writes here: see `rollout.store.lock`

A line holds everything: messages, turns, and the trajectory's nodes with their ids and logprobs. A last line
that was cut by a crash is detected when the folder is read, and that rollout is played again by `--resume`.
What a power failure leaves of the last line counts as cut, too. A member that was played again counts as it ended last.
A folder may be read while it is written.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import re
import shutil
import time
from array import array
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from rollout.door import error_text, well_formed
from rollout.errors import UsageError
from rollout.log import get_logger
from rollout.records import Failure, FailureKind, Rollout
from rollout.request import IDS
from rollout.store.apart import Apart, read_blob
from rollout.store.config import (
    FORMAT,
    FolderConfig,
    check_format,
    read_folder_config,
    write_folder_config,
    write_whole,
)
from rollout.store.lock import FolderLock
from rollout.store.pictures import Pictures, Shown
from rollout.store.task_list import TaskList
from rollout.token_fields import Blob
from rollout.tokens.trajectory import LOGPROBS, Logprobs, TokenIds

ROLLOUTS, TASKS, SUMMARY, EVENTS = "rollouts.jsonl", "tasks.jsonl", "summary.json", "events.log"

T = TypeVar("T")

_log = get_logger(__name__)


def encode_array(value: Any) -> Any:
    """msgspec's hook for ids and logprobs, as a folder's lines have them."""
    if isinstance(value, array):
        if value.typecode == LOGPROBS:
            # JSON has no NaN: a logprob that the server could not give is null.
            return [None if math.isnan(item) else item for item in value]
        return value.tolist()
    if isinstance(value, Blob):
        return b64encode(value.data).decode()
    raise NotImplementedError(type(value).__name__)


def decode_array(kind: Any, value: Any, folder: Path | None = None) -> Any:
    """The same for reading."""
    if kind is Logprobs:
        return Logprobs(LOGPROBS, [math.nan if item is None else item for item in value])
    if kind is TokenIds:
        return TokenIds(IDS, value)
    if kind is Blob:
        return read_blob(value, folder)
    raise NotImplementedError(str(kind))


_ENCODER = msgspec.json.Encoder(enc_hook=encode_array)


@lru_cache(maxsize=16)
def _decoder(folder: Path | None) -> msgspec.json.Decoder[Rollout]:
    return msgspec.json.Decoder(Rollout, dec_hook=partial(decode_array, folder=folder))


#: How a file system says that a file is not there any more; the last is NFS's word.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})

#: What a line that cannot be read raises.
READ_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode_rollout(rollout: Rollout, encoder: msgspec.json.Encoder = _ENCODER) -> bytes:
    """One line, without its end. Raises what msgspec raises, and ValueError for a number that JSON does not have.

    Routed experts and sampling masks are in it as base64; a run folder's encoder puts them apart.
    """
    for name in ("reward", "step_reward", "score", "group_reward"):
        if (reward := getattr(rollout, name)) is not None and not math.isfinite(reward):
            raise ValueError(f"{name} is {reward}, which JSON does not have")
    for name, value in rollout.metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}, which JSON does not have")
    return encoder.encode(rollout)


def decode_rollout(line: bytes, folder: Path | None = None, shown: Shown | None = None) -> Rollout:
    """Reads a line of a folder, also one of an older format. Raises one of READ_ERRORS.

    What lies apart is read from the folder when it is wanted; images at once, and lines that are read by one `shown`
    share them.
    """
    decoder = _decoder(folder)
    try:
        rollout = decoder.decode(line)
    except msgspec.ValidationError:
        rollout = decoder.decode(msgspec.json.encode(_without_nulls(msgspec.json.decode(line))))
    return rollout if folder is None else (shown or Shown(folder)).restore(rollout, line)


def _without_nulls(record: Any) -> Any:
    """A record of format 1, where a reward or a metric that was NaN or infinite was written as null."""
    if isinstance(record, dict) and isinstance(metrics := record.get("metrics", {}), dict):
        nulls = [name for name, value in metrics.items() if value is None]
        record["metrics"] = {name: value for name, value in metrics.items() if value is not None}
        if record.get("reward", 0.0) is None:
            nulls, record["reward"] = ["reward", *nulls], 0.0
        if nulls and record.get("failure") is None:
            message = f"{nulls[0]} was not a finite number"
            record["failure"], record["stop"] = {"kind": FailureKind.ENVIRONMENT, "message": message}, None
    return record


def read_rollouts(folder: Path | str) -> Iterator[Rollout]:
    """The rollouts of a run folder, in the order in which they ended. A torn last line is passed over.

    Raises UsageError for a folder that is none or of a newer format, and for a line in the middle that cannot be read.
    """
    path = rollouts_of(Path(folder))
    decode = partial(decode_rollout, folder=path.parent, shown=Shown(path.parent))
    with path.open("rb") as file:
        for _, rollout in decoded_lines(file, path, decode):
            yield rollout


def rollouts_of(folder: Path) -> Path:
    """The file of a run's rollouts. Raises UsageError for a folder that is none, or of a newer format."""
    path = folder / ROLLOUTS
    if not path.is_file():
        raise UsageError(f"{str(folder)!r} is not a run folder: it has no {ROLLOUTS}")
    check_format(folder)
    return path


def decoded_lines(file: IO[bytes], path: Path, decode: Callable[[bytes], T]) -> Iterator[tuple[bytes, T]]:
    """The lines of a file of records, each with what it holds. A last line that is torn or broken is left out.

    Raises UsageError for one in the middle that cannot be read.
    """
    broken = ""
    for number, line in enumerate(file, 1):
        if broken:
            whole = "without that line the folder is whole, and --resume plays it again"
            raise UsageError(f"{path}, line {number - 1}: {broken}; {whole}")
        if not line.endswith(b"\n"):
            return
        try:
            value = decode(line)
        except READ_ERRORS as error:
            broken = str(error) or type(error).__name__
            continue
        yield line, value


class FolderGone(UsageError):
    """Somebody removed or replaced a folder while a run wrote it."""


class RunFolder:
    """A run's folder, open for writing, and locked."""

    def __init__(self, path: Path, lock: FolderLock) -> None:
        self.path = path
        self._owner = lock
        self._file: IO[bytes] | None = None
        self._apart = Apart(path)
        self._pictures = Pictures(path)
        self._encoder = msgspec.json.Encoder(enc_hook=self._encoded)
        self._plan: tuple[FolderConfig, TaskList] | None = None
        """What is played, and how; there once it was written."""
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<RunFolder {self.path}>"

    @classmethod
    def create(cls, path: Path, config: FolderConfig | None = None, tasks: TaskList | None = None) -> RunFolder:
        """A new folder. Raises UsageError where it cannot be written, holds a run already, or is being written."""
        path = path.absolute()
        if not (path / ROLLOUTS).exists():
            with _said_of(path, "; choose another by -o"):
                path.mkdir(parents=True, exist_ok=True)
                folder = cls(path, FolderLock(path))
                try:
                    if not (path / ROLLOUTS).exists():  # else another was quicker
                        folder.write_plan(config or FolderConfig(format=FORMAT), tasks or TaskList())
                        folder._file = (path / ROLLOUTS).open("x+b")
                        return folder
                except BaseException:
                    folder.close()
                    raise
                folder.close()
        raise UsageError(f"{str(path)!r} holds a run already: give --resume to go on with it, or another -o")

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """An existing folder, locked; `append` opens it. Raises UsageError where it is none or is being written."""
        check_resumable(path)
        path = path.absolute()
        with _said_of(path):
            return cls(path, FolderLock(path))

    def write_plan(self, config: FolderConfig, tasks: TaskList) -> None:
        """Writes what the run plays, and how. Raises OSError."""
        write_whole(self.path / TASKS, b"".join(line + b"\n" for line in tasks.lines))
        write_folder_config(self.path, config)
        self._apart.hold(config.settings)
        self._pictures.hold()
        self._plan = config, tasks

    def append(self, config: FolderConfig, tasks: TaskList, end: int) -> None:
        """Goes on with a folder whose last whole line ends at `end`; what is behind it is cut off."""
        with _said_of(self.path):
            self.write_plan(config, tasks)
            self._file = (self.path / ROLLOUTS).open("r+b")
            self._file.truncate(end)
            self._file.seek(end)

    async def write(self, rollout: Rollout, *, fsync: bool = False) -> int:
        """Appends a rollout and flushes it to the disk, off the event loop; gives where its line begins.

        One that cannot be written becomes a failure, and what can be written of it is. Raises OSError, and FolderGone.
        """
        async with self._lock:  # lines keep their order, and never mix
            return await anyio.to_thread.run_sync(self._write, rollout, fsync)

    def _write(self, rollout: Rollout, fsync: bool) -> int:
        assert self._file is not None, "the run folder is closed"
        self._apart.begin()
        try:
            line = encode_rollout(self._pictures.named(rollout), self._encoder)
        except OSError:
            raise
        except Exception as error:
            self._apart.begin()
            line = encode_rollout(_stand_in(rollout, error))
        self._apart.write(fsync=fsync)
        begins = self._file.tell()
        self._file.write(line + b"\n")
        self._file.flush()
        if fsync:
            os.fsync(self._file.fileno())
        self.check()
        return begins

    def _encoded(self, value: Any) -> Any:
        return self._apart.add(value) if isinstance(value, Blob) else encode_array(value)

    def check(self) -> None:
        """Sees that what is written goes where it is looked for. Raises FolderGone where the file is gone.

        What was written is in a folder beside it then, where the run may go on, and so is what is written later.
        """
        assert self._file is not None, "the run folder is closed"
        try:
            if os.path.samestat((self.path / ROLLOUTS).stat(), os.fstat(self._file.fileno())):
                return
        except OSError as error:
            if error.errno not in _GONE:
                return  # a file system that does not answer for a moment has lost nothing
        before = self.path
        lost = self._go_beside()
        raise FolderGone(
            f"the run folder {str(before)!r} was removed or replaced while the run wrote it; what the run has is in "
            f"{str(self.path)!r} now{f', but for {lost} of its images, gone with that folder' if lost else ''}"
        )

    def _go_beside(self) -> int:
        """Goes on in a new folder; gives how many images are lost."""
        assert self._file is not None
        path = _beside(self.path)
        file = (path / ROLLOUTS).open("x+b")
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)
        file.flush()
        self._file.close()
        self._apart.move(path)
        lost = self._pictures.move(path)
        self._owner.release()  # first: the new folder may have the old one's inode
        self.path, self._file, self._owner = path, file, FolderLock(path)
        if self._plan is not None:
            self.write_plan(*self._plan)
        return lost

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json whole or not at all. Raises OSError."""
        write_whole(self.path / SUMMARY, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")

    def close(self) -> None:
        """Every write was flushed; what could not be written has been said by `write`."""
        with contextlib.suppress(OSError):
            self._apart.close()
        self._pictures.close()
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
            with contextlib.suppress(OSError):  # it tries the failed write again
                file.close()
        self._owner.release()


def _stand_in(rollout: Rollout, error: Exception) -> Rollout:
    """A record in place of one that cannot be written. The rollout itself becomes the failure that its record is."""
    why = f"its record cannot be written: {type(error).__name__}: {error_text(error)}"
    _log.error("record_not_written", rollout=rollout.id, error=why, exc_info=error)
    rollout.stop, rollout.failure = None, Failure(kind=FailureKind.INTERNAL, message=why, error=type(error).__name__)
    return Rollout(
        id=well_formed(rollout.id),
        task_id=well_formed(rollout.task_id),
        task_index=rollout.task_index,
        member=rollout.member,
        failure=rollout.failure,
    )


@contextlib.contextmanager
def _said_of(path: Path, remedy: str = "") -> Iterator[None]:
    """A fault of the disk is a user's mistake, in one line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write the run folder {str(path)!r}: {error.strerror or error}{remedy}") from error


def check_resumable(path: Path) -> None:
    """Raises UsageError for a folder without a run, or of a newer format."""
    if not (path / ROLLOUTS).is_file():
        raise UsageError(f"{str(path)!r} is not a run folder, so there is nothing to resume: it has no {ROLLOUTS}")
    check_format(path)


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run, by name. Raises UsageError."""
    return read_folder_config(path).settings


def _beside(path: Path) -> Path:
    """A new folder beside one that is gone. Raises OSError."""
    for number in itertools.count():
        kept = path.with_name(f"{path.name}.kept{f'-{number}' if number else ''}")
        with contextlib.suppress(FileExistsError):
            kept.mkdir(parents=True)
            return kept
    raise AssertionError("numbers do not end")


def new_path(env: str, model: str, here: Path | None = None) -> Path:
    """A new folder runs/<env>--<model>--<time> beneath `here`, which nobody else gets. Raises UsageError."""
    while True:
        path = default_path(env, model, here)
        with _said_of(path, "; choose another by -o"):
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue  # another run began in the same moment
        return path


def _short(name: str) -> str:
    """A name's last part as a folder's; the whole of it where that alone is no name, such as a split's `[:100]`."""
    last = Path(name.rpartition(":")[2] or name).name.replace(" ", "_")
    return last if re.fullmatch(r"[\w.+-]+", last) else re.sub(r"[^\w.+-]+", "_", Path(name).name).strip("_")


def default_path(env: str, model: str, here: Path | None = None) -> Path:
    """runs/<env>--<model>--<time> beneath `here`, or where the process is; it does not exist yet."""
    names = [_short(part) for part in (env, model)]
    stem = f"{names[0]}--{names[1]}--{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = (here or Path.cwd()) / "runs" / stem, 1
    while path.exists():
        path, number = path.with_name(f"{stem}-{number}"), number + 1
    return path
