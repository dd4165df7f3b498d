"""Actions on servers are carried out whoever waits for them, and given up when they are outdated."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from rollout.errors import ConfigError, ConnectionFailed
from rollout.servers.life import Phase
from rollout.servers.reconciler import Reconciler
from rollout.servers.server import Server as FleetServer
from rollout.transport import InFlight, ServerInfo
from tests.log_kit import capture_logs
from tests.rollout.servers.test_fleet import OFTEN_S, Server, until


class Slow(Server):
    """Loads when it is let, and notes what was given up."""

    def __init__(self) -> None:
        super().__init__()
        self.let = anyio.Event()
        self.given_up: list[str] = []

    async def update_weights(self, version: str, path: str | None) -> None:
        await self._wait(version)
        await super().update_weights(version, path)

    async def pause(self, mode: InFlight = "keep") -> None:
        await self._wait(mode)
        await super().pause(mode)

    async def _wait(self, what: str) -> None:
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.given_up.append(what)
            raise


async def opened(*made: Any, join: Any = lambda member, info: None) -> Reconciler:
    members = [FleetServer(f"http://{at}", one, check_every_s=OFTEN_S) for at, one in enumerate(made)]
    servers = Reconciler(members, join, lambda: None)
    servers.step()
    await servers.until(lambda: not any(life.doing for life in servers.lives.servers))
    return servers


async def test_a_load_goes_on_when_its_caller_is_gone() -> None:
    """The server loads whether or not anybody waits for it."""
    slow = Slow()
    servers = await opened(slow)
    ask = servers.lives.load("1", "/w")
    with anyio.move_on_after(0.001):
        await servers.asked(ask)
    assert not ask.decided
    slow.let.set()
    await servers.until(lambda: ask.decided)
    assert slow.pushed == [("1", "/w")]


async def test_an_action_of_a_server_that_is_lost_is_given_up() -> None:
    """Its request is closed, and whoever waits for it is told."""
    slow = Slow()
    servers = await opened(slow)
    async with anyio.create_task_group() as group:
        group.start_soon(servers.watch)
        slow.well = False
        with pytest.raises(ConnectionFailed, match="does not answer that it is well: the script says that it is gone"):
            await servers.asked(servers.lives.load("1", "/w"))
        group.cancel_scope.cancel()
    await until(lambda: slow.given_up == ["1"])
    assert servers.servers[0].deaths == 1


async def test_a_pause_that_is_given_up_is_given_up_on_the_server() -> None:
    """It goes on at once."""
    slow = Slow()
    servers = await opened(slow)
    servers.lives.pause("caller", "wait")
    servers.step()
    assert servers.lives.servers[0].phase is Phase.DRAINING
    await anyio.lowlevel.checkpoint()
    servers.lives.resume("caller")
    servers.step()
    await servers.until(lambda: servers.lives.servers[0].phase is Phase.UP)
    assert slow.given_up == ["wait"]


async def test_a_server_that_stays_out_says_why_once() -> None:
    """However often it is tried."""

    def refuse(member: FleetServer, info: ServerInfo) -> None:
        raise ConfigError("another model")

    server = Server()
    with capture_logs() as logs:
        servers = await opened(server, join=refuse)
        async with anyio.create_task_group() as group:
            group.start_soon(servers.watch)
            await until(lambda: server.checks > 3)
            group.cancel_scope.cancel()
    assert [entry["why"] for entry in logs if entry["event"] == "server_stays_out"] == ["another model"]


class Odd(Server):
    """Raises what no transport should."""

    raises: BaseException | None = None

    async def check(self) -> None:
        await super().check()
        if self.raises is not None:
            raised, self.raises = self.raises, None
            raise raised


@pytest.mark.parametrize("error", [ZeroDivisionError("odd"), asyncio.CancelledError(), TimeoutError()])
async def test_whatever_opening_raises_is_a_failure_of_that_server(error: BaseException) -> None:
    """It is tried again."""
    odd = Odd()
    odd.raises = error
    with capture_logs() as logs:  # by the time that one looks it may have been tried again
        servers = await opened(odd)
    assert [entry["server"] for entry in logs if entry["event"] == "server_stays_out"] == ["http://0"]
    async with anyio.create_task_group() as group:
        group.start_soon(servers.watch)
        await until(lambda: servers.lives.servers[0].up)
        group.cancel_scope.cancel()


async def test_servers_go_on_when_all_ends() -> None:
    """What is paused from here would be paused for good."""
    one, two = Server(), Server()
    servers = await opened(one, two)
    await servers.asked(servers.lives.pause("caller", "keep"))
    assert one.paused
    await servers.aclose()
    assert not one.paused
    assert not two.paused
    assert one.closed
