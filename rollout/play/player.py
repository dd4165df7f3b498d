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
from rollout.errors import RolloutError
from rollout.loop.lag import Lag
from rollout.observe.spans import Spans
from rollout.observe.stats import Played
from rollout.participant import Participant
from rollout.play.connect import make_codec, open_fleet
from rollout.play.episode import Episode
from rollout.play.form import settle_config
from rollout.play.host import GRACE_S, Hosts
from rollout.play.model import Endpoints
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.play.setups import Setups
from rollout.process.imports import settle_path
from rollout.process.threads import Threads
from rollout.records import Job, Turn
from rollout.registry import class_of, is_asynchronous
from rollout.servers.fleet import Fleet
from rollout.servers.weights import Weights
from rollout.transport import Transport


def _nobody(error: RolloutError) -> None:
    """Tells nobody."""


class Player:
    """The served model and what is played on it. Owns the connections, and what watches the servers and the loop."""

    def __init__(
        self,
        config: EngineConfig,
        fleet: Fleet,
        model: ServedModel,
        watchers: anyio.abc.TaskGroup,
        *,
        on_gone: Callable[[RolloutError], None] = _nobody,
        on_failed: Callable[[RolloutError], None] = _nobody,
        on_setup: Callable[[], None] = lambda: None,
        endpoints: Endpoints | None = None,
    ) -> None:
        """Made by `open`. The watchers are cancelled at its end."""
        self.config = config
        self.fleet = fleet
        """The servers."""
        self.model = model
        self.weights = model.weights
        threads = Threads(
            max(40, config.most_at_once), most_abandoned=config.max_abandoned_threads, on_exhausted=on_gone
        )
        self._hosts = Hosts(threads)
        self._setups = Setups(
            self._hosts,
            watchers,
            on_failed=on_failed,
            on_entered=on_setup,
            close_timeout_s=config.close_timeout_s,
        )
        self._endpoints = endpoints
        self._counted = Played()
        self._lag = Lag()
        self._stopping = False
        self._watchers = watchers
        self._stack = AsyncExitStack()
        watchers.start_soon(self._lag.watch)
        watchers.start_soon(fleet.watch, on_gone)

    def __repr__(self) -> str:
        return f"<Player {self.model.info.model}, {self._counted.turns} turns>"

    @classmethod
    async def open(
        cls,
        config: EngineConfig,
        weights: Weights,
        *,
        transport: Transport | None = None,
        on_gone: Callable[[RolloutError], None] = _nobody,
        on_failed: Callable[[RolloutError], None] = _nobody,
        on_setup: Callable[[], None] = lambda: None,
        endpoints: Endpoints | None = None,
    ) -> Self:
        """Connects and loads the tokenizer. Raises ServerError, ConfigError.

        `transport` takes the place of the one that the configuration names. `on_gone` is told what ends all that is
        played: no server is left, or too many calls hang in threads; `on_failed`, that an environment's setup failed;
        `on_setup`, that one is about to be entered. `endpoints` serve rollouts' models over HTTP.
        """
        settle_path()
        async with AsyncExitStack() as stack:
            fleet = await open_fleet(config, transport, weights)
            stack.push_async_callback(_close_shielded, fleet)
            config = settle_config(config, fleet.info)
            codec = await make_codec(config, fleet, fleet.info)
            spans = Spans(fleet.info.model, fleet.info.dialect) if config.tracing else None
            model = ServedModel(
                transport=fleet, info=fleet.info, codec=codec, config=config, weights=weights, spans=spans
            )
            watchers = await stack.enter_async_context(anyio.create_task_group())
            player = cls(
                config,
                fleet,
                model,
                watchers,
                on_gone=on_gone,
                on_failed=on_failed,
                on_setup=on_setup,
                endpoints=endpoints,
            )
            player._stack = stack.pop_all()
        return player

    async def aclose(self) -> None:
        """Closes what environments share, and the connections. No rollout is under way any more."""
        self._watchers.cancel_scope.cancel()
        if self._setups.any:
            await self._hosts.closed(GRACE_S)  # an environment that is closed late may need what it shared
            await self._setups.aclose()
        await self._hosts.aclose()
        await self._stack.aclose()

    def of(self, make_env: Callable[[], Participant]) -> PlayedEnv:
        """Rollouts of one environment. Raises ConfigError where it is named, and not to be found."""
        return PlayedEnv(self, make_env, asynchronous=is_asynchronous(make_env))

    def episode(self, job: Job, env: PlayedEnv, *, evaluation: bool) -> Episode:
        """One rollout, ready to be played."""
        session_id = f"{job.id}-{uuid.uuid4().hex[:8]}"
        session = Session(self.model, session_id, group_id=job.task_id, group_size=job.group_size)
        return Episode(
            job,
            env.make_env,
            session,
            self.config,
            hosts=self._hosts,
            setups=self._setups,
            asynchronous=env.asynchronous,
            stopping=lambda: self._stopping,
            staleness=lambda: self.weights.updates - job.submitted_at,
            max_staleness=None if evaluation else self.config.max_staleness,
            on_turn=self._counted.add_turn,
            endpoints=self._endpoints,
            spans=self.model.spans,
            name=env.name,
        )

    def stop(self) -> None:
        """Running rollouts end after their current turn, as cancelled."""
        self._stopping = True
        self._setups.stop()

    def count_turn(self, turn: Turn) -> None:
        """Counts a turn of a rollout that was not made by `episode`."""
        self._counted.add_turn(turn)

    def played(self) -> Played:
        """What was played, and what it took."""
        played = msgspec.structs.replace(self._counted)
        played.measure()
        played.loop_lag_p99_s, played.loop_lag_max_s = self._lag.p99_s, self._lag.max_s
        played.hanging_calls = self._hosts.hanging
        traffic = self.fleet.traffic
        played.sent_bytes, played.received_bytes = traffic.sent, traffic.received
        played.trajectories, played.asked = self.fleet.loads, self.fleet.tallies
        return played


class PlayedEnv:
    """Rollouts of one environment, in this process."""

    def __init__(self, player: Player, make_env: Callable[[], Participant], *, asynchronous: bool) -> None:
        self.make_env = make_env
        made = class_of(make_env)
        self.name = made.__name__ if made is not None else "environment"
        """What its spans are called by."""
        self.asynchronous = asynchronous
        """Whether it is made in the task that it then lives in."""
        self._player = player

    def __repr__(self) -> str:
        return f"<PlayedEnv {self.make_env!r}>"

    def episode(self, job: Job, *, evaluation: bool) -> Episode:
        """One rollout, ready to be played."""
        return self._player.episode(job, self, evaluation=evaluation)


async def _close_shielded(fleet: Fleet) -> None:
    with anyio.CancelScope(shield=True):
        await fleet.aclose()
