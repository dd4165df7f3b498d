"""Cases use/anyio_scope and use/mcpenv: a context is held from `reset` to `close`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest

from rollout import Engine, EngineConfig, Env, Group, Message, Step, user
from rollout.records import FailureKind
from transports.scripted import ScriptedTransport, reply

SERVER = """
import sys
for line in sys.stdin:
    a, b = line.split()
    print(int(a) + int(b), flush=True)
"""


class Holds(Env):
    """A task group of anyio, as sessions with servers of tools hold one."""

    async def reset(self, task: Any) -> list[Message]:
        self.stack = AsyncExitStack()
        group = await self.stack.enter_async_context(anyio.create_task_group())
        group.start_soon(anyio.sleep, 0.01)
        return [user("hi")]

    async def step(self, message: Message) -> Step:
        return Step(done=True, reward=1.0)

    async def close(self) -> None:
        await self.stack.aclose()


class Raises(Holds):
    """Its reset then fails: the server of tools does not start, say."""

    async def reset(self, task: Any) -> list[Message]:
        await super().reset(task)
        raise RuntimeError("no server")


class Session:
    """Asks a server over its standard input and output, as MCP's session does: a reader runs in a task group."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process
        self._send, self._answers = anyio.create_memory_object_stream[str](8)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Session]:
        async with await anyio.open_process([sys.executable, "-c", SERVER]) as process:
            session = cls(process)
            async with session._send, session._answers, anyio.create_task_group() as group:
                group.start_soon(session._read)
                yield session
                assert process.stdin is not None
                await process.stdin.aclose()
                group.cancel_scope.cancel()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        received = ""
        async for chunk in self._process.stdout:
            *lines, received = (received + chunk.decode()).split("\n")
            for line in lines:
                await self._send.send(line)

    async def add(self, a: int, b: int) -> str:
        assert self._process.stdin is not None
        await self._process.stdin.send(f"{a} {b}\n".encode())
        with anyio.fail_after(30):
            return await self._answers.receive()


class Tools(Env):
    """Has a server process of its own for as long as it lives."""

    async def reset(self, task: Any) -> list[Message]:
        self.stack = AsyncExitStack()
        self.session = await self.stack.enter_async_context(Session.open())
        self.turn = 0
        return [user("add")]

    async def step(self, message: Message) -> Step:
        self.turn += 1
        answer = await self.session.add(self.turn, 40)
        return Step(messages=[user(answer)], done=self.turn == 3, reward=float(answer == str(self.turn + 40)))

    async def close(self) -> None:
        await self.stack.aclose()


async def play(env: type[Env], tasks: int = 3, **config: Any) -> list[Group]:
    transport = ScriptedTransport([reply("x") for _ in range(50)])
    async with Engine(EngineConfig(**config), env, transport=transport) as engine:
        return [group async for group in engine.stream([{"n": n} for n in range(tasks)])]


@pytest.mark.parametrize("deadline", [None, 60.0])
async def test_a_task_group_may_be_held(deadline: float | None) -> None:
    """Also where each call has a deadline of ours, and the episode one."""
    groups = await play(Holds, step_timeout_s=deadline, episode_timeout_s=deadline)
    assert [group.rewards for group in groups] == [[1.0]] * 3


async def test_a_held_context_is_left_when_the_environment_fails() -> None:
    """The failure is its own, and no other rollout's."""
    groups = await play(Raises)
    failures = [group.rollouts[0].failure for group in groups]
    assert all(failure is not None for failure in failures)
    for failure in failures:
        assert failure is not None
        assert (failure.kind, failure.error) == (FailureKind.ENVIRONMENT, "RuntimeError")


async def test_a_session_with_a_server_of_tools_may_be_held() -> None:
    """Three turns over one process, a reader in a task group, and both end with the rollout."""
    groups = await play(Tools)
    assert [group.rewards for group in groups] == [[3.0]] * 3
