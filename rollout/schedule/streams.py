"""All streams and submissions of an engine, which share its slots: what each of them asks of the others.

How each of them ends, and where what was played is then: see `rollout.schedule.stream`. Here is what ends several at
once, and `untaken`, where all of them leave what nobody took.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Container, Iterable, Sequence
from typing import Protocol

import anyio
import anyio.abc
import msgspec

from rollout import door
from rollout.config import EngineConfig
from rollout.env import Task
from rollout.errors import ConfigError, EngineClosed, EngineStopped, RolloutError
from rollout.log import get_logger
from rollout.observe.stats import Stats, Tallies
from rollout.participant import Participant
from rollout.play.host import Hosts
from rollout.process.threads import Threads
from rollout.records import Failure, FailureKind, Group, Rollout
from rollout.registry import is_asynchronous
from rollout.schedule.group_reward import SCORED_AT_ONCE, GroupReward, GroupScorer
from rollout.schedule.hand_over import OnRollout
from rollout.schedule.playing import Plays
from rollout.schedule.scheduler import Scheduler, Slots
from rollout.schedule.stream import StreamRun
from rollout.schedule.submissions import Submission, Submissions
from rollout.schedule.task_source import refuse_unwritable, task_source
from rollout.servers.weights import Weights

#: Groups that `Engine.untaken` holds at most.
MOST_UNTAKEN = 10_000

#: Failures that another attempt may not meet: `rollout_retries` is for these.
_RETRIED = frozenset({FailureKind.ENVIRONMENT, FailureKind.TRANSPORT, FailureKind.PROCESS, FailureKind.TIMEOUT})

#: Processes that one rollout may cost: one that has ended so many is what ends them.
_MOST_PROCESSES = 3

_log = get_logger(__name__)


MakeEnv = Callable[[], Participant]


class Player(Protocol):
    """What plays: this process, or several."""

    def of(self, make_env: MakeEnv) -> Plays:
        """What plays the rollouts of one environment. Raises ConfigError for one that cannot be played."""
        ...


class _Opened(msgspec.Struct, frozen=True):
    """What an engine that was entered plays with."""

    player: Player
    own: Plays
    """What plays the engine's own environment."""
    tasks: anyio.abc.TaskGroup


