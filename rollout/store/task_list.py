"""Which tasks a run plays: the environment's own, or a file's, each made well-formed and kept as a line of JSON.

A run's tasks are fixed before anything is played. They lie in its folder (`tasks.jsonl`, line by line in the order of
their indices), so that the run goes on with the same ones, whatever became of the file or of the environment. Where
more are asked for, tasks are compared by what they hold, never by their place: an environment that shuffles gives the
same tasks in other places. Equal tasks are legitimate and are counted.
"""

from __future__ import annotations

import hashlib
import json
import threading
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from rollout import door, registry
from rollout.env import Task
from rollout.errors import ConfigError, UserCodeFailed
from rollout.log import get_logger
from rollout.participant import Participant
from rollout.store.settings import DEFAULT_TASKS, RunSettings

_log = get_logger(__name__)


class TaskList:
    """Tasks as lines of JSON, which take a third of the memory; each is decoded when it is played."""

    def __init__(self, lines: Iterable[bytes] = ()) -> None:
        self.lines = list(lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Task]:
        return map(_decoded, self.lines)

    def __getitem__(self, index: int) -> Task:
        return _decoded(self.lines[index])

    def __repr__(self) -> str:
        return f"<TaskList {len(self)} tasks>"

    def keys(self) -> list[bytes]:
        """What each task holds, in 16 bytes: equal tasks have equal keys."""
        return [key_of(task) for task in self]


def key_of(task: Task) -> bytes:
    """Equal for equal tasks, in whatever order their keys are."""
    return hashlib.blake2b(msgspec.json.encode(task, order="deterministic"), digest_size=16).digest()


def load_tasks(settings: RunSettings, make_env: Callable[[], Participant]) -> TaskList:
    """The tasks that the settings ask for. Raises ConfigError, naming the environment or the file and its line.

    It calls user code, so not on an event loop. The environment is made even where a file has the tasks: one that
    cannot be made is found out before anything is played. One whose class lists tasks is not: it may be heavy.
    """
    check_size(settings)
    env = try_env(make_env, settings.env)
    count = settings.num_tasks
    if settings.tasks is not None:
        tasks = tasks_of_file(settings.tasks, count)
        asked, source = count or 0, settings.tasks
    else:
        asked, source = DEFAULT_TASKS if count is None else count, settings.env
        tasks = _tasks_of_env(settings.env, env, asked, settings.seed)
    if len(tasks) < asked:
        _log.warning("fewer_tasks", source=source, asked=asked, given=len(tasks))
    return tasks


def try_env(make_env: Callable[[], Participant], spec: str) -> Participant | type[Participant]:
    """What lists the tasks: an environment, or its class where that can. Raises ConfigError where making one raises."""
    kind = registry.lists_tasks(make_env)
    env: Participant | type[Participant] = kind or _guarded(lambda: registry.made(make_env), spec, "making it")
    return env


def check_size(settings: RunSettings) -> None:
    """Raises ConfigError for a run of nothing."""
    if settings.num_tasks is not None and settings.num_tasks < 1:
        raise ConfigError(f"-n must be 1 or more, not {settings.num_tasks}")
    if settings.rollouts_per_task < 1:
        raise ConfigError(f"-r must be 1 or more, not {settings.rollouts_per_task}")


def tasks_of_file(file: str, count: int | None) -> TaskList:
    """The first tasks of a JSONL file, which is read no further. Raises ConfigError."""
    tasks = TaskList(_line(task) for task in islice(_file_tasks(file), count))
    if not tasks.lines:
        raise ConfigError(f"{file!r} has no tasks: each line is one, a JSON object")
    return tasks


def merged(known: Mapping[int, Hashable], wanted: TaskList, name: Callable[[Task], Hashable]) -> TaskList:
    """The wanted tasks: those that are known at their known indices, the others in order at the indices left.

    `known` has the names of tasks by index, as `name` gives them. Raises NotAmong for the first that is not wanted.
    """
    lines_of: defaultdict[Hashable, deque[bytes]] = defaultdict(deque)
    names = [name(task) for task in wanted]
    for task_name, line in zip(names, wanted.lines, strict=True):
        lines_of[task_name].append(line)
    lines: list[bytes | None] = [None] * len(wanted)
    for index in sorted(known):
        if index >= len(wanted) or not lines_of[known[index]]:
            raise NotAmong(index)
        lines[index] = lines_of[known[index]].popleft()
    taken = Counter(known.values())
    new = deque[bytes]()
    for task_name, line in zip(names, wanted.lines, strict=True):
        if taken[task_name]:
            taken[task_name] -= 1
        else:
            new.append(line)
    return TaskList(new.popleft() if line is None else line for line in lines)


class NotAmong(Exception):
    """A task that was played is not among those that are wanted."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def _decoded(line: bytes) -> dict[str, Any]:
    task: dict[str, Any] = msgspec.json.decode(line)
    return task


def _line(task: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(task)


def _tasks_of_env(spec: str, env: Participant | type[Participant], asked: int, seed: int) -> TaskList:
    """Draws so many tasks and no more: there may be no end of them."""
    ask: Any = env.tasks
    found = _guarded(lambda: ask(asked, seed), spec, "tasks()")
    if not isinstance(found, Iterable):
        if hasattr(found, "close"):
            found.close()  # a coroutine that nobody awaits would be warned of
        raise ConfigError(f"{spec}: tasks() gave {door.type_name(found)}, not an iterable of tasks")
    drawn = _guarded(lambda: list(islice(found, asked)), spec, "tasks()")
    if not drawn:
        raise ConfigError(f"{spec}: tasks() gave none of the {asked} tasks that were asked for")
    try:
        return TaskList(_line(door.task(task, index)) for index, task in enumerate(drawn))
    except ConfigError as error:
        raise ConfigError(f"{spec}: {error}") from error


def _guarded(call: Callable[[], Any], spec: str, what: str) -> Any:
    """Calls user code. Whatever it raises is one line, with the place in the environment's file."""
    try:
        return call()
    except ConfigError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # control-C; in another thread nobody but user code raises it
        raise UserCodeFailed(
            f"{spec}: {what} raised {door.type_name(error)}: {door.error_text(error)}{_place(spec, error)}"
        ) from error


def _place(spec: str, error: BaseException) -> str:
    """Where it was raised: in the environment's own file where its frames are there, else the last frame."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is `_guarded`
    file = Path(spec.rpartition(":")[0]).name
    own = [frame for frame in frames if file and Path(frame.filename).name == file] or frames[1:]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def _file_tasks(file: str) -> Iterator[dict[str, Any]]:
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    line = _without_mark(file, line)
                if line.strip():
                    yield _task_of_line(f"{file}, line {number}", line, number - 1)
    except OSError as error:
        raise ConfigError(f"cannot read the tasks of {file!r}: {error.strerror}") from error


def _without_mark(file: str, line: bytes) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{file!r} is UTF-16: save it as UTF-8")
    if line.startswith(b"\x1f\x8b"):
        raise ConfigError(f"{file!r} is compressed: unpack it with gunzip first")
    return line.removeprefix(b"\xef\xbb\xbf")


def _task_of_line(place: str, line: bytes, index: int) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: not UTF-8: {error.reason} at byte {error.start}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        value = _by_python(line)  # it reads NaN and half an emoji, which the door judges
        if value is None:
            raise ConfigError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "null" if value is None else f"of type {door.type_name(value)}"
        raise ConfigError(f"{place}: it is {kind}; each line is one task, a JSON object")
    try:
        return door.task(value, index)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _by_python(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
