"""Case engine/fleet_weights: five ways in which a fleet came to sample from other weights than the engine said."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from rollout import Engine
from rollout.errors import ConfigError, RequestRefused, RolloutError
from tests.rollout.servers.test_fleet import Server, engine, until
from transports.scripted import ScriptedTransport


class Weighted(Server):
    """Has weights, which take until `loaded` is set to load."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.weights, self.loads = "0", 0
        self.error: RolloutError | None = None
        self.loading, self.loaded = anyio.Event(), anyio.Event()
        self.loaded.set()

    async def update_weights(self, version: str, path: str | None) -> None:
        self.loads += 1
        self.loading.set()
        if self.error is not None:
            raise self.error
        await self.loaded.wait()
        self.weights = version

    def restarted(self) -> None:
        """As a new process, whose weights take their time."""
        self.weights, self.loads, self.paused, self.well = "0", 0, False, True
        self.loading, self.loaded = anyio.Event(), anyio.Event()


def make(*servers: ScriptedTransport) -> Engine:
    return engine(*servers, wait_s=5)


async def coming_back(running: Engine, b: Weighted) -> None:
    """Weights 1 are in force; b has died, has come back, and is being given them."""
    await running.update_weights(1, "/w/1")
    b.well = False
    await until(lambda: not running.stats().servers[1].up)
    b.restarted()
    await b.loading.wait()


async def test_an_update_while_a_server_comes_back() -> None:
    """It is up only with the new weights, loaded once more."""
    a, b = Weighted(), Weighted()
    running = make(a, b)
    async with running:
        await coming_back(running, b)
        await running.update_weights(2, "/w/2")
        assert a.weights == "2"
        assert not running.stats().servers[1].up
        b.loaded.set()
        await until(lambda: running.stats().servers[1].up)
        assert (running.weight_version, b.weights, b.loads) == ("2", "2", 2)


async def test_a_pause_while_a_server_comes_back() -> None:
    """It is up only with the pause."""
    a, b = Weighted(), Weighted()
    running = make(a, b)
    async with running:
        await coming_back(running, b)
        await running.pause()
        assert a.paused
        b.loaded.set()
        await until(lambda: running.stats().servers[1].up)
        assert b.paused
        await running.resume()
        assert not a.paused
        assert not b.paused


async def test_a_server_that_failed_to_load_comes_back() -> None:
    """With the weights of the others, and not paused."""
    a, b = Weighted(), Weighted()
    running = make(a, b)
    async with running:
        b.error = RequestRefused("500: out of memory", status=400)
        await running.update_weights(1, "/w/1")
        assert [server.up for server in running.stats().servers] == [True, False]
        b.error = None
        await until(lambda: running.stats().servers[1].up)
        assert (b.weights, b.paused, a.paused) == ("1", False, False)


async def test_one_server_refuses() -> None:
    """The caller is told; the engine's version is that of the servers that are up."""
    a, b = Weighted(), Weighted()
    running = make(a, b)
    async with running:
        b.error = ConfigError("b has no /collective_rpc: start vLLM with VLLM_SERVER_DEV_MODE=1")
        with pytest.raises(ConfigError, match="b has no /collective_rpc"):
            await running.update_weights(1, "/w/1")
        assert [server.up for server in running.stats().servers] == [True, False]
        assert (running.weight_version, a.weights, a.paused) == ("1", "1", False)


async def test_all_servers_fail() -> None:
    """They go on with the weights that they had, and the engine says so."""
    a, b = Weighted(), Weighted()
    running = make(a, b)
    async with running:
        await running.update_weights(1, "/w/1")
        a.error = b.error = RequestRefused("no such folder", status=400)
        with pytest.raises(RequestRefused, match="no such folder"):
            await running.update_weights(2, "/w/2")
        assert [server.up for server in running.stats().servers] == [True, True]
        assert (running.weight_version, a.paused, b.paused) == ("1", False, False)


async def test_an_update_under_a_pause() -> None:
    """The caller's own pause stays in force until it resumes."""
    a, b = Weighted(), Weighted()
    running = make(a, b)
    async with running:
        await running.pause()
        await running.update_weights(1, "/w/1")
        assert a.paused
        assert b.paused
        await running.resume()
        assert not a.paused
        assert not b.paused


async def test_an_interrupted_update_leaves_nothing_mixed_nor_paused() -> None:
    """A server that was told to load does so, whoever waits for it: the update is carried through behind."""
    a, b = Weighted(), Weighted()
    running = make(a, b)
    async with running:
        b.restarted()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(running.update_weights, 1, "/w/1")
                await b.loading.wait()
                scope.cancel()
        assert running.weight_version is None
        b.loaded.set()
        await until(lambda: running.weight_version == "1")
        await until(lambda: not a.paused and not b.paused)
        assert (a.weights, b.weights) == ("1", "1")


async def test_an_engine_that_ends_leaves_no_server_paused() -> None:
    """Nobody else would resume it."""
    a, b = Weighted(), Weighted()
    running = make(a, b)
    async with running:
        await running.pause()
    assert not a.paused
    assert not b.paused
