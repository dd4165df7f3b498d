"""What a run is about to play: everything, or what is missing of a run that ended early.

A run goes on with the tasks that lie in its folder. Where more are asked for (`-n`, `--tasks`), those that it has are
found among them by what they hold, and the others are played behind them; where one of those that it has is not among
them, that is said. A run may grow, not shrink.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rollout.env import Task
from rollout.errors import ConfigError, UsageError
from rollout.log import get_logger
from rollout.participant import Participant
from rollout.records import Rollout
from rollout.schedule.scheduler import task_id
from rollout.store import folder as store
from rollout.store.config import (
    FolderConfig,
    config_of,
    missing_secrets,
    read_folder_config,
    refuse_other_settings,
)
from rollout.store.index import Located, RunIndex
from rollout.store.settings import RunSettings, absolute_paths, given_settings, overlaid, to_settings
from rollout.store.task_list import NotAmong, TaskList, check_size, key_of, load_tasks, merged, tasks_of_file, try_env

_log = get_logger(__name__)


def go_on(folder: Path | str) -> str:
    """The line that says how a run with something missing goes on."""
    return f"go on with: rollout run --resume -o {shlex.quote(str(Path(folder).absolute()))}"


def resumed_settings(folder: Path, file: str | None, flags: Mapping[str, Any]) -> tuple[RunSettings, frozenset[str]]:
    """A folder's settings under those that a file and flags give, and the names of those given.

    Raises UsageError for a folder that is none, and for a setting that would make another run of it.
    """
    store.check_resumable(folder)
    before, given = read_folder_config(folder), given_settings(file, flags)
    if before.format == 1 and "env" not in given:
        _check_env_is_here(folder, before)
    settings = to_settings(absolute_paths(overlaid(before.settings, given)), str(folder))
    refuse_other_settings(folder, before, settings)
    then = to_settings(before.settings, str(folder))
    if settings.rollouts_per_task < then.rollouts_per_task:
        raise ConfigError(
            f"{str(folder)!r} has {then.rollouts_per_task} rollouts per task, and -r {settings.rollouts_per_task} asks "
            "for fewer: a run can grow, not shrink; leave -r out, or give another -o"
        )
    if missing := missing_secrets(before, settings):
        _log.warning(
            "secrets_are_not_kept", settings=", ".join(missing), remedy="give them again, where they are needed"
        )
    return settings, frozenset(given)


def _check_env_is_here(folder: Path, before: FolderConfig) -> None:
    """Format 1 kept the name of an environment's file as it was typed, from a place that is not known."""
    file, _, name = str(before.settings.get("env", "")).rpartition(":")
    if file.endswith(".py") and not Path(file).expanduser().is_file():
        raise ConfigError(
            f"{str(folder)!r} names its environment {file}:{name} from another place: rollout run "
            f"PATH/{Path(file).name}:{name} --resume -o {shlex.quote(str(folder))}"
        )


