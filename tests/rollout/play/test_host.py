"""User code costs its own rollout at most: whatever it raises, holds, leaks or never ends."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from rollout.env import Env
from rollout.play import host as host_module
from rollout.play.faults import EnvironmentFault
from rollout.play.host import Host, Hosts
from rollout.process.blocked import Interrupted, LoopBlocked
from rollout.process.threads import Threads
from rollout.records import FailureKind
from tests.log_kit import capture_logs
from tests.rollout.process.test_threads import Gate
from tests.rollout.test_door import Unnamed


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    hosts = Hosts(Threads(4))
    yield hosts
    await hosts.aclose(grace_s=0)


class Unsayable(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def recursing() -> None:
    recursing()


def raised(error: BaseException) -> Callable[[], Any]:
    def function() -> Any:
        raise error

    return function


def in_coroutine(function: Callable[[], Any]) -> Callable[[], Any]:
    async def coroutine() -> Any:
        await anyio.lowlevel.checkpoint()
        return function()

    return coroutine


def answering_awaitable(function: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: in_coroutine(function)()


#: Each way in which user code is called: blocking in a thread, quickly on the loop, asynchronously.
WAYS: dict[str, tuple[bool, Callable[[Callable[[], Any]], Callable[[], Any]]]] = {
    "in a thread": (True, lambda function: function),
    "on the loop": (False, lambda function: function),
    "in a coroutine": (True, in_coroutine),
    "by an awaitable": (True, answering_awaitable),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("function", "name", "said"),
    [
        (raised(SystemExit(3)), "SystemExit", "step raised SystemExit: 3"),
        (raised(KeyboardInterrupt()), "KeyboardInterrupt", "step raised KeyboardInterrupt"),
        (raised(asyncio.CancelledError("mine")), "CancelledError", "step raised CancelledError: mine"),
        (raised(TimeoutError("the tool's own")), "TimeoutError", "step raised TimeoutError: the tool's own"),
        (raised(StopIteration(1)), "StopIteration", "step raised StopIteration: 1"),
        (raised(StopAsyncIteration()), "StopAsyncIteration", "step raised StopAsyncIteration"),
        (raised(MemoryError()), "MemoryError", "step raised MemoryError"),
        (raised(Unsayable()), "Unsayable", "step raised Unsayable"),
        (raised(ValueError("caf\udce9")), "ValueError", "step raised ValueError: caf\ufffd"),
        (recursing, "RecursionError", "step raised RecursionError: maximum recursion depth exceeded"),
        (
            raised(ExceptionGroup("tools", [ExceptionGroup("more", [ConnectionError("refused")])])),
            "ExceptionGroup",
            "ConnectionError: refused",
        ),
        (raised(BaseExceptionGroup("both", [SystemExit(4)])), "BaseExceptionGroup", "SystemExit: 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_whatever_is_raised_is_the_environments_fault(
    hosts: Hosts, way: str, function: Callable[[], Any], name: str, said: str
) -> None:
    """It comes with its own name and text, however user code is called, and the next call is made as if nothing was."""
    host = Host(hosts, "r")
    host.blocks, wrap = WAYS[way]
    with pytest.raises(EnvironmentFault) as fault:
        await host.call("step", wrap(function), limit_s=60)
    assert fault.value.kind is FailureKind.ENVIRONMENT
    assert said in str(fault.value)
    assert type(fault.value.raised).__name__ == name
    assert await host.call("step", wrap(lambda: 5)) == 5
    host.end()


async def test_a_huge_text_is_cut(hosts: Hosts) -> None:
    """A failure's message fits a record, whatever the exception carries."""
    with pytest.raises(EnvironmentFault) as fault:
        await Host(hosts, "r").call("step", raised(ValueError("x" * 10**6)))
    assert len(str(fault.value)) < 3_000


async def test_an_asynchronous_environment_lives_in_one_task(hosts: Hosts) -> None:
    """Its constructor, too, where it is known to be asynchronous; what it sets in its context stays set."""
    host, seen = Host(hosts, "r"), list[Any]()

    async def method() -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(asyncio.current_task())

    await host.call("__init__", lambda: seen.append(asyncio.current_task()), in_task=True)
    for name in ("reset", "step", "score", "close"):
        await host.call(name, method, limit_s=60)
    assert len(seen) == 5
    assert len(set(seen)) == 1
    assert seen[0] is not asyncio.current_task()
    host.end()


