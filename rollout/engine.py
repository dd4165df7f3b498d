"""The façade that a trainer embeds, and that the command line drives.

async with Engine(EngineConfig(), GuessNumber) as engine:
    async for group in engine.stream(GuessNumber().tasks(8, seed=0), rollouts_per_task=4):
        for rollout in group.rollouts:
            samples = rollout.samples()
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Container, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self, get_args

import anyio
import anyio.abc
import msgspec

from rollout.checks import check_value, check_values, choice
from rollout.codec.protocol import Codec
from rollout.config import EngineConfig, check_config
from rollout.env import Task
from rollout.errors import ConfigError, EngineClosed, RolloutError
from rollout.histogram import Histogram
from rollout.log import get_logger
from rollout.moved import forward_members
from rollout.observe.log_thread import LogThreads
from rollout.observe.loggers import Logger
from rollout.observe.stats import Stats
from rollout.participant import Participant
from rollout.play.held import Held
from rollout.play.logprobs import warn_of_logprobs
from rollout.play.player import Player
from rollout.proxy.endpoints import HttpEndpoints
from rollout.records import Group
from rollout.schedule.concurrency import (
    START,
    AdaptiveConcurrency,
    adapt_concurrency,
    allowed_at_once,
    must_tell_its_load,
)
from rollout.schedule.group_reward import GroupReward
from rollout.schedule.hand_over import OnRollout
from rollout.schedule.held import HeldRollouts
from rollout.schedule.streams import Streams, check_env
from rollout.schedule.submissions import Submission
from rollout.servers.control import WeightControl
from rollout.servers.fleet import Fleet
from rollout.servers.weights import Weights
from rollout.transport import InFlight, ServerInfo, Transport
from rollout.workers.launch import Launch
from rollout.workers.pool import WorkerPool

_log = get_logger(__name__)


def differing_rewards(group: Group) -> bool:
    """Whether a group has something to learn from: a filter for `stream(keep=...)`."""
    return len(set(group.rewards)) > 1


def _either(
    env: Callable[[], Participant] | None, agent: Callable[[], Participant] | None
) -> Callable[[], Participant] | None:
    """What makes what plays: it goes by one of two names. Raises ConfigError where both are given."""
    if env is not None and agent is not None:
        raise ConfigError("give env= or agent=, not both: one of them plays a rollout")
    return env if agent is None else agent


class Engine:
    """Plays rollouts of one environment, or agent, against one served model."""

    def __init__(
        self,
        config: EngineConfig,
        make_env: Callable[[], Participant],
        *,
        transport: Transport | None = None,
        launch: Launch | None = None,
    ) -> None:
        """`transport` takes the place of the one that the configuration names.

        `launch` is a setting now, and as an argument goes with the next release.
        """
        if launch is not None:
            warnings.warn("Engine(launch=) is EngineConfig.launch now", DeprecationWarning, stacklevel=2)
            config = msgspec.structs.replace(config, launch=launch)
        check_values(config)
        check_env(make_env)
        self.config = config
        self._make_env = make_env
        self._given = transport
        self._weights = Weights()
        self._streams = Streams(config, self._weights)
        self._held = HeldRollouts(self._weights)
        self._opened: _Opened | None = None
        """There once it was entered, also when it is closed."""
        self._loggers = LogThreads()
        self._streams.on_group = self._loggers.on_group
        self._stack = AsyncExitStack()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Engine {self.stats()}>"

    async def __aenter__(self) -> Self:
        """Connects and loads the tokenizer. Raises ServerError, ConfigError."""
        if self._closed:
            raise EngineClosed("the engine is closed: make another")
        check_config(self.config)
        self._streams.slots.cap = allowed_at_once(self.config.most_at_once, connects=bool(self.config.base_urls))
        if self.config.pooled and self._given is not None:
            raise ConfigError("processes open transports of their own: name one by the configuration")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end_logging)
            endpoints = HttpEndpoints(self.config, plays=not self.config.pooled)
            await stack.enter_async_context(endpoints)
            player = await Player.open(
                self.config,
                self._weights,
                transport=self._given,
                on_gone=self._ended,
                on_failed=self._ended,
                endpoints=endpoints,
            )
            stack.push_async_callback(player.aclose)
            warn_of_logprobs(player.model.info, self.config)
            if self.config.concurrency == "auto":
                await must_tell_its_load(player.fleet)
            pool = await stack.enter_async_context(self._make_pool(player.fleet)) if self.config.pooled else None
            tasks = await stack.enter_async_context(anyio.create_task_group())
            self._streams.open(pool or player, self._make_env, tasks)
            beside = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(beside.cancel_scope.cancel)
            beside.start_soon(self._loggers.keep_telling, self.stats)
            control = WeightControl(player.fleet, self._tell, self._streams.end_stale)
            if pool is not None:
                beside.start_soon(control.keep_telling)
                player.fleet.on_change = control.servers_changed
            if self.config.concurrency == "auto":
                beside.start_soon(self._adapt_concurrency, player.fleet)
            self._opened = _Opened(player, pool, control)
            self._stack = stack.pop_all()
        return self

    async def _tell(self) -> None:
        """Has the processes stand as this one does."""
        if self._pool is not None:
            await self._pool.tell()

    def _make_pool(self, fleet: Fleet) -> WorkerPool:
        return WorkerPool(self.config, self._make_env, lambda: (self._weights.state, fleet.state), on_gone=self._ended)

    async def _adapt_concurrency(self, fleet: Fleet) -> None:
        streams = self._streams
        concurrency = AdaptiveConcurrency(START * max(1, len(self.config.base_urls)), streams.slots.cap)
        await adapt_concurrency(concurrency, streams.slots, fleet, lambda: streams.stats.faults, streams.slot_freed)

    def _ended(self, error: RolloutError) -> None:
        """No server is left, or no process, or what environments share cannot be had."""
        self._streams.fail(error)

    async def __aexit__(self, *exc_info: object) -> None:
        self._closed = True
        self._streams.close()
        await self._held.aclose()
        try:
            await self._stack.aclose()
        finally:
            await self._streams.closed()

    def log_to(self, *loggers: Logger, groups: int = 0) -> None:
        """Has loggers told of each group that comes, and every 10 s and at the end of where the engine stands.

        Each is called in a thread of its own, and closed with the engine: see `rollout.observe.loggers`. What it raises
        or is too slow for is its loss, counted and said. `groups` had come before, where a training goes on: steps
        count on from there. Raises EngineClosed.
        """
        if self._closed:
            raise EngineClosed("the engine is closed: nothing more is logged")
        check_value("groups", groups, int)
        self._loggers.groups = max(self._loggers.groups, groups)
        for logger in loggers:
            self._loggers.add(logger)

    async def _end_logging(self) -> None:
        if self._loggers:
            self._loggers.on_stats(self.stats())
        await self._loggers.aclose()

    @property
    def _entered(self) -> _Opened:
        if self._opened is None:
            raise RuntimeError("enter the engine first: async with Engine(...) as engine")
        return self._opened

    @property
    def _player(self) -> Player:
        return self._entered.player

    @property
    def _pool(self) -> WorkerPool | None:
        return self._opened.pool if self._opened is not None else None

    @property
    def open(self) -> bool:
        """Whether it was entered, and is not closed."""
        return self._opened is not None and not self._closed

    @property
    def server(self) -> ServerInfo:
        """What the server says of itself."""
        return self._player.model.info

    @property
    def codec(self) -> Codec | None:
        """The bridges in use; None where there is neither a tokenizer nor /tokenize."""
        return self._player.model.codec

    def stream(
        self,
        tasks: Iterable[Task] | AsyncIterable[Task],
        *,
        env: Callable[[], Participant] | None = None,
        agent: Callable[[], Participant] | None = None,
        rollouts_per_task: int = 1,
        skip: Container[tuple[int, int]] = (),
        on_rollout: OnRollout | None = None,
        keep: Callable[[Group], bool] | None = None,
        group_reward: GroupReward | None = None,
        evaluation: bool = False,
        share: float = 1.0,
        ahead: int | None = None,
    ) -> AsyncGenerator[Group]:
        """Plays every task `rollouts_per_task` times; yields each group when its last member ends.

        `env` makes the environments that play them, or `agent` the agents; the engine's own, if not given. So
        training, and evaluation on another environment, share one engine: its servers, its slots, its weights.

        Tasks are drawn as slots become free, so there may be endlessly many: a list's at once, those of any other
        iterable in a thread of its own, those of an async one on the loop. `skip` names (task index, member) pairs that
        are not played. `on_rollout` is awaited for each rollout as it ends, before its slot is filled again; what it
        raises ends the stream. Admission waits while `ahead` finished groups (as many as slots, if not given) have not
        been taken: what bounds how far rollouts run ahead of a trainer. Streams share the engine's slots; this one
        takes `share` of them at most.

        A group whose finished members became too stale while it waited to be taken has them as failures.
        `group_reward` sets the finished members' rewards, see `rollout.schedule.group_reward`; `keep` decides which
        groups are yielded, and what it drops is counted in `stats().dropped_groups`. `evaluation` rollouts are never
        ended as stale. How a stream may end, and where what was played is then: see `rollout.schedule.stream`.
        Cancelling an `anext` gives the stream up.
        """
        return self._streams.stream(
            tasks,
            env=_either(env, agent),
            rollouts_per_task=rollouts_per_task,
            skip=skip,
            on_rollout=on_rollout,
            keep=keep,
            group_reward=group_reward,
            evaluation=evaluation,
            share=share,
            ahead=ahead,
        )

    def endpoint(
        self, task: Task | None = None, *, task_index: int | None = None, member: int = 0, evaluation: bool = False
    ) -> Held:
        """One rollout whose agent the caller runs itself: the model over HTTP while a block lasts::

            async with engine.endpoint(task) as held:
                await my_agent(held.endpoint.base_url, held.endpoint.api_key)
                held.finish(reward=1.0)
            held.rollout.samples()

        It is played in this process, beside the engine's slots: how many run at once is the caller's to say.
        `task_index` and `member` name it, as a stream would; without an index each is a task of its own.
        Raises ConfigError for a task that cannot be written. See `rollout.play.held`.
        """
        return self._held.hold(self._player, task or {}, task_index, member, evaluation=evaluation)

    @property
    def untaken(self) -> list[Group]:
        """What was played in streams that were given up, or had not been taken when the engine was closed.

        To be emptied by `take_untaken`: beyond 10,000 groups the oldest are dropped, with a warning.
        """
        return self._streams.untaken

    def take_untaken(self) -> list[Group]:
        """Empties `untaken`, and returns what was there."""
        return self._streams.take_untaken()

    async def submit(
        self,
        task: Task,
        *,
        env: Callable[[], Participant] | None = None,
        agent: Callable[[], Participant] | None = None,
        rollouts: int = 1,
    ) -> Submission:
        """Plays one task beside whatever else is played; its group comes by the submission, or by `collect`.

        `env` makes the environments that play it, or `agent` the agents; the engine's own, if not given.
        Raises ConfigError for a task that cannot be written, and what ended the engine, once something has.
        """
        return await self._streams.submit(task, env=_either(env, agent), rollouts=rollouts)

    async def collect(self, count: int) -> list[Group]:
        """The next `count` groups of submitted tasks, as they finished. Fewer where fewer were submitted.

        Those that are there are given also after the engine was closed. Where none is, and some were never played,
        raises what ended the engine.
        """
        return await self._streams.collect(count)

    def stop_admitting(self) -> None:
        """No new rollouts, for the engine's life; running ones end after their current turn, as cancelled."""
        if self._opened is not None:
            (self._opened.pool or self._opened.player).stop()
        self._streams.stop_admitting()

    def cancel(self) -> None:
        """Ends what there is, now: streams and submissions. Requests are closed on the server too.

        What is started afterwards is played as ever.
        """
        self._streams.cancel()

    @property
    def weight_version(self) -> str | None:
        """As last named by `update_weights`; before that as the server named it, None where it does not."""
        return self._weights.version

    async def pause(self, in_flight: InFlight = "keep") -> None:
        """Has the server stop sampling until `resume`. Raises ConfigError where it cannot be told to."""
        choice("in_flight", in_flight, get_args(InFlight))
        await self._control.pause(in_flight)

    async def resume(self) -> None:
        """Goes on after `pause`."""
        await self._control.resume()

    async def update_weights(
        self, version: str | int, path: str | Path | None = None, *, in_flight: InFlight = "keep"
    ) -> None:
        """Pauses, loads the folder's weights (None: the server has them), names their version, resumes.

        Requests in flight are kept, waited for, or aborted; an aborted one goes on from its sampled tokens. Tokens
        carry the version that sampled them. The servers go on, with their old weights, where loading fails on all:
        raises TransportError then. Where it fails on some these are out, until they are level with the others. Raises
        ConfigError for a server whose weights cannot be changed. A `pause` of the caller's own stays in force.
        """
        choice("in_flight", in_flight, get_args(InFlight))
        await self._control.update(str(version), str(path) if path is not None else None, in_flight)

    @property
    def _control(self) -> WeightControl:
        if self._pool is not None and not self.config.base_urls:
            raise ConfigError("each process has an embedded model of its own: serve one by `rollout serve`")
        return self._entered.control

    def stats(self) -> Stats:
        """Where the engine stands now."""
        stats = msgspec.structs.replace(self._streams.stats)
        slots = self._streams.slots
        stats.running, stats.most_running, stats.concurrency = slots.used, slots.most_used, slots.cap
        stats.queued = sum(run.scheduler.queued for run in self._streams.runs)
        stats.weight_version, stats.weight_updates = self._weights.version, self._weights.updates
        self._streams.tallies.tell(stats)
        stats.hanging_calls = self._streams.hanging
        if self._opened is not None:
            stats.servers = self._opened.player.fleet.states
            stats.add(self._opened.player.played())
        if self._pool is not None:
            stats.processes, stats.process_deaths = self._pool.count, self._pool.deaths
            for played in self._pool.played():
                stats.add(played)
        return stats

    async def first_tokens(self) -> Histogram | None:
        """The servers' own times to first token, of every request that they ever answered; None where they keep none.

        Raises TransportError.
        """
        return await self._player.fleet.first_tokens()


forward_members(Engine)


class _Opened(msgspec.Struct, frozen=True):
    """What an engine that was entered plays with."""

    player: Player
    pool: WorkerPool | None
    """Where it has several processes."""
    control: WeightControl
