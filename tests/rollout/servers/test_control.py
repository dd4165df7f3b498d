"""Pauses and updates of the weights, as the servers and the other processes of an engine learn of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from rollout.errors import TransportError
from rollout.servers.control import WeightControl
from rollout.servers.fleet import Fleet
from tests.rollout.servers.test_fleet import Server, fleet


class Told:
    """What another process would follow, at each time that it is told."""

    def __init__(self, *servers: Server) -> None:
        self.fleet = fleet(*servers)
        self.states: list[tuple[bool, bool]] = []
        """Whether new requests are held back, and whether the servers are paused."""
        self.updates = 0
        self.hangs_at: int | None = None
        """At which time it does not answer."""

    async def tell(self) -> None:
        self.states.append((self.fleet.weights.held, self.fleet.state.paused))
        if len(self.states) == self.hangs_at:
            await anyio.sleep_forever()

    def on_updated(self) -> None:
        self.updates += 1
        assert self.fleet.weights.held


@asynccontextmanager
async def controlled(server: Server) -> AsyncIterator[tuple[WeightControl, Told, Fleet]]:
    """Of a fleet of one that is connected."""
    told = Told(server)
    await told.fleet.connect()
    try:
        yield WeightControl(told.fleet, told.tell, told.on_updated), told, told.fleet
    finally:
        await told.fleet.aclose()


async def test_processes_hold_back_before_the_servers_are_paused() -> None:
    """And are told again when they are, and when they go on."""
    async with controlled(server := Server()) as (control, told, _):
        await control.pause("keep")
        assert server.paused
        assert told.states == [(True, False), (True, True)]
        await control.resume()
        assert not server.paused
        assert told.states[2:] == [(False, False)]


async def test_an_update_is_told_before_it_and_after() -> None:
    """Stale rollouts are looked for before anything is sent under the new weights."""
    async with controlled(server := Server()) as (control, told, running):
        await control.update("2", "folder", "keep")
        assert server.pushed == [("2", "folder")]
        assert running.weights.version == "2"
        assert told.states == [(True, False), (False, False)]
        assert told.updates == 1


async def test_servers_that_refuse_go_on_with_what_they_had() -> None:
    """The caller is told why, and nothing stays paused."""
    async with controlled(server := Server()) as (control, told, running):
        server.refuses = TransportError("no such folder")
        with pytest.raises(TransportError, match="no such folder"):
            await control.update("2", "folder", "keep")
        assert not server.paused
        assert not running.weights.held
        assert told.states[-1] == (False, False)


async def test_a_pause_that_is_cancelled_leaves_nothing_held_back() -> None:
    """Also where it was cancelled while a process did not answer; the processes are told so."""
    async with controlled(Server()) as (control, told, running):
        told.hangs_at = 1
        with anyio.CancelScope() as scope:
            scope.cancel()
            await control.pause("keep")
        assert not running.weights.held
        assert told.states == [(True, False), (False, False)]


async def test_what_changes_of_the_servers_is_told_at_once() -> None:
    """As often as it changes, and not otherwise."""
    async with controlled(Server()) as (control, told, _), anyio.create_task_group() as group:
        group.start_soon(control.keep_telling)
        for count in (1, 2):
            await anyio.wait_all_tasks_blocked()
            assert len(told.states) == count - 1
            control.servers_changed()
            await anyio.wait_all_tasks_blocked()
            assert len(told.states) == count
        group.cancel_scope.cancel()
