"""Starts workers as actors of a Ray cluster: `launch="ray"`.

Ray places them, with what each asks for (`ray_num_cpus`, `ray_resources`, `ray_runtime_env`), spread over the nodes. An
actor for which there is no room waits for it, so that workers join as the cluster grows; one that goes with its node is
asked for again. Each connects back to the engine over the address of the engine's node, with a secret of its own, and
from there on is a worker like any other.

    launcher --- messages ---> driver (a process of its own) --- Ray ---> actor
        ^                                                                   |
        +-------------------- frames, after the handshake ------------------+

What is said by Ray is only who starts where, and how it ended: see `rollout.workers.ray_driver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import pickle
import platform
from collections.abc import Callable
from typing import Any

import anyio

from rollout.address import is_loopback
from rollout.config import EngineConfig
from rollout.errors import ConfigError, RolloutError, not_installed
from rollout.log import get_logger, takes_structlog
from rollout.workers import ray_messages as messages
from rollout.workers.channel import Channel
from rollout.workers.launch import Worker
from rollout.workers.ray_actor import engine_version, stands
from rollout.workers.ray_link import Link
from rollout.workers.rendezvous import HostChannel, Rendezvous

#: How long the driver may take to be part of the cluster, and an actor that is there to connect to the engine.
JOIN_S = 60.0
CONNECT_S = 60.0

#: After so many seconds in which no node had room for an actor it is said, once.
ROOM_S = 10.0

#: What is said where no node has what an actor asks for.
_LACKING = (
    "no node of the cluster has so much: add one (ray start --resources), or ask for less (ray_resources, ray_num_cpus)"
)

#: How long Ray may take to say how an actor ended whose connection has.
_WORD_S = 1.0

#: How long an actor may take to say what its threads are doing.
_TRACE_S = 2.0

_log = get_logger(__name__)


class RayWorker:
    """An actor that has connected."""

    def __init__(self, placed: messages.Placed, channel: HostChannel, driver: Link) -> None:
        self._placed = placed
        self._channel = channel
        self._driver = driver
        self._how: str | None = None
        self._over = anyio.Event()
        self._traced: asyncio.Future[str] | None = None

    def __repr__(self) -> str:
        return f"<RayWorker {self._placed.pid} on {self._placed.host}, {self._how or 'running'}>"

    @property
    def channel(self) -> Channel:
        """See `Worker`."""
        return self._channel

    async def ended(self) -> str:
        """See `Worker`. Where its connection has ended Ray may take long to know: a node that is silent, 12 s."""
        if self._how is None:
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(self._connection_ended)
                await self._over.wait()
                waiting.cancel_scope.cancel()
        return f"{self._how} (on {self._placed.host})"

    async def trace(self) -> str:
        """See `Worker`."""
        if self._how is not None:
            return ""
        traced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._traced = traced
        self._driver.say(messages.Trace(self._placed.number))
        with anyio.move_on_after(_TRACE_S):
            return await traced
        return ""

    def kill(self) -> None:
        """See `Worker`. A node that is gone confirms nothing, so nothing is waited for."""
        self._driver.say(messages.Kill(self._placed.number))
        self.end("it was ended by the engine")

    def end(self, how: str) -> None:
        """It has ended."""
        if self._how is None:
            self._how = how
            self._over.set()

    def traced(self, text: str) -> None:
        """What it has said that its threads do."""
        if self._traced is not None and not self._traced.done():
            self._traced.set_result(text)

    async def _connection_ended(self) -> None:
        await self._channel.ended.wait()
        await anyio.sleep(_WORD_S)
        self.end("its connection ended, and Ray has not said why")


class _Starting:
    """An actor that is not a worker yet."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.placed: asyncio.Future[messages.Placed] = loop.create_future()
        self.failed: asyncio.Future[str] = loop.create_future()
        """How it ended before it was one."""
        self.lacking: asyncio.Future[list[str]] = loop.create_future()
        """What no node has of that which it asks for."""
        self.worker: RayWorker | None = None


