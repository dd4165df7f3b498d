"""Cases seams/e1 and seams/e23: servers that are not there when a run begins."""

from __future__ import annotations

import anyio
import pytest

from envs.echo import Echo
from rollout import Engine, EngineConfig
from rollout.errors import ServerError
from rollout.servers.fleet import Fleet
from rollout.servers.server import Server as FleetServer
from rollout.transport import ServerInfo
from tests.cases.test_engine_restarted_other_model import often
from tests.cases.vllm_double import VllmDouble, until, vllm_double
from tests.live.servers import free_port
from transports.scripted import ScriptedTransport


@pytest.mark.slow
async def test_a_server_that_is_down_when_the_run_begins_is_out_until_it_is_there() -> None:
    """The other plays meanwhile."""
    absent = VllmDouble()
    async with vllm_double() as server:
        config = EngineConfig(base_url=[server.url, absent.url], max_tokens=8, concurrency=4, http_retries=0)
        async with Engine(config, lambda: Echo(turns=2)) as running:
            often(running)
            assert [state.up for state in running.stats().servers] == [True, False]
            groups = [group async for group in running.stream(Echo().tasks(12, 0))]
            assert all(group.rollouts[0].ok for group in groups)
            await absent.start()
            await until(lambda: running.stats().servers[1].up)
            groups = [group async for group in running.stream(Echo().tasks(12, 0))]
            assert all(group.rollouts[0].ok for group in groups)
            assert absent.completions
    await absent.stop()


async def test_where_none_answers_each_is_named() -> None:
    """With its own error, at once."""
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with anyio.fail_after(60), pytest.raises(ServerError) as raised:
        async with Engine(EngineConfig(base_url=urls, http_retries=0), lambda: Echo(turns=1)):
            pass
    assert all(f"no server answers at {url}" in str(raised.value) for url in urls)


async def test_with_a_server_wait_the_first_may_come_later() -> None:
    """The wait is for the beginning too."""
    server = VllmDouble()
    config = EngineConfig(base_url=server.url, max_tokens=8, http_retries=0, server_wait_s=20)
    async with anyio.create_task_group() as beside:

        async def come() -> None:
            await anyio.sleep(0.3)
            await server.start()

        beside.start_soon(come)
        async with Engine(config, lambda: Echo(turns=1)) as running:
            (group,) = [group async for group in running.stream(Echo().tasks(1, 0))]
    await server.stop()
    assert group.rollouts[0].ok


class Slow(ScriptedTransport):
    """Connects when all others are connecting, too."""

    connecting = 0
    all_here: anyio.Event

    async def connect(self) -> ServerInfo:
        Slow.connecting += 1
        if Slow.connecting == 8:
            Slow.all_here.set()
        await Slow.all_here.wait()
        return await super().connect()


async def test_servers_are_connected_to_at_once() -> None:
    """None waits for another."""
    Slow.connecting, Slow.all_here = 0, anyio.Event()
    fleet = Fleet([FleetServer(f"http://{at}", Slow([])) for at in range(8)], wait_s=1)
    with anyio.fail_after(60):
        await fleet.connect()
    assert all(state.up for state in fleet.states)
