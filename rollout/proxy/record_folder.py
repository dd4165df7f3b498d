"""A recorder's folder: a run's, with a journal beside its rollouts, and what an earlier process has left in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from rollout.errors import UsageError
from rollout.proxy.journal import read_sessions, read_turns, remove_unneeded
from rollout.proxy.journal_lines import Opened
from rollout.proxy.restore import Restored
from rollout.records import Rollout
from rollout.store.config import config_of, read_folder_config, refuse_other_settings
from rollout.store.folder import ROLLOUTS, RunFolder, decode_rollout, new_path
from rollout.store.index import RunIndex
from rollout.store.settings import RunSettings
from rollout.store.task_list import TaskList

#: What a recorder's folder has in place of an environment.
ENV = "proxy"


class Found(msgspec.Struct, kw_only=True):
    """A session that has not ended."""

    opened: Opened
    restored: Restored


class EndedKey(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A key whose session has ended."""

    why: str
    """"" where that was asked for."""
    registered: bool


class RecordFolder:
    """Open for writing, and locked."""

    def __init__(self, run: RunFolder) -> None:
        """Made by `open`."""
        self.left: list[Found] = []
        """Sessions that an earlier process has left."""
        self.places: dict[str, set[str]] = {}
        """Files of turns -> those of these sessions that have any in it."""
        self.ended: dict[str, int] = {}
        """Sessions that have ended -> where their line begins, -1 where they have none."""
        self.ended_keys: dict[str, EndedKey] = {}
        """By the hashes of keys. One that was seen and never asked for a turn is none of them: it may come yet."""
        self.on_rollout: Callable[[Rollout], None] = lambda rollout: None
        """Told, in a thread, of each line that was written."""
        self._run = run
        self._tasks: dict[str, int] = {}
        """Name -> the index of its task."""
        self._members: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<RecordFolder {self.path}, {len(self.ended)} ended>"

    @property
    def path(self) -> Path:
        return self._run.path

    @classmethod
    def open(cls, path: Path | None, settings: RunSettings, model: str) -> RecordFolder:
        """A new folder, or that of a recorder, which goes on. Raises UsageError."""
        if path is None or not (path / ROLLOUTS).exists():
            made = path or new_path(ENV, model)
            return cls(RunFolder.create(made, config_of(settings), TaskList()))
        if read_folder_config(path).settings.get("env") != ENV:
            raise UsageError(f"{str(path)!r} holds a run that is no recorder's: give another -o")
        run = RunFolder.resume(path)
        try:
            refuse_other_settings(path, read_folder_config(path), settings)
            with RunIndex(path) as index:
                run.append(config_of(settings), TaskList(), index.end)
                folder = cls(run)
                folder._read({located.id: located.offset for located in index.last.values()})
        except BaseException:
            run.close()
            raise
        return folder

    def _read(self, lines: dict[str, int]) -> None:
        live: dict[str, Found] = {}
        for line in read_sessions(self.path):
            if isinstance(line, Opened):
                live[line.session] = Found(opened=line, restored=Restored())
                self._tasks[line.task_id] = line.task_index
                self._members[line.task_index] += 1
            elif (found := live.pop(line.session, None)) is not None:
                self._ended(found.opened, lines.get(line.session, -1), line.why)
        for name, turn in read_turns(self.path):
            if (found := live.get(turn.session)) is not None:
                found.restored.add(turn)
                self.places.setdefault(name, set()).add(turn.session)
        remove_unneeded(self.path, self.places)
        self.left = list(live.values())

    def place(self, opened: Opened) -> None:
        """Gives a new session its place among the rollouts: sessions of one name are members of one task's group."""
        opened.task_id = opened.name or opened.session
        opened.task_index = self._tasks.setdefault(opened.task_id, len(self._tasks))
        opened.member = self._members[opened.task_index]
        self._members[opened.task_index] += 1

    async def end(self, opened: Opened, rollout: Rollout | None, why: str, fsync: bool) -> None:
        """A session has ended; without a rollout it leaves nothing. Raises OSError, FolderGone."""
        self._ended(opened, -1 if rollout is None else await self.write(opened, rollout, fsync), why)

    def _ended(self, opened: Opened, begins: int, why: str) -> None:
        self.ended[opened.session] = begins
        if begins >= 0:
            self.ended_keys[opened.key] = EndedKey(why=why, registered=opened.registered)

    async def write(self, opened: Opened, rollout: Rollout, fsync: bool = False) -> int:
        """Writes a session's line as it stands; gives where it begins. Raises OSError, FolderGone."""
        begins = await self._run.write(rollout, fsync=fsync)
        await anyio.to_thread.run_sync(self.on_rollout, rollout)
        return begins

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json. Raises OSError."""
        self._run.write_summary(summary)

    def read(self, session: str) -> Rollout | None:
        """The record of a session that has ended; None where it left none."""
        if (offset := self.ended[session]) < 0:
            return None
        with (self.path / ROLLOUTS).open("rb") as file:
            file.seek(offset)
            return decode_rollout(file.readline(), self.path)

    def check(self) -> None:
        """Sees that the folder is still there. Raises FolderGone."""
        self._run.check()

    def close(self) -> None:
        """Gives the folder back."""
        self._run.close()