class Plan:
    """A run's tasks, what of them is on disk already, and its folder. Enter it: it holds the folder's lock."""

    def __init__(self, settings: RunSettings, tasks: TaskList, index: RunIndex | None = None) -> None:
        self.tasks = tasks
        self.skip: set[tuple[int, int]] = set()
        """(task index, member) of what need not be played."""
        self._settings = settings
        self._index = index
        self._folder: store.RunFolder | None = None
        if index is not None:
            self.skip = {key for key, located in index.last.items() if located.finished}

    def __repr__(self) -> str:
        return f"<Plan {len(self.tasks)} tasks, {len(self.skip)} rollouts on disk>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._folder is not None:
            self._folder.close()
        if self._index is not None:
            self._index.__exit__(kind, error, tb)

    @property
    def missing(self) -> int:
        """Rollouts that are to be played."""
        members = self._settings.rollouts_per_task
        played = sum(index < len(self.tasks) and member < members for index, member in self.skip)
        return len(self.tasks) * members - played

    @property
    def tasks_on_disk(self) -> int:
        """Tasks of which anything is on disk."""
        return len({index for index, _ in self.skip})

    def folder(self, output: Path | None, model: str, here: Path | None = None) -> store.RunFolder:
        """The folder to write to: a new one, beneath `here` where none is named, or that of the run which goes on.

        Raises UsageError.
        """
        config = config_of(self._settings)
        if self._index is not None:
            assert self._folder is not None
            self._folder.append(config, self.tasks, self._index.end)
        else:
            path = output or store.new_path(self._settings.env, model, here)
            self._folder = store.RunFolder.create(path, config, self.tasks)
        return self._folder

    def on_disk(self) -> Iterator[Rollout]:
        """What an earlier run has played, in the order of the file."""
        if self._index is not None:
            finished = [located for located in self._index.last.values() if located.finished]
            for located in sorted(finished, key=lambda located: located.offset):
                yield self._index.read(located)

    @classmethod
    def new(cls, settings: RunSettings, make_env: Callable[[], Participant]) -> Plan:
        """All is to be played. Calls user code. Raises ConfigError."""
        return cls(settings, load_tasks(settings, make_env))

    @classmethod
    def resumed(
        cls, path: Path, settings: RunSettings, given: frozenset[str], make_env: Callable[[], Participant]
    ) -> Plan:
        """What is missing of a run is to be played. Calls user code. Raises UsageError, also where it is being written.

        `given` are the names of the settings that were given anew.
        """
        check_size(settings)
        folder = store.RunFolder.resume(path)
        try:
            index = RunIndex(folder.path)
            try:
                tasks = _tasks(folder.path, settings, given, index, make_env)
                plan = cls(settings, tasks, index)
                if plan.missing:
                    try_env(make_env, settings.env)
            except BaseException:
                index.__exit__(None, None, None)
                raise
        except BaseException:
            folder.close()
            raise
        plan._folder = folder
        return plan


def _tasks(
    path: Path, settings: RunSettings, given: frozenset[str], index: RunIndex, make_env: Callable[[], Participant]
) -> TaskList:
    before = read_folder_config(path)
    if not (path / store.TASKS).is_file():  # format 1
        known: dict[int, Hashable] = {located.task_index: _name(located) for located in index.last.values()}
        wanted = load_tasks(settings, make_env)
        return _grown(path, settings, known, wanted, lambda task: task_id(0, task).partition("-")[2])
    own = tasks_of_file(str(path / store.TASKS), None)
    for located in index.last.values():
        at = located.task_index
        if at >= len(own) or task_id(at, own[at]) != located.task_id:
            raise UsageError(
                f"{path / store.TASKS} was changed: the run has played {located.task_id} as task {at}, which is not "
                "there; put the file back as it was"
            )
    then = before.settings.get("num_tasks")
    if "tasks" in given or ("num_tasks" in given and settings.num_tasks != then):
        wanted = load_tasks(settings, make_env)
        return _grown(path, settings, dict(enumerate(own.keys())), wanted, key_of)
    if settings.tasks is not None and _is_other(settings, own):
        _log.warning(
            "tasks_file_changed", file=settings.tasks, remedy="the run's own are played; --tasks plays the file's"
        )
    return own


def _is_other(settings: RunSettings, own: TaskList) -> bool:
    """Whether the file that a run's tasks came from holds others by now; not where it is gone or cannot be read."""
    assert settings.tasks is not None
    try:
        return tasks_of_file(settings.tasks, settings.num_tasks).keys() != own.keys()
    except ConfigError:
        return False


def _grown(
    path: Path,
    settings: RunSettings,
    known: Mapping[int, Hashable],
    wanted: TaskList,
    name: Callable[[Task], Hashable],
) -> TaskList:
    """The wanted tasks with those that are known at their places. Raises ConfigError."""
    if len(wanted) < len(known):
        raise ConfigError(
            f"{str(path)!r} has {len(known)} tasks, and {len(wanted)} are asked for: a run can grow, not shrink; leave "
            "-n and --tasks out to go on with its own, or give another -o"
        )
    try:
        return merged(known, wanted, name)
    except NotAmong as other:
        source = settings.tasks or settings.env
        raise ConfigError(
            f"{str(path)!r} was played with other tasks: its task {other.index} is not among the {len(wanted)} of "
            f"{source}; leave -n and --tasks out to go on with its own, or give another -o"
        ) from None


def _name(located: Located) -> str:
    """A task's name without its place."""
    name: str = located.task_id.partition("-")[2]
    return name
