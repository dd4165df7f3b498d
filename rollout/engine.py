"""The façade that a trainer embeds, and that the command line drives.

async with Engine(EngineConfig(), GuessNumber) as engine:
    async for group in engine.stream(GuessNumber().tasks(8, seed=0), rollouts_per_task=4):
        for rollout in group.rollouts:
            samples = samples_of(rollout)
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from rollout.codec import Codec, ServerCodec, load_codec
from rollout.config import EngineConfig
from rollout.env import Env, Task
from rollout.episode import Episode, Job
from rollout.errors import ConfigError
from rollout.records import Group, Rollout, Route, Turn
from rollout.registry import find_transport
from rollout.scheduler import Scheduler
from rollout.session import ServedModel, Session
from rollout.transport import ServerInfo, Transport, TransportConfig

_log = structlog.get_logger(__name__)

OnRollout = Callable[[Rollout], Awaitable[None]]


class Stats(msgspec.Struct, kw_only=True):
    """Where an engine stands. Counts are over its whole life."""

    running: int = 0
    queued: int = 0
    finished: int = 0
    failed: int = 0
    turns: int = 0
    token_in_turns: int = 0
    message_in_turns: int = 0
    completion_tokens: int = 0
    concurrency: int = 0


class Engine:
    """Plays rollouts of one environment against one served model."""

    def __init__(
        self, config: EngineConfig, make_env: Callable[[], Env], *, transport: Transport | None = None
    ) -> None:
        """`transport` takes the place of the one that the configuration names."""
        self.config = config
        self._make_env = make_env
        self._given = transport
        self._stack = AsyncExitStack()
        self._model: ServedModel | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._schedulers: list[_Run] = []
        self._threads = anyio.CapacityLimiter(max(40, config.concurrency))
        self._stats = Stats(concurrency=config.concurrency)
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Engine {self.stats()}>"

    async def __aenter__(self) -> Self:
        """Connects and loads the tokenizer. Raises ServerError, ConfigError."""
        check_config(self.config)
        async with AsyncExitStack() as stack:
            transport = self._given or open_transport(self.config)
            stack.push_async_callback(_close_shielded, transport)
            info = await transport.connect()
            codec = await make_codec(self.config, transport, info)
            self._model = ServedModel(transport=transport, info=info, codec=codec, config=self.config)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()
        await self._stack.aclose()

    @property
    def server(self) -> ServerInfo:
        """What the server says of itself."""
        return self._entered().info

    @property
    def codec(self) -> Codec | None:
        """The bridges in use; None where there is neither a tokenizer nor /tokenize."""
        return self._entered().codec

    async def stream(
        self,
        tasks: Iterable[Task],
        *,
        rollouts_per_task: int = 1,
        skip: Container[tuple[int, int]] = (),
        on_rollout: OnRollout | None = None,
    ) -> AsyncIterator[Group]:
        """Plays every task `rollouts_per_task` times; yields each group when its last member ends.

        `skip` names (task index, member) pairs that are not played. `on_rollout` is awaited for each rollout
        as it ends, before its slot is filled again. Admission waits while as many finished groups as slots
        have not been taken.
        """
        self._entered()
        assert self._tasks is not None
        send, receive = anyio.create_memory_object_stream[Group](float("inf"))
        scheduler = Scheduler(
            tasks,
            cap=self.config.concurrency,
            rollouts_per_task=rollouts_per_task,
            skip=skip,
            max_waiting_groups=self.config.concurrency,
        )
        run = _Run(self, scheduler, send, on_rollout)
        self._schedulers.append(run)
        try:
            with receive:
                self._tasks.start_soon(run.play)
                async for group in receive:
                    yield group
                    run.taken()
            if run.error is not None:
                raise run.error
        finally:
            run.scope.cancel()
            self._schedulers.remove(run)

    def stop_admitting(self) -> None:
        """No new rollouts; running ones end after their current turn, as cancelled."""
        self._stopping = True
        for run in self._schedulers:
            run.stop()

    def cancel(self) -> None:
        """Ends what runs, now. Requests are closed on the server too."""
        self._stopping = True
        for run in self._schedulers:
            run.scope.cancel()

    def stats(self) -> Stats:
        """Where the engine stands now."""
        stats = msgspec.structs.replace(self._stats)
        stats.running = sum(len(run.scheduler.running) for run in self._schedulers)
        stats.queued = sum(run.scheduler.queued for run in self._schedulers)
        return stats

    def episode(self, job: Job) -> Episode:
        """One rollout, ready to be played."""
        session = Session(self._entered(), f"{job.id}-{uuid.uuid4().hex[:8]}")
        return Episode(
            job,
            self._make_env,
            session,
            self.config,
            threads=self._threads,
            stopping=lambda: self._stopping,
            on_turn=self._count,
        )

    def _count(self, turn: Turn) -> None:
        self._stats.turns += 1
        self._stats.completion_tokens += turn.completion_tokens
        if turn.route is Route.TOKEN_IN:
            self._stats.token_in_turns += 1
        else:
            self._stats.message_in_turns += 1

    def count_end(self, rollout: Rollout) -> None:
        """Counts a rollout that ended."""
        if rollout.ok:
            self._stats.finished += 1
        else:
            self._stats.failed += 1

    def _entered(self) -> ServedModel:
        if self._model is None:
            raise RuntimeError("enter the engine first: async with Engine(...) as engine")
        return self._model


class _Run:
    """One `stream`: the shell around a scheduler."""

    def __init__(
        self, engine: Engine, scheduler: Scheduler, send: MemoryObjectSendStream[Group], on_rollout: OnRollout | None
    ) -> None:
        self.scheduler = scheduler
        self.scope = anyio.CancelScope()
        self.error: Exception | None = None
        """What `on_rollout` or the tasks' iterator raised: the caller's, so it ends the stream."""
        self._engine = engine
        self._send = send
        self._on_rollout = on_rollout
        self._wake = anyio.Event()

    async def play(self) -> None:
        """Plays until nothing is left. What goes wrong in one rollout is that rollout's result."""
        with self._send, self.scope:
            try:
                async with anyio.create_task_group() as players:
                    while not self.scheduler.done:
                        for job in self.scheduler.admit():
                            players.start_soon(self._play_one, job)
                        if self.scheduler.done:
                            break
                        await self._wake.wait()
                        self._wake = anyio.Event()
            except* Exception as errors:
                self.error = _first(errors)

    async def _play_one(self, job: Job) -> None:
        episode = self._engine.episode(job)
        try:
            await episode.play()
        finally:
            # Shielded: a cancelled episode must still return its permit, and its rollout is kept.
            with anyio.CancelScope(shield=True):
                await self._ended(episode.rollout)

    async def _ended(self, rollout: Rollout) -> None:
        self._engine.count_end(rollout)
        try:
            if self._on_rollout is not None:
                await self._on_rollout(rollout)
        finally:
            group = self.scheduler.on_finished(rollout)
            self._wake.set()
            if group is not None:
                self._deliver(group)

    def _deliver(self, group: Group) -> None:
        # The consumer may be gone; the rollouts were handed to `on_rollout` before.
        try:
            self._send.send_nowait(group)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            _log.debug("group_not_taken", task=group.task_id)

    def taken(self) -> None:
        self.scheduler.on_taken()
        self._wake.set()

    def stop(self) -> None:
        for group in self.scheduler.stop():
            self._deliver(group)
        self._wake.set()


