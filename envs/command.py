"""Any program that asks a model, as an agent: Claude Code, Codex, mini-swe-agent, a script of one's own.

    rollout run command -a command='python agent.py --url {openai_base_url} {task[question]}' --tasks tasks.jsonl

Each task starts the program in a folder of its own. The model's address and key are in the variables that such programs
read, and in the command where it says so. A sandbox is part of the command: `docker run ...`, `bwrap ...`, `ssh ...`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from rollout.agent import Agent, Endpoint, Model, Outcome, Task
from rollout.door import Refused, number, plain
from rollout.errors import ConfigError
from rollout.process.imports import import_file, import_module

#: Variables of ours that a program is given, where it is not told otherwise: no key of the run's own is among them.
ALLOWED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TERM", "TMPDIR")

#: How long a program may take to leave once it is asked to, seconds.
LEAVE_S = 3.0

#: Longer values are in the task's file only: the kernel takes 128 KiB for one variable.
_LONGEST_VARIABLE = 32_000

#: Bytes of the end of a program's output, which may be a reward.
_LONGEST_END = 65_536

#: Bytes of a file that holds a reward.
_LARGEST_REWARD = 1_000_000

#: `{name}`, and `{task[key]}` with as many keys as it takes.
_FIELD = re.compile(r"\{(base_url|openai_base_url|api_key|model|folder|task)((?:\[[^\]\[{}]+\])*)\}")
_KEY = re.compile(r"\[([^\]]+)\]")


class ProgramFailed(Exception):
    """The program, or what judges it, did not do what it was to do."""


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """A program that has ended."""

    status: int
    """Its exit status; below 0 the signal that ended it."""
    output: str
    error: str
    folder: Path
    """Where it ran. It is removed after the reward, unless it is kept."""
    end: str = ""
    """The last 64 kB of its output, however long that is."""


class Command(Agent):
    """Start a program for each task, and have it ask the model over HTTP; the reward comes from what judges it."""

    def __init__(
        self,
        command: str,
        reward_command: str = "",
        reward: str = "",
        reward_file: str = "",
        timeout_s: float = 600.0,
        output_bytes: int = 1_000_000,
        files: str = "",
        keep: str = "",
        env: str = "",
        check: bool = True,
    ) -> None:
        """The arguments of `-a`.

        `command` is split as a shell would, and then no shell sees it: `{base_url}`, `{openai_base_url}`, `{api_key}`,
        `{model}`, `{folder}`, `{task}` (its JSON) and `{task[key]}` are each within one argument. The reward comes from
        one of: `reward_command`, run in the same folder, whose last line is a number or
        `{"reward": 1, "metrics": {}, "rewards": {}}`; `reward`, a function `file.py:name` or `module:name` of the task
        and a `Ran`; `reward_file`, a file in the folder that holds what the last line would. Without any it is 1 where
        the program ended with status 0.

        `timeout_s` bounds the program and what judges it, each. Of either's output the first `output_bytes` are kept.
        `files` is a folder whose files each task's has, `keep` one in which the tasks' folders stay. `env` names
        further variables that the program is given, with commas. A status other than 0 is a failure unless `check` is
        false, or the rollout has reached a limit, which the program was told. Raises ConfigError.
        """
        self.notes: dict[str, str] = {}
        self.command, self.reward_command = _split("command", command), _split("reward_command", reward_command)
        if not self.command:
            raise ConfigError("command is empty: name the program to start")
        if sum(map(bool, (reward_command, reward, reward_file))) > 1:
            raise ConfigError("give one of reward_command, reward and reward_file: a reward comes from one place")
        if timeout_s <= 0 or output_bytes < 0:
            raise ConfigError(f"timeout_s and output_bytes must be above 0, not {timeout_s:g} and {output_bytes}")
        if files and not Path(files).is_dir():
            raise ConfigError(f"files={files!r} is no folder")
        if files and os.path.lexists(Path(files) / "task.json"):
            raise ConfigError(f"files={files!r} has a task.json, where each program finds its task: rename that file")
        self.reward_file, self.timeout_s, self.output_bytes, self.check = reward_file, timeout_s, output_bytes, check
        self.files, self.keep = files, keep
        self.allowed = (*ALLOWED, *(name.strip() for name in env.split(",") if name.strip()))
        self._judge = _function(reward) if reward else None

    async def run(self, task: Task, model: Model) -> Outcome:
        """Starts the program, waits for its end, and has it judged."""
        endpoint = model.endpoint
        async with self._folder() as folder:
            (folder / "task.json").write_bytes(msgspec.json.encode(task))
            ran = await self._ran("", self.command, task, endpoint, folder)
            if ran.status < 0 or (self.check and ran.status and model.limit is None):
                raise ProgramFailed(f"{self.command[0]} {_how_it_ended(ran)}")
            outcome = await self._judged(ran, task, endpoint)
        outcome.metrics = {"exit_status": float(ran.status), **outcome.metrics}
        return outcome

    async def _judged(self, ran: Ran, task: Task, endpoint: Endpoint) -> Outcome:
        if self._judge is not None:
            judge = self._judge
            with anyio.move_on_after(self.timeout_s):
                given = await anyio.to_thread.run_sync(lambda: judge(task, ran), abandon_on_cancel=True)
                return _outcome("the reward function", await given if hasattr(given, "__await__") else given)
            raise ProgramFailed(f"the reward function took longer than {self.timeout_s:g} s (timeout_s)")
        if self.reward_command:
            judged = await self._ran("reward ", self.reward_command, task, endpoint, ran.folder)
            if judged.status:
                raise ProgramFailed(f"reward_command {_how_it_ended(judged)}")
            return _parsed("the last line of reward_command", (judged.end.strip().splitlines() or [""])[-1])
        if self.reward_file:
            return _parsed(self.reward_file, await anyio.to_thread.run_sync(_read, ran.folder, self.reward_file))
        return Outcome(reward=float(ran.status == 0))

    @contextlib.asynccontextmanager
    async def _folder(self) -> AsyncIterator[Path]:
        """A folder of the task's own."""
        made = await anyio.to_thread.run_sync(self._make_folder)
        try:
            if self.files:
                await anyio.to_thread.run_sync(lambda: shutil.copytree(self.files, made, dirs_exist_ok=True))
            yield made
        finally:
            if not self.keep:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(lambda: shutil.rmtree(made, ignore_errors=True))

    def _make_folder(self) -> Path:
        if self.keep:
            Path(self.keep).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="rollout-", dir=self.keep or None)).resolve()

    async def _ran(self, what: str, command: list[str], task: Task, endpoint: Endpoint, folder: Path) -> Ran:
        """Runs a program to its end; its whole process group ends with it. Raises ProgramFailed."""
        arguments = [_filled(argument, task, endpoint, folder) for argument in command]
        output, errors = await _Kept.open(self.output_bytes), await _Kept.open(self.output_bytes)
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                cwd=folder,
                env=self._variables(task, endpoint, folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output.end,
                stderr=errors.end,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            await _close(output, errors)
            raise ProgramFailed(f"{what or 'command '}cannot start {command[0]!r}: {error}") from error
        try:
            with anyio.move_on_after(self.timeout_s) as limit:
                status = await process.wait()
            if limit.cancelled_caught:
                raise ProgramFailed(f"{what}{command[0]} took longer than {self.timeout_s:g} s (timeout_s)")
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
                await _close(output, errors)
                self.notes |= {f"{what}output": output.text, f"{what}error": errors.text}
        return Ran(status=status, output=output.text, error=errors.text, folder=folder, end=output.end_text)

    def _variables(self, task: Task, endpoint: Endpoint, folder: Path) -> dict[str, str]:
        """What a program finds: what is allowed of ours, the model's address and key, and the task."""
        found = {name: os.environ[name] for name in self.allowed if name in os.environ}
        found |= {
            "OPENAI_BASE_URL": endpoint.openai_base_url,
            "OPENAI_API_KEY": endpoint.api_key,
            "ANTHROPIC_BASE_URL": endpoint.base_url,
            "ANTHROPIC_API_KEY": endpoint.api_key,
        }
        if endpoint.model:
            found |= {"OPENAI_MODEL": endpoint.model, "ANTHROPIC_MODEL": endpoint.model}
        for key, value in task.items():
            name = "ROLLOUT_TASK_" + re.sub(r"\W", "_", key.upper(), flags=re.ASCII)
            if "\0" not in (text := _text(value)) and len(text) < _LONGEST_VARIABLE:
                found[name] = text
        # Last: a task may have a key of that name, too, which is in the file.
        return found | {"ROLLOUT_TASK_FILE": str(folder / "task.json")}


class _Kept:
    """The beginning and the end of what a program writes. The rest is read, too, so that it does not wait, and counted.

    The pipe is ours: asyncio's own are waited for as long as anybody holds them, such as a server that the program has
    left in the background.
    """

    def __init__(self, most: int, end: int, pipe: asyncio.ReadTransport, stream: asyncio.StreamReader) -> None:
        self.end = end
        """The program's end of the pipe."""
        self._most, self._kept, self._count = most, bytearray(), 0
        self._last = b""
        self._pipe = pipe
        self._reading = asyncio.ensure_future(self._read(stream))

    @classmethod
    async def open(cls, most: int) -> _Kept:
        read, write = os.pipe()
        stream = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(read, "rb", 0)
        )
        return cls(most, write, pipe, stream)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(65_536):
            self._count += len(chunk)
            self._kept += chunk[: max(0, self._most - len(self._kept))]
            self._last = (self._last + chunk)[-_LONGEST_END:]

    async def close(self) -> None:
        """Once the program has ended. What left its process group may hold the pipe still: that is not waited for."""
        os.close(self.end)
        await asyncio.wait([self._reading], timeout=LEAVE_S)
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self._pipe.close()

    @property
    def text(self) -> str:
        text = self._kept.decode("utf-8", "replace")
        left_out = self._count - len(self._kept)
        return f"{text}\n[{left_out} bytes left out]" if left_out else text

    @property
    def end_text(self) -> str:
        return self._last.decode("utf-8", "replace")


