"""The façade that a trainer embeds, and that the command line drives.

async with Engine(EngineConfig(), GuessNumber) as engine:
    async for group in engine.stream(GuessNumber().tasks(8, seed=0), rollouts_per_task=4):
        for rollout in group.rollouts:
            samples = samples_of(rollout)
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import anyio
import anyio.abc
import msgspec

from rollout.codec import Codec
from rollout.config import EngineConfig
from rollout.connect import check_config
from rollout.crew import Crew, Standing
from rollout.crew.launch import Launch
from rollout.env import Env, Task
from rollout.episode import Job
from rollout.errors import ConfigError, RolloutError, TransportError
from rollout.fleet import Fleet
from rollout.histogram import Histogram
from rollout.pace import START, Pace, keep_pace
from rollout.player import Player
from rollout.records import Failure, FailureKind, Group, Rollout
from rollout.runs import OnRollout, Playable, StreamRun, Submission, Submissions
from rollout.scheduler import Scheduler, Slots
from rollout.stats import Stats
from rollout.transport import InFlight, ServerInfo, Transport

#: A whole group's rewards, one for each finished member in their order; a plain function runs in a thread.
GroupReward = Callable[[Group], Sequence[float] | Awaitable[Sequence[float]]]

#: Failures that another attempt may not meet: `rollout_retries` is for these.
_RETRIED = frozenset({FailureKind.ENVIRONMENT, FailureKind.TRANSPORT, FailureKind.PROCESS, FailureKind.TIMEOUT})


#: Processes that one rollout may cost: one that has ended so many is what ends them.
_MOST_PROCESSES = 3


def differing_rewards(group: Group) -> bool:
    """Whether a group has something to learn from: a filter for `stream(keep=...)`."""
    return len(set(group.rewards)) > 1


class Engine:
    """Plays rollouts of one environment against one served model."""

    def __init__(
        self,
        config: EngineConfig,
        make_env: Callable[[], Env],
        *,
        transport: Transport | None = None,
        launch: Launch | None = None,
    ) -> None:
        """`transport` takes the place of the one that the configuration names.

        `launch` starts a process, where there are to be several: a cluster has another way than this machine.
        """
        self.config = config
        self._make_env = make_env
        self._given = transport is not None
        self._launch = launch
        self._stack = AsyncExitStack()
        self._player = Player(config, make_env, transport=transport, on_gone=self._ended)
        self._crew: Crew | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._runs: list[StreamRun] = []
        self._submissions: Submissions | None = None
        self._slots = Slots(config.most_at_once)
        self._weights = self._player.weights
        self._weights_lock = anyio.Lock()
        self.untaken: list[Group] = []
        """Groups of streams that were given up which had finished members: nothing that finished is lost."""
        self._stats = Stats()
        self._pacing: anyio.CancelScope | None = None
        self._gone: RolloutError | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Engine {self.stats()}>"

    async def __aenter__(self) -> Self:
        """Connects and loads the tokenizer. Raises ServerError, ConfigError."""
        check_config(self.config)
        if self.config.processes > 1 and self._given:
            raise ConfigError("processes open transports of their own: name one by the configuration")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._player)
            transport = self._player.model.transport
            if self.config.concurrency == "auto":
                await _must_say_its_load(transport)
            if self.config.processes > 1:
                crew = Crew(self.config, self._make_env, self._standing, on_gone=self._ended, launch=self._launch)
                self._crew = await stack.enter_async_context(crew)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            if self.config.concurrency == "auto":
                self._pacing = anyio.CancelScope()
                self._tasks.start_soon(self._keep_pace, transport, self._pacing)
            self._stack = stack.pop_all()
        return self

    async def _keep_pace(self, transport: Transport, scope: anyio.CancelScope) -> None:
        with scope:
            pace = Pace(START * max(1, len(self.config.base_urls)), self.config.most_at_once)
            await keep_pace(pace, self._slots, transport, lambda: self._stats.faults, self.slot_freed)

    def _standing(self) -> Standing:
        """What the processes must know."""
        transport = self._player.model.transport
        return self._weights.standing, transport.standing if isinstance(transport, Fleet) else None

    def _ended(self, error: RolloutError) -> None:
        """No server is left, or no process."""
        self._gone = error
        for run in self._runs:
            run.error = run.error or error
        self.cancel()

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()
        if self._pacing is not None:
            self._pacing.cancel()
        await self._stack.aclose()
        for run in self._runs:
            run.close()

    @property
    def server(self) -> ServerInfo:
        """What the server says of itself."""
        return self._player.model.info

    @property
    def codec(self) -> Codec | None:
        """The bridges in use; None where there is neither a tokenizer nor /tokenize."""
        return self._player.model.codec

    async def stream(
        self,
        tasks: Iterable[Task],
        *,
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

        `skip` names (task index, member) pairs that are not played. `on_rollout` is awaited for each rollout
        as it ends, before its slot is filled again. Admission waits while `ahead` finished groups (as many as slots,
        if not given) have not been taken: what bounds how far rollouts run ahead of a trainer. Streams share the
        engine's slots; this one takes `share` of them at most.

        A group whose finished members became too stale while it waited to be taken has them as failures.
        `group_reward` sets the finished members' rewards; `keep` decides which groups are yielded, and what it
        drops is counted in `stats().dropped_groups`. `evaluation` rollouts are never ended as stale.
        """
        self._playable()
        if not 0 < share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, not {share:g}")
        scheduler = Scheduler(
            tasks,
            cap=self.config.most_at_once,
            share=share,
            slots=self._slots,
            rollouts_per_task=rollouts_per_task,
            skip=skip,
            max_waiting_groups="slots" if ahead is None else max(1, ahead),
            updates=lambda: self._weights.updates,
        )
        straggler_s = self.config.straggler_timeout_s
        run = StreamRun(self, scheduler, on_rollout, evaluation=evaluation, straggler_s=straggler_s)
        self._start(run)
        try:
            async for group in run.groups():
                if not evaluation:
                    self._drop_stale(group)
                if group_reward is not None:
                    await self._reward(group, group_reward)
                if keep is None or keep(group):
                    yield group
                else:
                    self._stats.dropped_groups += 1
                run.taken()
            if run.error is not None:
                raise run.error
        finally:
            self.untaken += await run.give_up()
            self._runs.remove(run)

    async def submit(self, task: Task, *, rollouts: int = 1) -> Submission:
        """Plays one task beside whatever else is played; its group comes by the submission, or by `collect`."""
        self._playable()
        if self._submissions is None:
            scheduler = Scheduler(
                (),
                cap=self.config.most_at_once,
                slots=self._slots,
                open_ended=True,
                updates=lambda: self._weights.updates,
            )
            straggler_s = self.config.straggler_timeout_s
            self._submissions = Submissions(StreamRun(self, scheduler, None, evaluation=False, straggler_s=straggler_s))
            self._start(self._submissions.run)
            assert self._tasks is not None
            self._tasks.start_soon(self._submissions.sort)
        return self._submissions.add(task, rollouts)

    async def collect(self, count: int) -> list[Group]:
        """The next `count` groups of submitted tasks, as they finished. Fewer where fewer were submitted."""
        return await self._submissions.collect(count) if self._submissions is not None else []

    @property
    def weight_version(self) -> str | None:
        """As last named by `update_weights`; before that as the server named it, None where it does not."""
        return self._weights.version

    async def pause(self, in_flight: InFlight = "keep") -> None:
        """Has the server stop sampling until `resume`. Raises ConfigError where it cannot be told to."""
        await self._control().pause(in_flight)
        await self._tell()

    async def resume(self) -> None:
        """Goes on after `pause`."""
        await self._control().resume()
        await self._tell()

    async def update_weights(
        self, version: str | int, path: str | Path | None = None, *, in_flight: InFlight = "keep"
    ) -> None:
        """Pauses, loads the folder's weights (None: the server has them), names their version, resumes.

        Requests in flight are kept, waited for, or aborted; an aborted one goes on from its sampled tokens. Tokens
        carry the version that sampled them. The server goes on, with its old weights, where loading fails: raises
        TransportError then, and ConfigError for a server whose weights cannot be changed.
        """
        control = self._control()
        async with self._weights_lock, self._updating():
            try:
                await control.pause(in_flight)
                await control.update_weights(str(version), str(path) if path is not None else None)
                self._weights.updated(str(version), in_flight)
                self._cancel_stale()
                await self._tell()
            finally:
                # Shielded: a trainer that is interrupted must not leave the server paused.
                with anyio.CancelScope(shield=True):
                    await control.resume()

    @contextlib.asynccontextmanager
    async def _updating(self) -> AsyncGenerator[None]:
        """Holds back new requests, in every process."""
        try:
            with self._weights.updating():
                await self._tell()
                yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._tell()

    async def _tell(self) -> None:
        """Has the processes stand as this one does."""
        if self._crew is not None:
            await self._crew.tell()

    def _control(self) -> Transport:
        model = self._player.model
        if self._crew is not None and not isinstance(model.transport, Fleet):
            raise ConfigError("each process has an embedded model of its own: serve one by `rollout serve`")
        return model.transport

    def _cancel_stale(self) -> None:
        """Ends what the update made too stale, in the middle of its turn, where that is the policy."""
        if self.config.stale_policy == "cancel" and self.config.max_staleness is not None:
            for run in self._runs:
                run.end_older(self._weights.updates - self.config.max_staleness)

    def _drop_stale(self, group: Group) -> None:
        """What became too stale while the group waited is a failure, and counted."""
        limit, updates = self.config.max_staleness, self._weights.updates
        for rollout in group.finished:
            rollout.staleness = updates - rollout.submitted_at
            if limit is not None and rollout.staleness > limit:
                message = f"{rollout.staleness} weight updates before its group was taken, {limit} allowed"
                rollout.stop, rollout.failure = None, Failure(kind=FailureKind.STALE, message=message)
                self._stats.stale += 1

    async def _reward(self, group: Group, reward: GroupReward) -> None:
        """Sets the finished members' rewards. Raises ConfigError where the function gives another number of them."""
        with anyio.fail_after(self.config.score_timeout_s or self.config.step_timeout_s):
            if inspect.iscoroutinefunction(reward):
                found = await reward(group)
            else:
                found = await self._player.threads.run(reward, group)
        members = group.finished
        if len(found) != len(members):
            raise ConfigError(f"the group reward gave {len(found)} rewards for {len(members)} finished rollouts")
        for rollout, value in zip(members, found, strict=True):
            rollout.reward = float(value)

    def _start(self, run: StreamRun) -> None:
        assert self._tasks is not None
        self._runs.append(run)
        self._tasks.start_soon(run.play)

    def slot_freed(self) -> None:
        """Any stream may have waited for the slot."""
        for run in self._runs:
            run.wake()

    def stop_admitting(self) -> None:
        """No new rollouts; running ones end after their current turn, as cancelled."""
        self._stopping = True
        (self._crew or self._player).stop()
        for run in self._runs:
            run.stop()

    def cancel(self) -> None:
        """Ends what runs, now. Requests are closed on the server too."""
        self._stopping = True
        for run in self._runs:
            run.scope.cancel()

    def stats(self) -> Stats:
        """Where the engine stands now."""
        stats = msgspec.structs.replace(self._stats)
        stats.running, stats.most_running = self._slots.used, self._slots.most_used
        stats.concurrency = self._slots.cap
        transport = self._player.transport
        stats.servers = transport.states if isinstance(transport, Fleet) else []
        stats.queued = sum(run.scheduler.queued for run in self._runs)
        stats.weight_version, stats.weight_updates = self._weights.version, self._weights.updates
        stats.add(self._player.played())
        if self._crew is not None:
            stats.processes, stats.process_deaths = self.config.processes, self._crew.deaths
            for played in self._crew.played():
                stats.add(played)
        return stats

    async def first_tokens(self) -> Histogram | None:
        """The servers' own times to first token, of every request that they ever answered; None where they keep none.

        Raises TransportError.
        """
        return await self._player.model.transport.first_tokens()

    def episode(self, job: Job, *, evaluation: bool) -> Playable:
        """One rollout, ready to be played."""
        return (self._crew or self._player).episode(job, evaluation=evaluation)

    def count_end(self, rollout: Rollout) -> None:
        """Counts a rollout that ended."""
        self._stats.add_end(rollout)

    def again(self, rollout: Rollout) -> bool:
        """Whether a failed rollout is played again; counts it."""
        failure, done = rollout.failure, len(rollout.earlier_failures)
        wanted = failure is not None and failure.kind in _RETRIED and done < self.config.rollout_retries
        wanted = wanted and not self._stopping and not _ends_processes(rollout)
        self._stats.retried += wanted
        self._stats.faults += wanted and failure is not None and failure.kind is FailureKind.TRANSPORT
        return wanted

    def _playable(self) -> None:
        """Raises what ended the engine, such as NoServerLeft, once it has."""
        _ = self._player.model
        if self._gone is not None:
            raise self._gone


async def _must_say_its_load(transport: Transport) -> None:
    """Raises ConfigError where there are no metrics that concurrency could follow."""
    try:
        await transport.load()
    except TransportError:
        pass  # it may say so later; until then nothing grows
    except ConfigError as error:
        raise ConfigError("concurrency auto needs a server with metrics: give a number") from error


def _ends_processes(rollout: Rollout) -> bool:
    """Whether it failed of its process so often that the next one would end, too."""
    failures = [*rollout.earlier_failures, rollout.failure]
    return sum(failure is not None and failure.kind is FailureKind.PROCESS for failure in failures) >= _MOST_PROCESSES