class Streams:
    """The streams and submissions of one engine."""

    def __init__(self, config: EngineConfig, weights: Weights) -> None:
        self._config = config
        self._weights = weights
        self._opened: _Opened | None = None
        """There once rollouts can be played."""
        self.runs: list[StreamRun] = []
        """Those that have not ended."""
        self.slots = Slots(config.most_at_once)
        self.stats = Stats()
        """What is counted here of it."""
        self.tallies = Tallies()
        self.on_group: Callable[[Group, bool], None] = lambda group, evaluation: None
        """Told of each group that comes, and whether it is an evaluation's."""
        self.untaken: list[Group] = []
        self._submissions: Submissions | None = None
        self._hosts = Hosts(
            Threads(2 * SCORED_AT_ONCE, most_abandoned=config.max_abandoned_threads, on_exhausted=self.fail)
        )
        """For tasks' iterators and group rewards, which then never wait behind environments."""
        self._scoring = anyio.CapacityLimiter(SCORED_AT_ONCE)
        self._gone: RolloutError | None = None
        self._stopping = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<Streams {len(self.runs)} under way, {self.slots}, {len(self.untaken)} groups untaken>"

    @property
    def hanging(self) -> int:
        """Calls of tasks' iterators and group rewards that were given up and have not ended."""
        return self._hosts.hanging

    def open(self, player: Player, make_env: MakeEnv, tasks: anyio.abc.TaskGroup) -> None:
        """From now on rollouts are played, by the player and in the task group; of `make_env`, if nothing is said."""
        self._opened = _Opened(player, player.of(make_env), tasks)

    def close(self) -> None:
        """Ends everything; see `closed`."""
        self._closed = True
        for run in self.runs:
            run.close(EngineClosed("the engine was closed; what had finished is in engine.untaken"))

    async def closed(self) -> None:
        """Keeps what nobody took, once everything has ended."""
        for run in self.runs:
            self.keep_untaken(run.left())
        await self._hosts.aclose()

    def fail(self, error: RolloutError) -> None:
        """No server is left, or no process, or no thread: everything ends with this error."""
        self._gone = self._gone or error
        for run in self.runs:
            run.fail(error)

    async def stream(
        self,
        tasks: Iterable[Task] | AsyncIterable[Task],
        *,
        env: MakeEnv | None = None,
        rollouts_per_task: int = 1,
        skip: Container[tuple[int, int]] = (),
        on_rollout: OnRollout | None = None,
        keep: Callable[[Group], bool] | None = None,
        group_reward: GroupReward | None = None,
        evaluation: bool = False,
        share: float = 1.0,
        ahead: int | None = None,
    ) -> AsyncGenerator[Group]:
        """See `Engine.stream`."""
        await refuse_unwritable(tasks)
        plays = self._plays(env)
        if not 0 < share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, not {share:g}")
        if rollouts_per_task < 1:
            raise ConfigError(f"rollouts_per_task must be 1 or more, not {rollouts_per_task}")
        scheduler = Scheduler(
            cap=self._config.most_at_once,
            share=share,
            slots=self.slots,
            rollouts_per_task=rollouts_per_task,
            skip=frozenset(skip) if isinstance(skip, list | tuple) else skip,
            max_waiting_groups="slots" if ahead is None else max(1, ahead),
            updates=lambda: self._weights.updates,
        )
        run = self._start(
            StreamRun(
                self,
                plays,
                scheduler,
                task_source(tasks, self._hosts),
                on_rollout=on_rollout,
                score=self._scored_by(group_reward, evaluation) if group_reward is not None else None,
                evaluation=evaluation,
                straggler_s=self._config.straggler_timeout_s,
                sleep=self._weights.clock.sleep,
            )
        )
        try:
            while (group := await run.next()) is not None:
                if self._wanted(group, run, keep, evaluation):
                    yield group
                run.taken()
        finally:
            self.keep_untaken(await run.give_up())
            with contextlib.suppress(ValueError):  # the engine was closed
                self.runs.remove(run)

    def _wanted(self, group: Group, run: StreamRun, keep: Callable[[Group], bool] | None, evaluation: bool) -> bool:
        """Whether the consumer gets a group, as it is now."""
        if not evaluation:
            self._drop_stale(group)
        self._came(group, evaluation)
        try:
            wanted = keep is None or keep(group)
        except BaseException:
            run.put_back(group)
            raise
        self.stats.dropped_groups += not wanted
        return wanted

    def _came(self, group: Group, evaluation: bool = False) -> None:
        """Counts a group that comes, and tells of it."""
        self.tallies.add_group(group, self._config.success_at)
        self.on_group(group, evaluation)

    def take_untaken(self) -> list[Group]:
        """See `Engine.take_untaken`."""
        groups = self.untaken[:]
        self.untaken.clear()
        return groups

    def keep_untaken(self, groups: Sequence[Group]) -> None:
        """Keeps what was played and nobody took."""
        self.untaken += groups
        excess = len(self.untaken) - MOST_UNTAKEN
        if excess > 0:
            del self.untaken[:excess]
            self.stats.lost_groups += excess
            _log.warning("untaken_dropped", groups=excess, kept=MOST_UNTAKEN, remedy="call engine.take_untaken()")

    async def submit(self, task: Task, *, env: MakeEnv | None = None, rollouts: int = 1) -> Submission:
        """See `Engine.submit`."""
        plays = self._plays(env)
        if self._submissions is None:
            self._submissions = Submissions(self._open_submissions)
        if self._submissions.run.error is not None:
            raise self._submissions.run.error
        return self._submissions.add(task, rollouts, plays)

    def _open_submissions(self, plays: Plays, give: Callable[[Group], None]) -> StreamRun:
        scheduler = Scheduler(
            cap=self._config.most_at_once,
            slots=self.slots,
            open_ended=True,
            updates=lambda: self._weights.updates,
        )

        def counted(group: Group) -> None:
            self._came(group)
            give(group)

        straggler_s, sleep = self._config.straggler_timeout_s, self._weights.clock.sleep
        return self._start(StreamRun(self, plays, scheduler, give=counted, straggler_s=straggler_s, sleep=sleep))

    async def collect(self, count: int) -> list[Group]:
        """See `Engine.collect`."""
        return await self._submissions.collect(count) if self._submissions is not None else []

    def collected(self, count: int) -> list[Group]:
        """See `Engine.collected`."""
        return self._submissions.take(count) if self._submissions is not None else []

    def end_stale(self) -> None:
        """Ends what the update made too stale, in the middle of its turn, where that is the policy."""
        if self._config.stale_policy == "cancel" and self._config.max_staleness is not None:
            for run in self.runs:
                run.end_older(self._weights.updates - self._config.max_staleness)

    def _drop_stale(self, group: Group) -> None:
        """What became too stale while the group waited is a failure, and counted."""
        limit, updates = self._config.max_staleness, self._weights.updates
        for rollout in group.finished:
            rollout.staleness = updates - rollout.submitted_at
            if limit is not None and rollout.staleness > limit:
                message = f"{rollout.staleness} weight updates before its group was taken, {limit} allowed"
                rollout.stop, rollout.failure = None, Failure(kind=FailureKind.STALE, message=message)
                self.stats.stale += 1

    def _scored_by(self, reward: GroupReward, evaluation: bool) -> Callable[[Group], Awaitable[None]]:
        """What sets a complete group's rewards."""
        limit_s = self._config.score_timeout_s or self._config.step_timeout_s
        scorer = GroupScorer(reward, limit_s=limit_s, hosts=self._hosts, at_once=self._scoring)

        async def score(group: Group) -> None:
            if not evaluation:
                self._drop_stale(group)
            members = len(group.finished)
            if members and await scorer.score(group) is not None:
                self.stats.unrewarded += members

        return score

    def _start(self, run: StreamRun) -> StreamRun:
        assert self._opened is not None
        self.runs.append(run)
        self._opened.tasks.start_soon(run.play)
        return run

    def slot_freed(self) -> None:
        """Any stream may have waited for the slot."""
        for run in self.runs:
            run.wake()

    def stop_admitting(self) -> None:
        """See `Engine.stop_admitting`, which has the rollouts end."""
        self._stopping = True
        for run in self.runs:
            run.stop()

    def cancel(self) -> None:
        """See `Engine.cancel`."""
        for run in self.runs:
            run.cancel()

    def count_end(self, rollout: Rollout) -> None:
        """Counts a rollout that ended."""
        self.stats.add_end(rollout)
        self.tallies.ended.add(rollout)

    def again(self, rollout: Rollout) -> bool:
        """Whether a failed rollout is played again; counts it."""
        failure, done = rollout.failure, len(rollout.earlier_failures)
        wanted = failure is not None and failure.kind in _RETRIED and done < self._config.rollout_retries
        wanted = wanted and not self._stopping and not _ends_processes(rollout)
        self.stats.retried += wanted
        self.stats.faults += wanted and failure is not None and failure.kind is FailureKind.TRANSPORT
        return wanted

    def _plays(self, env: MakeEnv | None) -> Plays:
        """What plays an environment. Raises what ended the engine, such as NoServerLeft, once something has."""
        if self._opened is None:
            raise RuntimeError("enter the engine first: async with Engine(...) as engine")
        if self._gone is not None:
            raise self._gone
        if self._closed:
            raise EngineClosed("the engine is closed")
        if self._stopping:
            raise EngineStopped("the engine was told to admit nothing more: stop_admitting")
        if env is None:
            return self._opened.own
        check_env(env)
        return self._opened.player.of(env)


def check_env(env: object) -> None:
    """Raises ConfigError for what makes no environments."""
    if not callable(env):
        raise ConfigError(f"env must be a class of environments, or a function that makes one, not {env!r:.200}")
    try:
        is_asynchronous(env)
    except ConfigError:
        raise
    except Exception as error:  # a metaclass of the user's
        raise ConfigError(f"env cannot be read: {door.type_name(error)}: {door.error_text(error)}") from error


def _ends_processes(rollout: Rollout) -> bool:
    """Whether it failed of its process so often that the next one would end, too."""
    failures = [*rollout.earlier_failures, rollout.failure]
    return sum(failure is not None and failure.kind is FailureKind.PROCESS for failure in failures) >= _MOST_PROCESSES