async def _close(*outputs: _Kept) -> None:
    await asyncio.gather(*(output.close() for output in outputs))


def _read(folder: Path, name: str) -> str:
    """A file that a program has left in its folder, which may be anything. Raises ProgramFailed."""
    path = (folder / name).resolve()
    try:
        if not path.is_relative_to(folder):
            raise OSError("it leads out of the folder")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("it is no regular file")
            if len(found := file.read(_LARGEST_REWARD + 1)) > _LARGEST_REWARD:
                raise OSError(f"it has more than {_LARGEST_REWARD} bytes")
        return found.decode()
    except (OSError, ValueError) as error:
        raise ProgramFailed(f"the program left no {name!r} that can be read: {error}") from error


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a program's process group: what it has started is not left behind."""
    _signal(process.pid, signal.SIGTERM)
    with anyio.move_on_after(LEAVE_S):
        await process.wait()
    _signal(process.pid, signal.SIGKILL)
    await process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _split(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text!r:.200} cannot be split into arguments: {error}") from error


def _filled(argument: str, task: Task, endpoint: Endpoint, folder: Path) -> str:
    """An argument with its fields' values. Raises ProgramFailed for a key that the task has not."""
    values: Mapping[str, Any] = {
        "base_url": endpoint.base_url,
        "openai_base_url": endpoint.openai_base_url,
        "api_key": endpoint.api_key,
        "model": endpoint.model,
        "folder": str(folder),
        "task": task,
    }

    def value(match: re.Match[str]) -> str:
        found = values[match[1]]
        for key in _KEY.findall(match[2]):
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ProgramFailed(f"the task has no {match[0]}, which the command wants") from error
        return _text(found)

    return _FIELD.sub(value, argument)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _how_it_ended(ran: Ran) -> str:
    last = (ran.error.strip() or ran.output.strip()).splitlines()[-1:]
    how = f"was ended by signal {-ran.status}" if ran.status < 0 else f"ended with status {ran.status}"
    return f"{how}: {last[0]:.300}" if last else how