class RayLaunch:
    """The launcher. See `rollout.workers.launch.Launcher`."""

    elastic = True

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError where Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise not_installed("launch 'ray'", "ray", "ray")
        self._config = config
        self._link: Link | None = None
        self._rendezvous: Rendezvous | None = None
        self._host = ""
        self._cluster = ""
        self._numbers = itertools.count(1)
        self._actors: dict[int, _Starting] = {}
        self._listening: asyncio.Task[None] | None = None
        self._on_lost: Callable[[RolloutError], None] = lambda _: None
        self._lost: RolloutError | None = None
        self._said_no_room = False

    def __repr__(self) -> str:
        return f"<RayLaunch on {self._cluster or 'no cluster yet'}, {len(self._actors)} actors>"

    def pickled(self, make_env: Callable[[], Any]) -> bytes:
        """See `Launcher`. What is of the main script goes by value: no worker runs that, and in a trainer's actor it is
        another's."""
        with contextlib.suppress(Exception):
            plain = pickle.dumps(make_env)
            if b"__main__" not in plain:
                return plain
        from ray import cloudpickle

        by_value: bytes = cloudpickle.dumps(make_env)
        return by_value

    async def open(self, *, main_script: bool, on_lost: Callable[[RolloutError], None]) -> None:
        """See `Launcher`."""
        config = self._config
        self._link = await Link.open()
        asked = messages.Connect(
            config.ray_address, config.ray_num_cpus, dict(config.ray_resources), dict(config.ray_runtime_env)
        )
        self._link.say(asked)
        connected = None
        with anyio.move_on_after(JOIN_S):
            connected = await self._link.hear()
        if not isinstance(connected, messages.Connected):
            said = connected.why if isinstance(connected, messages.NotConnected) else self._link.last_words()
            raise ConfigError(f"no Ray cluster{_at(config.ray_address)}: {said or 'it does not answer'}")
        self._host, self._cluster = connected.host, connected.cluster
        host, port = listens(config.ray_listen, self._host)
        self._rendezvous = Rendezvous(host)
        await self._rendezvous.open(port)
        self._on_lost = on_lost
        self._listening = asyncio.create_task(self._listen(self._link))

    async def start(self) -> Worker:
        """See `Launcher`. Waits until a node has room. Raises RolloutError."""
        link = self._link
        assert link is not None, "it is opened first"
        if self._lost is not None:
            raise self._lost
        number = next(self._numbers)
        starting = self._actors[number] = _Starting()
        link.say(messages.Start(number))
        try:
            placed = await self._placed(link, number, starting)
            self._refuse(placed)
            starting.worker = worker = RayWorker(placed, await self._connected(link, starting, placed), link)
            return worker
        finally:
            if starting.worker is None:
                link.say(messages.Kill(number))
                self._actors.pop(number, None)

    async def aclose(self) -> None:
        """See `Launcher`. Whole also where opening was cancelled: what speaks to Ray is a process, and ends with it."""
        with anyio.CancelScope(shield=True):
            if self._listening is not None:
                self._listening.cancel()
                await asyncio.wait([self._listening])
            if self._rendezvous is not None:
                self._rendezvous.close()
            if self._link is not None:
                await self._link.aclose(lost=self._lost is not None)

    def _tell_no_room(self, lacking: list[str]) -> None:
        """Once. Where no node will do somebody must do something, or an autoscaler."""
        if self._said_no_room:
            return
        self._said_no_room = True
        asks = {"num_cpus": self._config.ray_num_cpus, **self._config.ray_resources}
        what: dict[str, Any] = {"no_node_has": lacking, "hint": _LACKING} if lacking else {}
        _log.warning("process_waits_for_room", cluster=self._cluster, asks=asks, **what)

    async def _placed(self, link: Link, number: int, starting: _Starting) -> messages.Placed:
        """Waits until Ray has made the actor. Raises RolloutError."""
        waits: set[asyncio.Future[Any]] = {starting.placed, starting.failed}
        done, _ = await asyncio.wait(waits, timeout=ROOM_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            link.say(messages.AskLacking(number))
            await asyncio.wait({*waits, starting.lacking}, return_when=asyncio.FIRST_COMPLETED)
            self._tell_no_room(starting.lacking.result() if starting.lacking.done() else [])
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if starting.failed.done():
            raise RolloutError(f"a Ray actor could not be started: {starting.failed.result()}")
        return starting.placed.result()

    async def _connected(self, link: Link, starting: _Starting, placed: messages.Placed) -> HostChannel:
        """Waits until the actor has connected. Raises RolloutError."""
        assert self._rendezvous is not None
        channel = self._rendezvous.await_worker(placed.number, placed.secret)
        at, moves = self._rendezvous, not self._config.ray_runtime_env.get("working_dir")
        stood = stands(structlog=takes_structlog(), moves=moves)
        try:
            link.say(messages.Play(placed.number, at.host, at.port, stood))
            waits: set[asyncio.Future[Any]] = {channel, starting.failed}
            await asyncio.wait(waits, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
            if channel.done():
                return channel.result()
        finally:
            channel.cancel()
        how = starting.failed.result() if starting.failed.done() else f"it has not connected within {CONNECT_S:g} s"
        raise RolloutError(f"a Ray actor on {placed.host} does not reach {at.host}:{at.port}: {how}")

    def _refuse(self, placed: messages.Placed) -> None:
        """Raises ConfigError where an actor is not one that this engine can speak to."""
        if differing := differs(placed.python, placed.engine):
            raise ConfigError(f"a Ray actor on {placed.host} runs {differing}: the same must be on every node")
        if placed.host != self._host:
            for url in self._config.base_urls:
                if is_loopback(url):
                    raise ConfigError(
                        f"base_url {url} is this machine alone, and a Ray actor runs on {placed.host}: give the "
                        "server's address in the network"
                    )

    async def _listen(self, link: Link) -> None:
        """Hands on what the driver says, until it is gone."""
        why = ""
        while (event := await link.hear()) is not None:
            if isinstance(event, messages.Lost):
                why = event.why
                break
            if isinstance(event, messages.Placed | messages.Over | messages.Traced | messages.Lacking):
                self._take(event)
        why = why or link.last_words() or "what spoke to it has ended"
        self._lost = RolloutError(f"the Ray cluster at {self._cluster} is gone: {why}")
        for starting in self._actors.values():
            if starting.worker is None and not starting.failed.done():
                starting.failed.set_result(str(self._lost))
        self._on_lost(self._lost)

    def _take(self, event: messages.Placed | messages.Over | messages.Traced | messages.Lacking) -> None:
        starting = self._actors.get(event.number)
        if starting is None:
            return
        match event:
            case messages.Placed() if not starting.placed.done():
                starting.placed.set_result(event)
            case messages.Lacking(_, names) if not starting.lacking.done():
                starting.lacking.set_result(names)
            case messages.Over(number, how):
                self._actors.pop(number, None)
                if starting.worker is not None:
                    starting.worker.end(how)
                elif not starting.failed.done():
                    starting.failed.set_result(how)
            case messages.Traced(_, text) if starting.worker is not None:
                starting.worker.traced(text)


def differs(python: str, engine: str) -> str:
    """What of another process's versions differs from this one's; nothing where they fit."""
    ours = platform.python_version()
    if python.split(".")[:2] != ours.split(".")[:2]:
        return f"Python {python}, and the engine {ours}"
    if engine != engine_version():
        return f"rollout-engine {engine}, and the engine {engine_version()}"
    return ""


def _at(address: str | None) -> str:
    return f" at {address}" if address else ""


def listens(listen: str | None, host: str) -> tuple[str, int]:
    """The host and port to listen on: what `ray_listen` says, else a free port of the node's address."""
    if listen is None:
        return host, 0
    name, _, port = listen.rpartition(":")
    return (name.strip("[]"), int(port)) if name and port.isdigit() else (listen.strip("[]"), 0)