async def test_a_context_may_be_held_between_calls(hosts: Hosts) -> None:
    """A task group of anyio that is entered in one call and left in another, while deadlines of ours come and go."""
    host, stack, arrived = Host(hosts, "r"), AsyncExitStack(), list[int]()
    send, receive = anyio.create_memory_object_stream[int](0)
    send_back, receive_back = anyio.create_memory_object_stream[int](0)

    async def serve() -> None:
        async with receive, send_back:
            async for number in receive:
                await send_back.send(number + 1)

    async def reset() -> None:
        group = await stack.enter_async_context(anyio.create_task_group())
        await stack.enter_async_context(send)
        await stack.enter_async_context(receive_back)
        group.start_soon(serve)

    async def step() -> None:
        await send.send(1)
        arrived.append(await receive_back.receive())

    await host.call("reset", reset, limit_s=60)
    with anyio.CancelScope():
        await host.call("step", step, limit_s=60)
    await host.call("close", stack.aclose, limit_s=60)
    assert arrived == [2]
    host.end()
    assert host.broken is None


async def test_a_deadline_cancels_within_a_held_context(hosts: Hosts) -> None:
    """The call ends as too slow, its clean-up is run, and the context can be left."""
    host, stack, cleaned = Host(hosts, "r"), AsyncExitStack(), list[str]()

    async def reset() -> None:
        await stack.enter_async_context(anyio.create_task_group())

    async def step() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()
            cleaned.append("step")

    await host.call("reset", reset)
    with pytest.raises(EnvironmentFault, match=r"step took longer than 0\.01 s") as fault:
        await host.call("step", step, limit_s=0.01)
    assert fault.value.kind is FailureKind.TIMEOUT
    assert cleaned == ["step"]
    await host.call("close", stack.aclose)
    host.end()
    assert host.broken is None


async def test_what_took_too_long_is_said_with_its_place(hosts: Hosts) -> None:
    """The line of user code in which a thread hangs, or a coroutine waits."""
    host, gate = Host(hosts, "r"), threading.Event()

    def hangs() -> None:
        gate.wait(60)

    async def waits() -> None:
        await anyio.sleep_forever()

    with pytest.raises(EnvironmentFault, match=r"took longer than 0\.1 s \(test_host\.py, line \d+, in hangs\)$"):
        await host.call("step", hangs, limit_s=0.1)
    gate.set()
    with pytest.raises(EnvironmentFault, match=r"took longer than 0\.1 s \(test_host\.py, line \d+, in waits\)$"):
        await host.call("step", waits, limit_s=0.1)
    host.end()


@pytest.mark.parametrize("make_group", [anyio.create_task_group, asyncio.TaskGroup])
async def test_a_held_context_that_breaks_between_calls_breaks_its_rollout(
    hosts: Hosts, make_group: Callable[[], Any]
) -> None:
    """A task of it that fails is told at once, and what it failed of when the context is left."""
    broken, stack = asyncio.Event(), AsyncExitStack()
    host = Host(hosts, "r", broken.set)

    async def dies() -> None:
        raise ConnectionError("the server of tools is gone")

    async def reset() -> None:
        group = await stack.enter_async_context(make_group())
        start = getattr(group, "start_soon", None)
        if start is not None:
            start(dies)
        else:
            group.create_task(dies())

    await host.call("reset", reset)
    await broken.wait()
    assert isinstance(host.broken, asyncio.CancelledError)
    with pytest.raises(EnvironmentFault, match="ConnectionError: the server of tools is gone"):
        await host.call("close", stack.aclose)
    host.end()


async def test_our_cancellation_does_not_reach_a_later_call(hosts: Hosts) -> None:
    """A call that ends in spite of it leaves nothing of it behind."""
    host = Host(hosts, "r")

    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await anyio.sleep_forever()

    with pytest.raises(EnvironmentFault, match="took longer"):
        await host.call("step", stubborn, limit_s=0.01)

    async def task_state() -> int:
        await anyio.lowlevel.checkpoint()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert await host.call("close", task_state) == 0
    host.end()


class Swallows(Env):
    """Never ends when it is cancelled, until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.log: list[str] = []

    async def wait(self) -> None:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue
        self.log.append("returned")

    async def close(self) -> None:
        self.log.append("closed")


async def test_a_call_that_swallows_its_cancellation_is_abandoned(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a grace its rollout goes on without it; it is counted, and closed when it has returned after all."""
    monkeypatch.setattr(host_module, "GRACE_S", 0.01)
    host, env = Host(hosts, "r"), Swallows()
    with pytest.raises(EnvironmentFault, match="took longer"):
        await host.call("step", env.wait, limit_s=0.01)
    assert hosts.hanging == 1
    assert await host.close(env, 60.0) is None
    assert env.log == []
    env.let_go.set()
    await hosts.aclose()
    assert env.log == ["returned", "closed"]
    assert hosts.hanging == 0


