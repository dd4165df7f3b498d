"""Where each rollout of a run folder lies: the file is read once, and a rollout when it is wanted.

A folder of 100,000 rollouts has gigabytes of them. The index has a hundred bytes of each: the place of its line, and
what is sorted and chosen by. Of a member that was played again after a stop, the last record counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from rollout.errors import UsageError
from rollout.records import FailureKind, Group, Rollout
from rollout.store.folder import READ_ERRORS, decode_rollout, decoded_lines, rollouts_of
from rollout.store.pictures import Shown


class _HeadFailure(msgspec.Struct, gc=False):
    kind: str = ""


class _Head(msgspec.Struct, gc=False):
    """What is read of a line for the index; the rest is passed over."""

    id: str
    task_id: str
    task_index: int
    member: int
    reward: float | None = 0.0
    reward_known: bool = True
    failure: _HeadFailure | None = None
    stop: str | None = None


class Located(msgspec.Struct, frozen=True, gc=False):
    """One record, and where it lies."""

    offset: int
    """Of the line's first byte."""
    id: str
    task_id: str
    task_index: int
    member: int
    reward: float
    failure: str
    """The kind of its failure, "" where it did not fail."""
    reward_known: bool = True

    @property
    def finished(self) -> bool:
        """Whether it need not be played again: what a stop cut short must, and what never was played."""
        return self.failure != FailureKind.CANCELLED


class RunIndex:
    """The rollouts of a run folder by (task index, member), open for reading."""

    def __init__(self, folder: Path) -> None:
        """Reads the places. Raises UsageError as `read_rollouts` does."""
        self.folder = folder
        self._path = rollouts_of(folder)
        self._shown = Shown(folder)
        self._file: IO[bytes] = self._path.open("rb")
        self.records = 0
        """Whole lines."""
        self.end = 0
        """Behind the last whole line that can be read."""
        self.last: dict[tuple[int, int], Located] = {}
        try:
            self._scan()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.last)

    def __repr__(self) -> str:
        return f"<RunIndex {len(self)} rollouts of {self.folder}>"

    def read(self, located: Located) -> Rollout:
        """One rollout. Raises UsageError."""
        self._file.seek(located.offset)
        try:
            return decode_rollout(self._file.readline(), self.folder, self._shown)
        except READ_ERRORS as error:
            raise UsageError(f"{self._path}: the record of {located.id} cannot be read: {error}") from error

    def ordered(self) -> list[Located]:
        """By task and member."""
        return [self.last[key] for key in sorted(self.last)]

    def groups(self) -> Iterator[Group]:
        """Task by task; the members of one are in memory."""
        for task_index, members in groupby(self.ordered(), key=lambda located: located.task_index):
            rollouts = [self.read(located) for located in members]
            first = rollouts[0]
            yield Group(task_id=first.task_id, task_index=task_index, task=first.task, rollouts=rollouts)

    def _scan(self) -> None:
        decode: Any = msgspec.json.Decoder(_Head).decode
        ids: dict[str, str] = {}
        offset = 0
        for line, head in decoded_lines(self._file, self._path, decode):
            task_id = ids.setdefault(head.task_id, head.task_id)  # a group's members share it
            failure = head.failure.kind if head.failure else "" if head.reward is not None else FailureKind.ENVIRONMENT
            self.last[head.task_index, head.member] = Located(
                offset,
                head.id,
                task_id,
                head.task_index,
                head.member,
                head.reward or 0.0,
                str(failure),
                head.reward_known,
            )
            offset += len(line)
            self.records, self.end = self.records + 1, offset
