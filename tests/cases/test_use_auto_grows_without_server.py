"""Case use/auto_grows_without_server: `-c auto` doubled each second while no server was up."""

from __future__ import annotations

import anyio
import pytest

from rollout.errors import ConnectionFailed, TransportError
from rollout.schedule import concurrency as paces
from rollout.schedule.concurrency import AdaptiveConcurrency, adapt_concurrency
from rollout.schedule.scheduler import Slots
from rollout.transport import ServerLoad
from tests.rollout.servers.test_fleet import Server, fleet, until

BUSY = ServerLoad(running=10, waiting=0)


async def test_the_number_at_once_does_not_grow_while_no_server_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays as it was, and grows again when the server is back."""
    monkeypatch.setattr(paces, "LOOK_EVERY_S", 0.001)
    server = Server()
    server.load_now = BUSY
    served = fleet(server)
    await served.connect()
    slots = Slots(4096)
    slots.used = 4096
    async with anyio.create_task_group() as group:
        group.start_soon(served.watch, lambda error: None)
        group.start_soon(adapt_concurrency, AdaptiveConcurrency(4, 4096), slots, served, lambda: 0, lambda: None)
        await until(lambda: slots.cap > 4)
        server.well = False
        await until(lambda: not served.states[0].up)
        cap = slots.cap
        await anyio.sleep(0.05)
        assert slots.cap == cap
        server.well = True
        await until(lambda: slots.cap > cap or cap == 4096)
        group.cancel_scope.cancel()


async def test_servers_that_cannot_be_asked_are_no_measure() -> None:
    """With none up, and while they are paused by us, there is nothing to follow."""
    server = Server()
    server.load_now = BUSY
    served = fleet(server)
    await served.connect()
    assert (await served.load()).running == 10
    await served.pause()
    with pytest.raises(TransportError, match="paused"):
        await served.load()
    await served.resume()
    server.well = False
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(served.watch, lambda error: None)
            await until(lambda: not served.states[0].up)
            group.cancel_scope.cancel()
    with pytest.raises(ConnectionFailed, match="no server is up"):
        await served.load()