def test_the_loop_ends_with_a_task_that_swallows_its_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left at the end is said, and asyncio does not wait for it."""
    monkeypatch.setattr(host_module, "GRACE_S", 0.01)

    async def play() -> list[Any]:
        hosts = Hosts(Threads(4))
        host, env = Host(hosts, "r"), Swallows()
        with pytest.raises(EnvironmentFault, match="took longer"):
            await host.call("step", env.wait, limit_s=0.01)
        await host.close(env, 60.0)
        with capture_logs() as logs:
            await hosts.aclose(grace_s=0.01)
        return logs

    (said,) = asyncio.run(play())
    assert said["event"] == "environment_calls_hang"
    assert (said["tasks"], said["not_closed"]) == (1, 1)


class Sandbox(Env):
    """Takes something in a call that cannot be interrupted."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.taken: bool | None = None

    def take(self) -> None:
        self.gate()
        self.taken = True

    def close(self) -> None:
        assert self.taken, "closed before the call that takes something has returned"
        self.taken = False


async def test_close_comes_after_an_abandoned_call_has_returned(hosts: Hosts) -> None:
    """It does not hold up the rollout, and is waited for at the end."""
    host, env = Host(hosts, "r"), Sandbox()
    with pytest.raises(EnvironmentFault, match="took longer"):
        await host.call("reset", env.take, limit_s=0.01)
    assert await host.close(env, 60.0) is None
    assert env.taken is None
    env.gate.let_go.set()
    await hosts.aclose()
    assert env.taken is False


async def test_what_an_abandoned_constructor_made_is_closed(hosts: Hosts) -> None:
    """The environment comes late, and nobody has seen it."""
    gate, closed = Gate(), threading.Event()

    class Late(Env):
        def __init__(self) -> None:
            gate()

        def close(self) -> None:
            closed.set()

    host = Host(hosts, "r")
    with pytest.raises(EnvironmentFault, match="__init__ took longer"):
        await host.call("__init__", Late, limit_s=0.01)
    await host.close(None, 60.0)
    gate.let_go.set()
    await hosts.aclose()
    assert closed.is_set()


async def test_a_close_that_takes_too_long_is_cut_and_said(hosts: Hosts) -> None:
    """By the setting's name."""

    class Slow(Env):
        async def close(self) -> None:
            await anyio.sleep_forever()

    host = Host(hosts, "r")
    with capture_logs() as logs:
        fault = await host.close(Slow(), 0.01)
    assert fault is not None
    assert [entry["event"] for entry in logs] == ["env_close_cut"]
    assert "close_timeout_s" in logs[0]["hint"]


async def test_a_failed_close_is_said_by_its_kind(hosts: Hosts) -> None:
    """The reason is the exception's type, so that a thousand texts are one kind."""

    class Untidy(Env):
        def close(self) -> None:
            raise RuntimeError("container 1f0c is gone")

    with capture_logs() as logs:
        fault = await Host(hosts, "r").close(Untidy(), None)
    assert fault is not None
    assert (logs[0]["event"], logs[0]["reason"]) == ("env_close_failed", "RuntimeError")
    assert isinstance(logs[0]["exc_info"], RuntimeError)


async def test_the_default_close_is_not_called(hosts: Hosts) -> None:
    """Nor a thread started for it."""
    before = threading.active_count()
    assert await Host(hosts, "r").close(Env(), None) is None
    assert threading.active_count() == before


async def test_exiting_on_the_loop_and_in_leaked_tasks_ends_nothing_else(hosts: Hosts) -> None:
    """A plain function that is called on the loop may start tasks, too; they are its rollout's."""
    host = Host(hosts, "r")
    host.blocks = False

    async def exits() -> None:
        sys.exit(7)

    def step() -> None:
        asyncio.get_running_loop().create_task(exits(), name="exits")

    with capture_logs() as logs:
        await host.call("step", step)
        while host.tasks.running:
            await anyio.lowlevel.checkpoint()
        host.end()
    assert (logs[0]["event"], logs[0]["reason"]) == ("environment_task_raised", "SystemExit")


@pytest.mark.parametrize(
    ("error", "kind"), [(LoopBlocked("x"), FailureKind.TIMEOUT), (Interrupted("x"), FailureKind.CANCELLED)]
)
async def test_what_we_broke_off_is_no_fault_of_the_environments(
    hosts: Hosts, error: Exception, kind: FailureKind
) -> None:
    """What blocked the loop for too long is a timeout, and cancelled where the run was stopped: it is played again."""
    host = Host(hosts, "r")
    with pytest.raises(EnvironmentFault) as fault:
        await host.call("step", in_coroutine(raised(error)))
    assert fault.value.kind is kind
    host.end()


class Unlookable:
    """A function that cannot be looked at."""

    def __call__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


async def test_what_cannot_be_looked_at_is_the_environments_fault(hosts: Hosts) -> None:
    """A call's function, and the class of what it raised, are the user's, too."""
    host = Host(hosts, "r")
    with pytest.raises(EnvironmentFault, match="step raised RuntimeError: no __name__") as fault:
        await host.call("step", Unlookable())
    assert fault.value.kind is FailureKind.ENVIRONMENT
    with pytest.raises(EnvironmentFault, match="step raised Unnamed: x"):
        await host.call("step", raised(Unnamed("x")))
    host.end()
