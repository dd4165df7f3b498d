"""Cases seams/e7, e14 and e30: weights and pauses of servers that come back."""

from __future__ import annotations

import anyio
import pytest

from envs.echo import Echo
from rollout import Engine, EngineConfig
from rollout.errors import ServerError
from tests.cases.test_engine_fleet_weights import Weighted
from tests.cases.test_engine_restarted_other_model import often
from tests.cases.vllm_double import until, vllm_double
from tests.rollout.servers.test_fleet import fleet
from tests.rollout.servers.test_fleet import until as soon


async def test_a_server_that_comes_back_while_weights_are_pushed_has_the_new_ones() -> None:
    """Also where the pieces are called one by one, as the engine does."""
    a, b = Weighted(), Weighted()
    served = fleet(a, b, wait_s=30)
    await served.connect()
    async with anyio.create_task_group() as group:
        group.start_soon(served.watch, lambda error: None)
        await served.update_weights("1", "/w/1")
        b.well = False
        await soon(lambda: not served.states[1].up)
        b.restarted()
        await b.loading.wait()
        await served.pause()
        await served.update_weights("2", "/w/2")
        await served.resume()
        b.loaded.set()
        await soon(lambda: served.states[1].up)
        group.cancel_scope.cancel()
    assert (a.weights, b.weights) == ("2", "2")
    assert served.state.pushed == ("2", "/w/2")


async def test_a_callers_pause_outlives_an_update_of_the_embedded_model() -> None:
    """Nothing is played before `resume`."""
    async with Engine(EngineConfig(concurrency=2, max_tokens=4), lambda: Echo(turns=1)) as engine:
        await engine.pause()
        await engine.update_weights("1")
        stream = engine.stream(Echo().tasks(1, 0))
        with anyio.move_on_after(0.3) as waited:
            await anext(stream)
        assert waited.cancelled_caught
        await stream.aclose()
        await engine.resume()
        (group,) = [group async for group in engine.stream(Echo().tasks(1, 0))]
        assert group.rollouts[0].turns[0].weight_versions[0].version == "1"


async def test_a_server_that_comes_back_is_given_its_weights_once() -> None:
    """However many processes play: theirs follow the engine."""
    servers = [Weighted(), Weighted()]
    fleets = [fleet(*servers, wait_s=30) for _ in range(5)]
    for one in fleets:
        await one.connect()
    await fleets[0].update_weights("1", "/w/1")
    for one in fleets[1:]:
        one.follow(fleets[0].state)
    async with anyio.create_task_group() as group:
        for one in fleets:
            group.start_soon(one.watch, lambda error: None)
        for server in servers:
            server.well = False
        await soon(lambda: not any(state.up for one in fleets for state in one.states))
        for server in servers:
            server.weights, server.loads, server.well = "0", 0, True
        await soon(lambda: all(state.up for state in fleets[0].states))
        for one in fleets[1:]:
            one.follow(fleets[0].state)
        await soon(lambda: all(state.up for one in fleets for state in one.states))
        group.cancel_scope.cancel()
    assert [server.loads for server in servers] == [1, 1]


@pytest.mark.slow
async def test_processes_use_a_server_that_came_back_only_with_its_weights() -> None:
    """The engine gives them to it once, and only then tells its processes."""
    async with vllm_double() as one, vllm_double() as two:
        config = EngineConfig(base_url=[one.url, two.url], max_tokens=8, concurrency=4, processes=2, http_retries=0)
        async with Engine(config, Echo) as running:
            often(running)
            await running.update_weights("1", "/w/1")
            await two.stop()
            await until(lambda: not running.stats().servers[1].up)
            two.version, two.loads = "start", []
            groups = [group async for group in running.stream(Echo().tasks(4, 0))]
            assert all(group.rollouts[0].ok for group in groups)
            await two.start()
            await until(lambda: running.stats().servers[1].up)
            two.completions = 0
            while not two.completions:
                groups += [group async for group in running.stream(Echo().tasks(8, 0))]
            assert (two.version, two.loads) == ("1", ["/w/1"])
    assert all(group.rollouts[0].ok for group in groups)


async def test_a_server_that_was_lost_with_our_pause_comes_back() -> None:
    """It would answer no probe, and nobody else would resume it."""
    async with vllm_double() as one, vllm_double() as two:
        config = EngineConfig(base_url=[one.url, two.url], max_tokens=8, concurrency=4, http_retries=0)
        async with Engine(config, lambda: Echo(turns=2)) as running:
            often(running)
            two.loads_fail = True
            await running.update_weights("1", "/w/1")
            assert [state.up for state in running.stats().servers] == [True, False]
            two.loads_fail = False
            await until(lambda: running.stats().servers[1].up)
            assert (two.version, two.paused, one.paused) == ("1", False, False)


async def test_a_server_that_someone_else_paused_is_named() -> None:
    """A client that was killed in the middle of an update leaves it so: it is not probed, and not resumed."""
    async with vllm_double() as server:
        server._goes_on.clear()
        server.paused = True
        with pytest.raises(ServerError, match=f"{server.url} is paused and samples nothing"):
            async with Engine(EngineConfig(base_url=server.url, http_retries=0), Echo):
                pass
        assert server.paused


@pytest.mark.slow
async def test_a_process_that_dies_under_a_pause_is_replaced_when_the_servers_sample() -> None:
    """Before that it could not begin, which is no fault of its own."""
    async with vllm_double() as server:
        config = EngineConfig(base_url=server.url, max_tokens=8, concurrency=4, processes=2)
        async with Engine(config, Echo) as running:
            await running.pause()
            assert running._pool is not None
            handle = running._pool._handles[0]
            assert handle.worker is not None
            handle.worker.kill()
            await until(lambda: running.stats().process_deaths == 1)
            assert handle.worker is None
            await running.resume()
            await until(lambda: handle.worker is not None)
            groups = [group async for group in running.stream(Echo().tasks(8, 0))]
            assert running.stats().process_deaths == 1
    assert all(group.rollouts[0].ok for group in groups)
