"""Environments that misbehave, one way for each task, and the ledger in which they write it down before they do it.

`PlainZoo` has plain methods, which the engine calls in threads; `AsyncZoo` has asynchronous ones. A task's `kind` names
what its environment does in its second turn; `OUTCOMES` says what must come of it. The ledger is a file of JSON lines
that every process appends to, so what was thrown is known even where the process that threw it was killed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from rollout.chat.messages import Message, user
from rollout.env import Env, MessageLike, Step, Task

#: Where the ledger is: inherited by every process that plays.
LEDGER = "ROLLOUT_SOAK_LEDGER"

#: A process that an environment leaks ends by itself some day, should the soak be killed before it ends it.
LEAKED_S = 1_800

#: How long a call hangs: longer than any deadline, shorter than for ever.
HANG_S = 900.0

#: kind -> what its rollouts end as: "ok", or the failure's (kind, error). None in the error's place is any.
OUTCOMES: dict[str, str | tuple[str, str | None]] = {
    "well": "ok",
    "prints": "ok",
    "chdir": "ok",
    "numpy_reward": "ok",
    "surrogate": "ok",
    "big_int": "ok",
    "starts_process": "ok",
    "leaks_process": "ok",
    "slow_close": "ok",
    "close_raises": "ok",
    "raises": ("environment", "RuntimeError"),
    "raises_surrogate": ("environment", "FileNotFoundError"),
    "str_raises": ("environment", "Mute"),
    "own_timeout": ("environment", "TimeoutError"),
    "exits": ("environment", "SystemExit"),
    "interrupts": ("environment", "KeyboardInterrupt"),
    "group": ("environment", "ExceptionGroup"),
    "no_step": ("environment", None),
    "nan_reward": ("environment", None),
    "nan_metric": ("environment", None),
    "hangs": ("timeout", None),
    # Asynchronous environments only.
    "cancels": ("environment", "CancelledError"),
    "holds_scope": "ok",
    "scope_fails": ("environment", None),
    "leaks_task": "ok",
    "ignores_cancel": ("timeout", None),
}

_ONLY_ASYNC = frozenset({"cancels", "holds_scope", "scope_fails", "leaks_task", "ignores_cancel"})
PLAIN_KINDS = tuple(kind for kind in OUTCOMES if kind not in _ONLY_ASYNC and kind != "well")
ASYNC_KINDS = tuple(kind for kind in OUTCOMES if kind != "well")

#: Of each so many tasks one misbehaves; the others are what a job is mostly made of.
ONE_IN = 4


class Mute(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def note(kind: str, **fields: Any) -> None:
    """Writes a line into the ledger: one write of an append-only file, which no other process's can cut."""
    path = os.environ.get(LEDGER)
    if path is None:
        return
    line = json.dumps({"kind": kind, "pid": os.getpid(), **fields}) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """What was written down so far."""
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)


