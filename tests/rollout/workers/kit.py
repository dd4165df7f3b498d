"""What the pool's tests play: environments that a process can import, and processes that are tasks of this loop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import anyio

from rollout import Env, Message, Step, user
from rollout.workers import wire
from rollout.workers.launch import Channel, Worker
from rollout.workers.socket_channel import SocketChannel
from rollout.workers.worker import serve


class Asking(Env):
    """Two turns, which say in which process they were played."""

    turns = 2

    def reset(self, task: Any) -> list[Message]:
        self.turn = 0
        return [user(f"What is {task['n']}?")]

    def step(self, message: Message) -> Step:
        self.turn += 1
        done = self.turn == self.turns
        return Step(messages=[user("And now?")], done=done, reward=0.5, metrics={"process": os.getpid()})


class Ending(Asking):
    """Says of each answer whether it was cut off."""

    def step(self, message: Message) -> Step:
        step = super().step(message)
        step.metrics = {"cut_off": self.finish_reason == "length"}
        return step


class Endless(Asking):
    """Never ends by itself. In processes that are tasks, `begun` is set once eight turns were played."""

    turns = 10**9
    begun: ClassVar[anyio.Event]
    played: ClassVar[int]

    @classmethod
    def reset_all(cls) -> None:
        cls.begun, cls.played = anyio.Event(), 0

    async def step(self, message: Message) -> Step:  # type: ignore[override]  # async, so that it is in this loop
        Endless.played += 1
        if Endless.played == 8:
            Endless.begun.set()
        return super().step(message)


class Forever(Asking):
    """Never ends by itself."""

    turns = 10**9


class Dying(Asking):
    """Kills its process at task 1: `task["once"]` names a file that says that it has."""

    def reset(self, task: Any) -> list[Message]:
        if task["n"] == 1:
            file = Path(task["once"])
            if not file.exists():
                file.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(task)


class Hanging(Asking):
    """Has its process's interpreter hang at task 1, in a call into C: `task["once"]` is as in `Dying`."""

    def reset(self, task: Any) -> list[Message]:
        if task["n"] == 1:
            file = Path(task["once"])
            if not file.exists():
                file.touch()
                re.match(r"(a|aa)+$", "a" * 60 + "b")
        return super().reset(task)


class Sharing(Asking):
    """One turn, on what all rollouts of its process share. `task["log"]` is a file that says what became of it."""

    turns = 1

    def __init__(self, log: str) -> None:
        self.log = log

    @classmethod
    @asynccontextmanager
    async def setup(cls, log: str) -> AsyncIterator[int]:
        _add_line(log, f"entered {os.getpid()}")
        yield os.getpid()
        _add_line(log, f"left {os.getpid()}")

    def step(self, message: Message) -> Step:
        return Step(done=True, reward=float(self.shared == os.getpid()))


def _add_line(file: str, line: str) -> None:
    with Path(file).open("a") as log:
        print(line, file=log)


class Unshared(Asking):
    """Its setup fails."""

    @classmethod
    @asynccontextmanager
    async def setup(cls) -> AsyncIterator[None]:
        raise OSError("no docker")
        yield


class TaskWorker:
    """A process that is none: a task of this loop serves the channel."""

    def __init__(self, channel: Channel, serving: asyncio.Task[None]) -> None:
        self.channel = channel
        self.serving = serving

    async def ended(self) -> str:
        await asyncio.wait([self.serving])
        return "its task ended"

    async def trace(self) -> str:
        return ""

    def kill(self) -> None:
        self.serving.cancel()


async def launch_task() -> Worker:
    """In `launch_process`'s place, as a cluster's launcher would be."""
    return await _launched(serve)


async def launch_stillborn() -> Worker:
    """A process that ends before it says anything."""

    async def end(channel: Channel) -> None:
        channel.close()

    return await _launched(end)


async def launch_fainting() -> Worker:
    """A process that ends with its first rollout."""

    async def faint(channel: Channel) -> None:
        await channel.receive()
        channel.send(wire.encode(wire.Ready()))
        while (frame := await channel.receive()) is not None:
            if isinstance(wire.decode_command(frame), wire.Play):
                break
        channel.close()

    return await _launched(faint)


async def _launched(serve: Callable[[Channel], Coroutine[Any, Any, None]]) -> Worker:
    ours, theirs = socket.socketpair()
    end = await SocketChannel.over(theirs)

    async def until_its_end() -> None:
        try:
            await serve(end)
        finally:
            end.close()

    return TaskWorker(await SocketChannel.over(ours), asyncio.create_task(until_its_end()))


async def launch_garbling() -> Worker:
    """A process that says something that nobody can read."""

    async def garble(channel: Channel) -> None:
        await channel.receive()
        channel.send(wire.encode(wire.Ready()))
        channel.send(b"\xc1")
        while await channel.receive() is not None:
            pass
        channel.close()

    return await _launched(garble)


class Wearing:
    """Starts processes that say, with their first rollout, that they are worn, and play on."""

    def __init__(self) -> None:
        self.begun = 0
        self.channels: list[Channel] = []

    async def __call__(self) -> Worker:
        self.begun += 1
        return await _launched(self._serve if self.begun == 1 else serve)

    async def _serve(self, channel: Channel) -> None:
        self.channels.append(channel)
        await serve(cast(Channel, _Worn(channel)))


class _Worn:
    """A channel that says with each rollout that the process is worn."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def receive(self) -> bytes | bytearray | None:
        frame = await self._channel.receive()
        if frame is not None and isinstance(wire.decode_command(frame), wire.Play):
            self._channel.send(wire.encode(wire.Worn("3 calls hang")))
        return frame