def check_config(config: EngineConfig) -> None:
    """Raises ConfigError for settings that contradict each other or cannot be."""
    if config.mode == "mito" and config.require_token_in:
        raise ConfigError("mode mito sends messages, and require_token_in forbids it: drop one of them")
    for name in ("concurrency", "max_tokens", "max_turns", "max_model_len"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be 1 or more, not {value}")
    if config.transport in ("vllm", "dynamo") and config.base_url is None:
        raise ConfigError(f"transport {config.transport!r} needs the server's address: give base_url")


def open_transport(config: EngineConfig) -> Transport:
    """The transport that a configuration names, not yet connected. Raises ConfigError."""
    name = config.transport
    if name == "auto" and config.base_url is None:
        name = "embedded"
    return find_transport(name)(
        TransportConfig(
            base_url=config.base_url,
            model=config.model,
            api_key=api_key(config.api_key_env),
            timeout_s=config.request_timeout_s,
            retries=config.http_retries,
            max_connections=max(64, config.concurrency),
            token_route=config.token_route,
            headers=config.headers,
        )
    )


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable. Raises ConfigError where it was named and is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"environment variable {variable} is not set; it was to hold the API key")
    return key


async def make_codec(config: EngineConfig, transport: Transport, info: ServerInfo) -> Codec | None:
    """The codec for a served model. Raises ConfigError where the tokenizer that the user named cannot be used."""
    if config.renderer != "server":
        names = [config.tokenizer] if config.tokenizer else _tokenizer_guesses(info)
        for name in names:
            try:
                return await anyio.to_thread.run_sync(
                    lambda name=name: load_codec(  # type: ignore[misc]  # mypy infers no type for a default
                        name, renderer=config.renderer, thinking_retention=config.thinking_retention
                    )
                )
            except ConfigError:
                if config.tokenizer or config.renderer != "auto":
                    raise
    if info.can_tokenize:
        return ServerCodec(transport)
    _log.warning("no_tokenizer", hint="every turn goes message-in; name the model's tokenizer by --tokenizer")
    return None


def _tokenizer_guesses(info: ServerInfo) -> list[str]:
    """Names to try, the server's own word first. A bare served name is no hub name, so it is not looked up."""
    named = [name for name in (info.tokenizer, info.model) if name]
    return list(dict.fromkeys(name for name in named if Path(name).is_dir() or "/" in name))


async def _close_shielded(transport: Transport) -> None:
    with anyio.CancelScope(shield=True):
        await transport.aclose()


def _first(errors: BaseExceptionGroup[BaseException]) -> Exception:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
