"""An environment that does in a worker what its task says, and environments' processes."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rollout import Env, Message, Step, user


class Zoo(Env):
    """Does `task["do"]` in its reset, in a thread. What it returns is in the file `task["to"]`."""

    def reset(self, task: Any) -> list[Message]:
        found = DEEDS[task["do"]](task)
        if "to" in task:
            Path(task["to"]).write_text(str(found))
        return [user("Hello.")]

    def step(self, message: Message) -> Step:
        return Step(done=True, reward=1.0)


class AsyncZoo(Zoo):
    """Does it on the event loop."""

    async def reset(self, task: Any) -> list[Message]:  # type: ignore[override]
        opening = super().reset(task)
        if task["do"].startswith("leak"):
            await asyncio.Event().wait()
        return opening


class Slow:
    """Makes environments, and takes for ever to be read by another process."""

    def __call__(self) -> Env:
        return Zoo()

    def __reduce__(self) -> Any:
        return _wait_for_ever, ()


def _wait_for_ever() -> None:
    signal.pause()


def double(number: int) -> int:
    return 2 * number


def _with_pool(method: str) -> int:
    with multiprocessing.get_context(method).Pool(2) as pool:  # its end terminates what it started
        return sum(pool.map(double, [1, 2]))


def _with_executor() -> int:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(double, 3).result()


def _terminated() -> int:
    with subprocess.Popen(["sleep", "1000"]) as process:
        process.terminate()
        return process.wait()


def _started_and_gone() -> None:
    """Leaves a process behind, whose number it has written, and ends its own."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        Path(os.environ["ROLLOUT_TEST_LEFT"]).write_text(str(process.pid))
        os._exit(3)


def _terminate_itself() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)


def _stands() -> str:
    return f"{os.getcwd()} {sys.path[-1]} {os.environ.get('ROLLOUT_TEST_STANDS')}"


DEEDS: dict[str, Callable[[Any], object]] = {
    "nothing": lambda task: os.getpid(),
    "exit": lambda task: os._exit(3),
    "kill": lambda task: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda task: ctypes.string_at(0),
    "stop": lambda task: os.kill(os.getpid(), signal.SIGSTOP),
    "regex": lambda task: re.match(r"(a|aa)+$", "a" * 60 + "b"),
    "leak an exit": lambda task: asyncio.get_running_loop().call_soon(sys.exit, 5),
    "pool, spawned": lambda task: _with_pool("spawn"),
    "executor": lambda task: _with_executor(),
    "terminate": lambda task: _terminated(),
    "leave a process": lambda task: _started_and_gone(),
    "hang": lambda task: threading.Event().wait(),
    "stands": lambda task: _stands(),
    "terminate itself": lambda task: _terminate_itself(),
}
