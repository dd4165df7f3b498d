"""Finished rollouts -> disk: the run folder, and how it is read back.

    runs/<env>--<model>--<time>/
        config.toml       the settings, without secrets
        rollouts.jsonl    one line per rollout, appended and flushed as each ends
        summary.json      the object that `--json` prints
        events.log        what was logged, one JSON object per line

A line holds everything: messages, turns, and the trajectory's nodes with their ids and logprobs. A last line
that was cut by a crash is detected when the folder is read, and that rollout is played again by `--resume`.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import msgspec
import tomli_w

from rollout.errors import ConfigError, UsageError
from rollout.records import FailureKind, Rollout
from rollout.trajectory import LOGPROBS, Logprobs, TokenIds
from rollout.transport import IDS

CONFIG, ROLLOUTS, SUMMARY, EVENTS = "config.toml", "rollouts.jsonl", "summary.json", "events.log"


def _enc_hook(value: Any) -> Any:
    if isinstance(value, array):
        if value.typecode == LOGPROBS:
            # JSON has no NaN: a logprob that the server could not give is null.
            return [None if math.isnan(item) else item for item in value]
        return value.tolist()
    raise NotImplementedError(type(value).__name__)


def _dec_hook(kind: Any, value: Any) -> Any:
    if kind is Logprobs:
        return Logprobs(LOGPROBS, [math.nan if item is None else item for item in value])
    if kind is TokenIds:
        return TokenIds(IDS, value)
    raise NotImplementedError(str(kind))


_ENCODER = msgspec.json.Encoder(enc_hook=_enc_hook)
_DECODER = msgspec.json.Decoder(Rollout, dec_hook=_dec_hook)


def encode_rollout(rollout: Rollout) -> bytes:
    """One line, without its end."""
    return _ENCODER.encode(rollout)


def decode_rollout(line: bytes) -> Rollout:
    """Reads a line. Raises msgspec.DecodeError."""
    return _DECODER.decode(line)


def read_rollouts(folder: Path | str) -> Iterator[Rollout]:
    """The rollouts of a run folder, in the order in which they ended. A torn last line is passed over.

    Raises UsageError for a folder that is none, and for a line in the middle that cannot be read.
    """
    path = Path(folder) / ROLLOUTS
    if not path.is_file():
        raise UsageError(f"{str(folder)!r} is not a run folder: it has no {ROLLOUTS}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode_rollout(line)
            except msgspec.DecodeError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error


def finished_members(folder: Path) -> set[tuple[int, int]]:
    """(task index, member) of the rollouts that need not be played again: those cut short by a stop must."""
    return {
        (rollout.task_index, rollout.member)
        for rollout in read_rollouts(folder)
        if rollout.failure is None or rollout.failure.kind is not FailureKind.CANCELLED
    }


class RunFolder:
    """A run's folder, open for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<RunFolder {self.path}>"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """A new folder. Raises UsageError where it cannot be written or holds a run already."""
        if (path / ROLLOUTS).exists():
            raise UsageError(f"{str(path)!r} holds a run already: give --resume to go on with it, or another -o")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / CONFIG).write_text(tomli_w.dumps(_without_none(config)))
            folder = cls(path)
            folder._file = (path / ROLLOUTS).open("ab")
        except OSError as error:
            raise UsageError(
                f"cannot write the run folder {str(path)!r}: {error.strerror}; choose another by -o"
            ) from error
        return folder

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """An existing folder, to be appended to; a torn last line is cut off."""
        check_resumable(path)
        folder = cls(path)
        try:
            folder._file = (path / ROLLOUTS).open("r+b")
        except OSError as error:
            raise UsageError(f"cannot write the run folder {str(path)!r}: {error.strerror}") from error
        _cut_torn_line(folder._file)
        return folder

    async def write(self, rollout: Rollout) -> None:
        """Appends a rollout and flushes it to the disk, off the event loop."""
        async with self._lock:  # lines keep their order, and never mix
            await anyio.to_thread.run_sync(self._write, rollout)

    def _write(self, rollout: Rollout) -> None:
        assert self._file is not None, "the run folder is closed"
        self._file.write(encode_rollout(rollout) + b"\n")
        self._file.flush()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json whole or not at all."""
        draft = self.path / f".{SUMMARY}.{os.getpid()}"
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
        draft.replace(self.path / SUMMARY)

    def close(self) -> None:
        """Every write was flushed; what could not be written has been said by `write`."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # it tries the failed write again
                file.close()


def check_resumable(path: Path) -> None:
    """Raises UsageError for a folder without a run."""
    if not (path / ROLLOUTS).is_file():
        raise UsageError(f"{str(path)!r} is not a run folder, so there is nothing to resume: it has no {ROLLOUTS}")


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run. Raises UsageError."""
    try:
        return msgspec.toml.decode((path / CONFIG).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"cannot read {path / CONFIG}: {error}") from error


def refuse_other_settings(path: Path, settings: Mapping[str, Any], ignored: frozenset[str]) -> None:
    """Raises ConfigError where a resumed run would mean something else, naming what differs."""
    before, now = read_config(path), _without_none(settings)
    keys = sorted((before.keys() | now.keys()) - ignored)
    differing = [
        f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in keys if before.get(key) != now.get(key)
    ]
    if differing:
        raise ConfigError(f"{str(path)!r} was played with other settings; {'; '.join(differing)}")


def default_path(env: str, model: str) -> Path:
    """runs/<env>--<model>--<time>, which does not exist yet."""
    names = [Path(part.rpartition(":")[2] or part).name.replace(" ", "_") for part in (env, model)]
    stem = f"{names[0]}--{names[1]}--{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 1
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


def _cut_torn_line(file: IO[bytes]) -> None:
    """Truncates behind the last whole line, and stands there."""
    size = file.seek(0, os.SEEK_END)
    at = size
    while at > 0:
        start = max(0, at - 65_536)
        file.seek(start)
        newline = file.read(at - start).rfind(b"\n")
        if newline >= 0:
            at = start + newline + 1
            break
        at = start
    file.truncate(at)
    file.seek(at)


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not set is left out."""
    if isinstance(value, Mapping):
        return {str(key): _without_none(item) for key, item in value.items() if item is not None}
    return value