def _function(spec: str) -> Callable[[Task, Ran], Any]:
    place, _, name = spec.rpartition(":")
    if not place:
        raise ConfigError(f"reward={spec!r} must be file.py:function or module:function")
    module = import_file(place) if place.endswith(".py") else import_module(place)
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{place} has no function {name!r}")
    function: Callable[[Task, Ran], Any] = found
    return function


def _parsed(what: str, text: str) -> Outcome:
    try:
        given = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ProgramFailed(f"{what} is neither a number nor JSON: {text!r:.200}") from error
    return _outcome(what, given)


def _outcome(what: str, given: Any) -> Outcome:
    if isinstance(given, Outcome):
        return given
    if isinstance(given, Mapping) and "reward" not in given:
        raise ProgramFailed(
            f"{what} gave no reward: its keys are {sorted(map(str, given))}, and 'reward' is none of them"
        )
    if (given["reward"] if isinstance(given, Mapping) else given) is None:
        raise ProgramFailed(f"{what} gave no reward: it is null")
    try:
        # numpy's and torch's numbers are numbers, as wherever a reward comes in.
        one = number(given, what) if hasattr(given, "item") else given
        return msgspec.convert(plain(given if isinstance(given, Mapping) else {"reward": one}), Outcome, strict=True)
    except (msgspec.ValidationError, Refused) as error:
        raise ProgramFailed(f"{what} gave no reward: {error}") from error
