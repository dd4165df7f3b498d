"""Plays rollouts in this process: the served model, the environments, the threads they may block.

What an engine has one of, and each of its processes, where it has several (`rollout.workers.pool`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Self

import anyio
import anyio.abc
import msgspec

from rollout.config import EngineConfig
from rollout.env import Env
from rollout.errors import RolloutError
from rollout.loop.lag import Lag
from rollout.observe.stats import Played
from rollout.play.connect import make_codec, open_fleet
from rollout.play.episode import Episode
from rollout.play.host import Hosts
from rollout.play.session import ServedModel, Session
from rollout.process.imports import settle_path
from rollout.process.threads import Threads
from rollout.records import Job
from rollout.registry import is_asynchronous
from rollout.servers.fleet import Fleet, ServerState
from rollout.servers.weights import Weights
from rollout.transport import Transport


class Player:
    """The served model and what is played on it. Owns the connections, and what watches the servers and the loop."""

    def __init__(
        self,
        config: EngineConfig,
        make_env: Callable[[], Env],
        *,
        transport: Transport | None = None,
        on_gone: Callable[[RolloutError], None] = lambda error: None,
    ) -> None:
        """`transport` takes the place of the one that the configuration names.

        `on_gone` is told what ends all that is played: no server is left, or too many calls hang in threads.
        """
        self.config = config
        self.weights = Weights()
        self._make_env = make_env
        self._given = transport
        self._on_gone = on_gone
        self._fleet: Fleet | None = None
        self._model: ServedModel | None = None
        self._threads = Threads(
            max(40, config.most_at_once), most_abandoned=config.max_abandoned_threads, on_exhausted=on_gone
        )
        self._hosts = Hosts(self._threads)
        self._asynchronous = False
        self._counted = Played()
        self._lag = Lag()
        self._stopping = False
        self._stack = AsyncExitStack()
        self._watchers: anyio.abc.TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Player {self._model.info.model if self._model else 'not connected'}, {self._counted.turns} turns>"

    async def __aenter__(self) -> Self:
        """Connects and loads the tokenizer. Raises ServerError, ConfigError."""
        settle_path()
        # A file's environment is imported here, once, and not by many rollouts at a time.
        self._asynchronous = is_asynchronous(self._make_env)
        async with AsyncExitStack() as stack:
            fleet = await open_fleet(self.config, self._given, self.weights)
            stack.push_async_callback(_close_shielded, fleet)
            codec = await make_codec(self.config, fleet, fleet.info)
            self._fleet = fleet
            self._model = ServedModel(
                transport=fleet, info=fleet.info, codec=codec, config=self.config, weights=self.weights
            )
            self._watchers = await stack.enter_async_context(anyio.create_task_group())
            self._watchers.start_soon(self._lag.watch)
            self._watchers.start_soon(fleet.watch, self._on_gone)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._watchers is not None:
            self._watchers.cancel_scope.cancel()
        await self._hosts.aclose()
        await self._stack.aclose()

    @property
    def model(self) -> ServedModel:
        """The served model; there once this was entered."""
        if self._model is None:
            raise RuntimeError("enter the engine first: async with Engine(...) as engine")
        return self._model

    @property
    def fleet(self) -> Fleet:
        """The servers; there once this was entered."""
        if self._fleet is None:
            raise RuntimeError("enter the engine first: async with Engine(...) as engine")
        return self._fleet

    @property
    def servers(self) -> list[ServerState]:
        """The servers as they stand; none before this was entered."""
        return self._fleet.states if self._fleet is not None else []

    @property
    def threads(self) -> Threads:
        """For what may block."""
        return self._threads

    def episode(self, job: Job, *, evaluation: bool) -> Episode:
        """One rollout, ready to be played."""
        session_id = f"{job.id}-{uuid.uuid4().hex[:8]}"
        session = Session(self.model, session_id, group_id=job.task_id, group_size=job.group_size)
        return Episode(
            job,
            self._make_env,
            session,
            self.config,
            hosts=self._hosts,
            asynchronous=self._asynchronous,
            stopping=lambda: self._stopping,
            staleness=lambda: self.weights.updates - job.submitted_at,
            max_staleness=None if evaluation else self.config.max_staleness,
            on_turn=self._counted.add_turn,
        )

    def stop(self) -> None:
        """Running rollouts end after their current turn, as cancelled."""
        self._stopping = True

    def played(self) -> Played:
        """What was played, and what it took."""
        played = msgspec.structs.replace(self._counted)
        played.measure()
        played.loop_lag_p99_s, played.loop_lag_max_s = self._lag.p99_s, self._lag.max_s
        played.hanging_calls = self._hosts.hanging
        if self._fleet is not None:
            traffic = self._fleet.traffic
            played.sent_bytes, played.received_bytes = traffic.sent, traffic.received
            played.trajectories = self._fleet.loads
        return played


async def _close_shielded(fleet: Fleet) -> None:
    with anyio.CancelScope(shield=True):
        await fleet.aclose()