def tasks_of(kinds: Sequence[str], n: int, seed: int) -> Iterator[Task]:
    """Tasks of which each kind comes as often as each other, and most are well."""
    chance = random.Random(seed)
    for number in range(n):
        kind = kinds[number // ONE_IN % len(kinds)] if number % ONE_IN == ONE_IN - 1 else "well"
        task: dict[str, Any] = {"number": number, "kind": kind, "turns": chance.randint(2, 5)}
        if kind == "big_int":
            task["big"] = 2**80 + number
        yield task


class _Zoo(Env):
    """What both have: a conversation of some turns, and what goes wrong in its second."""

    kind = "well"
    turn = 0
    turns = 1

    def begin(self, task: Task) -> list[MessageLike]:
        self.kind, self.turns, self.number = task["kind"], int(task["turns"]), int(task["number"])
        return [user(f"Task {self.number}. Say something about the sea.")]

    def answer(self) -> Step:
        """The step of an environment that is well."""
        if self.turn < self.turns:
            return Step(messages=[user(f"Go on, and say it otherwise ({self.turn}).")])
        return Step(done=True, reward=1.0, metrics={"turns": self.turn})

    def misbehave(self) -> Any:
        """What goes wrong alike in both; None where nothing does."""
        note(self.kind, number=self.number)
        match self.kind:
            case "raises":
                raise RuntimeError("the simulator is gone")
            case "raises_surrogate":
                raise FileNotFoundError(os.fsdecode(b"caf\xe9.txt"))
            case "str_raises":
                raise Mute
            case "own_timeout":
                raise TimeoutError("the tool's own")
            case "exits":
                sys.exit(3)
            case "interrupts":
                raise KeyboardInterrupt
            case "group":
                raise ExceptionGroup("both", [ValueError("one"), KeyError("two")])
            case "no_step":
                return {"messages": 7}
            case "nan_reward":
                return Step(done=True, reward=math.nan)
            case "nan_metric":
                return Step(done=True, reward=1.0, metrics={"loss": math.inf})
            case "numpy_reward":
                return Step(done=True, reward=np.float32(1.0), metrics={"n": np.int64(3)})  # type: ignore[arg-type, dict-item]  # numpy's numbers are numbers
            case "surrogate":
                return Step(messages=[user(b"caf\xe9".decode("utf-8", "surrogateescape"))])
            case "prints":
                print("DEBUG: an environment prints", flush=True)
                os.write(1, b"and its C library, too\n")
            case "chdir":
                os.chdir("/")
            case "leaks_process":
                leaked = subprocess.Popen(["sleep", str(LEAKED_S)], start_new_session=True)
                note("leaked", leaked=leaked.pid)
            case "starts_process":
                subprocess.run([sys.executable, "-c", "pass"], check=True)
        return None


class PlainZoo(_Zoo):
    """Plain methods, called in threads."""

    def __init__(self, only: str = "") -> None:
        """`only` plays one kind, to look at it."""
        self._kinds = (only,) if only else PLAIN_KINDS

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        return tasks_of(self._kinds, n, seed)

    def reset(self, task: Task) -> list[MessageLike]:
        return self.begin(task)

    def step(self, message: Message) -> Step:
        self.turn += 1
        if self.turn == 2 and self.kind != "well":
            if (instead := self.misbehave()) is not None:
                return instead  # type: ignore[no-any-return]  # some are no steps: that is what they are for
            if self.kind == "hangs":
                time.sleep(HANG_S)
        return self.answer()

    def close(self) -> None:
        if self.kind == "close_raises":
            raise RuntimeError(f"container {self.number:032x} is gone")
        if self.kind == "slow_close":
            time.sleep(2.0)


class AsyncZoo(_Zoo):
    """Asynchronous methods, which live in one task."""

    def __init__(self, only: str = "") -> None:
        """`only` plays one kind, to look at it."""
        self._kinds = (only,) if only else ASYNC_KINDS

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        return tasks_of(self._kinds, n, seed)

    async def reset(self, task: Task) -> list[MessageLike]:
        self.stack = AsyncExitStack()
        opening = self.begin(task)
        if self.kind == "scope_fails":
            note(self.kind, number=self.number)  # it may break before there is a second turn
        if self.kind in ("holds_scope", "scope_fails"):
            await self.stack.enter_async_context(_session(fails=self.kind == "scope_fails"))
        return opening

    async def step(self, message: Message) -> Step:
        self.turn += 1
        await asyncio.sleep(0.01)
        if self.turn == 2 and self.kind != "well":
            if (instead := self.misbehave()) is not None:
                return instead  # type: ignore[no-any-return]  # some are no steps: that is what they are for
            await self._misbehave_async()
        return self.answer()

    async def _misbehave_async(self) -> None:
        match self.kind:
            case "hangs":
                await asyncio.sleep(HANG_S)
            case "cancels":
                raise asyncio.CancelledError
            case "scope_fails":
                await anyio.sleep(5.0)
            case "leaks_task":
                self.leaked = asyncio.create_task(asyncio.sleep(HANG_S))
            case "ignores_cancel":
                until = time.monotonic() + 20.0
                while time.monotonic() < until:
                    try:
                        await asyncio.sleep(1.0)
                    except asyncio.CancelledError:
                        continue

    async def close(self) -> None:
        if self.kind == "close_raises":
            raise RuntimeError(f"container {self.number:032x} is gone")
        if self.kind == "slow_close":
            await asyncio.sleep(2.0)
        await self.stack.aclose()


@asynccontextmanager
async def _session(*, fails: bool) -> AsyncIterator[None]:
    """What an MCP session is made of: a task group with a reader, held from `reset` to `close`."""

    async def read() -> None:
        if fails:
            await anyio.sleep(0.3)
            raise ConnectionError("the tool server closed the stream")
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        yield
        group.cancel_scope.cancel()
