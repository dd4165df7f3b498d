"""One stream of rollouts, played: the async shell around a scheduler. Also tasks that are submitted one by one."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec

from rollout.env import Task
from rollout.episode import Job
from rollout.errors import ConfigError, RolloutError
from rollout.records import Failure, FailureKind, Group, Rollout
from rollout.scheduler import Scheduler

#: Between so many starts the loop looks at its timers and sockets: starting one takes 60 µs.
STARTED_AT_ONCE = 64

OnRollout = Callable[[Rollout], Awaitable[None]]


class Playable(Protocol):
    """A rollout that is ready to be played: an `Episode`, here or in another process."""

    rollout: Rollout

    async def play(self) -> Rollout:
        """Plays to the end. Raises only when it is cancelled from outside; `rollout` then holds what was played."""
        ...


class Players(Protocol):
    """What a stream needs of its engine."""

    def episode(self, job: Job, *, evaluation: bool) -> Playable: ...

    def count_end(self, rollout: Rollout) -> None: ...

    def again(self, rollout: Rollout) -> bool:
        """Whether a failed rollout is played again."""
        ...

    def slot_freed(self) -> None: ...


class _Playing(msgspec.Struct):
    """A rollout under way."""

    job: Job
    scope: anyio.CancelScope
    why: Failure | None = None
    """Why it was ended from here, where it was."""


class StreamRun:
    """One stream: the shell around a scheduler."""

    def __init__(
        self,
        players: Players,
        scheduler: Scheduler,
        on_rollout: OnRollout | None,
        *,
        evaluation: bool,
        straggler_s: float | None = None,
    ) -> None:
        """`straggler_s`: see `EngineConfig.straggler_timeout_s`."""
        self.scheduler = scheduler
        self.scope = anyio.CancelScope()
        self.error: Exception | None = None
        """What `on_rollout` or the tasks' iterator raised: the caller's, so it ends the stream."""
        self._players = players
        self._send, self._receive = anyio.create_memory_object_stream[Group](float("inf"))
        self._on_rollout = on_rollout
        self._evaluation = evaluation
        self._wake = anyio.Event()
        self._begun = False
        self._ended_all = anyio.Event()
        self._left: list[Group] = []
        self._playing: dict[tuple[int, int], _Playing] = {}
        self._straggler_s = straggler_s
        self._timed: set[int] = set()
        """Tasks whose stragglers are timed."""
        self._tasks: anyio.abc.TaskGroup | None = None

    async def groups(self) -> AsyncIterator[Group]:
        """The groups as they finish, to the stream's end."""
        async for group in self._receive:
            yield group

    async def give_up(self) -> list[Group]:
        """Ends what runs, and waits until it has; returns what finished and was not taken."""
        self.scope.cancel()
        # Shielded: a consumer that is cancelled itself must still leave no request running.
        with anyio.CancelScope(shield=True):
            if self._begun:  # else the engine was cancelled before it could
                await self._ended_all.wait()
        waiting: list[Group] = []
        with self._receive, contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
            while True:
                waiting.append(self._receive.receive_nowait())
        return [*self._left, *waiting, *self.scheduler.leftover()]

    def close(self) -> None:
        """Takes nothing more. May be called twice."""
        self._receive.close()

    async def play(self) -> None:
        """Plays until nothing is left. What goes wrong in one rollout is that rollout's result."""
        self._begun = True
        try:
            await self._play()
        finally:
            self._ended_all.set()

    async def _play(self) -> None:
        with self._send, self.scope:
            try:
                async with anyio.create_task_group() as players:
                    self._tasks = players
                    while not self.scheduler.done:
                        for number, job in enumerate(self.scheduler.admit(), start=1):
                            players.start_soon(self._play_one, job)
                            if number % STARTED_AT_ONCE == 0:  # shielded: what was admitted is started
                                await anyio.lowlevel.cancel_shielded_checkpoint()
                        if self.scheduler.done:
                            break
                        await self._wake.wait()
                        self._wake = anyio.Event()
                    players.cancel_scope.cancel()  # timers of groups that are complete
            except* Exception as errors:
                self.error = _first(errors)

    def end_older(self, submitted_at: int) -> None:
        """Ends what was submitted before so many weight updates, now."""
        for member, playing in list(self._playing.items()):
            if playing.job.submitted_at < submitted_at and not self._evaluation:
                self._end(member, Failure(kind=FailureKind.STALE, message="the weights were updated under it"))

    def _end(self, member: tuple[int, int], why: Failure | None) -> None:
        playing = self._playing[member]
        playing.why = why
        playing.scope.cancel()

    async def _end_stragglers(self, task_index: int, wait_s: float) -> None:
        """Ends what is left of a group, so that it is delivered."""
        await anyio.sleep(wait_s)
        message = f"half of its group had ended {wait_s:g} s before"
        for member in [key for key in self._playing if key[0] == task_index]:
            self._end(member, Failure(kind=FailureKind.STRAGGLER, message=message))
        group = self.scheduler.drop(task_index)
        if group is not None:
            self.deliver(group)

    def cancel_task(self, task_index: int) -> None:
        """Ends what runs of a task; what has not begun is not played."""
        group = self.scheduler.drop(task_index)
        for member in [key for key in self._playing if key[0] == task_index]:
            self._end(member, None)
        if group is not None:
            self.deliver(group)

    async def _play_one(self, job: Job) -> None:
        earlier: list[Failure] = []
        with anyio.CancelScope() as scope:
            playing = self._playing[job.task_index, job.member] = _Playing(job, scope)
            while True:
                episode = self._players.episode(job, evaluation=self._evaluation)
                episode.rollout.earlier_failures = list(earlier)
                try:
                    await episode.play()
                except BaseException:
                    if playing.why is not None:
                        episode.rollout.failure = playing.why
                    # Shielded: a cancelled episode must still return its permit, and its rollout is kept.
                    with anyio.CancelScope(shield=True):
                        await self._ended(episode.rollout)
                    raise
                if not self._players.again(episode.rollout):
                    break
                assert episode.rollout.failure is not None
                earlier.append(episode.rollout.failure)
            with anyio.CancelScope(shield=True):
                await self._ended(episode.rollout)

    async def _ended(self, rollout: Rollout) -> None:
        self._players.count_end(rollout)
        self._playing.pop((rollout.task_index, rollout.member), None)
        try:
            if self._on_rollout is not None:
                await self._on_rollout(rollout)
        finally:
            group = self.scheduler.on_finished(rollout)
            self._players.slot_freed()
            if group is not None:
                self._timed.discard(rollout.task_index)
                self.deliver(group)
            else:
                self._time_stragglers(rollout.task_index)

    def _time_stragglers(self, task_index: int) -> None:
        """From when half of a group has ended, the rest have so long."""
        if self._straggler_s is None or self._tasks is None or task_index in self._timed:
            return
        if self.scheduler.half_ended(task_index):
            self._timed.add(task_index)
            self._tasks.start_soon(self._end_stragglers, task_index, self._straggler_s)

    def deliver(self, group: Group) -> None:
        """Hands a group over."""
        try:
            self._send.send_nowait(group)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._left.append(group)  # the consumer is gone

    def wake(self) -> None:
        """Something changed that `play` may have waited for."""
        self._wake.set()

    def taken(self) -> None:
        self.scheduler.on_taken()
        self.wake()

    def stop(self) -> None:
        for group in self.scheduler.stop():
            self.deliver(group)
        self.wake()


class Submission:
    """One submitted task, on its way."""

    def __init__(self, submissions: Submissions, task_index: int) -> None:
        self.task_index = task_index
        self._submissions = submissions
        self._event = anyio.Event()
        self._group: Group | None = None

    def __repr__(self) -> str:
        return f"<Submission {self.task_index} {self._group or 'on its way'}>"

    @property
    def done(self) -> bool:
        return self._group is not None

    async def result(self) -> Group:
        """The task's group, once its last member has ended. `collect` does not give it again.

        Raises what ended the engine before, such as NoServerLeft.
        """
        await self._event.wait()
        if self._group is None:
            raise self._submissions.error or RolloutError("the engine was closed before this task was played")
        self._submissions.took(self._group)
        return self._group

    def cancel(self) -> None:
        """Ends what runs of it; what has not begun is not played. The result has what was played."""
        self._submissions.cancel(self.task_index)

    def finish(self, group: Group | None) -> None:
        """With its group, or without where the engine ended before."""
        self._group = group
        self._event.set()


class Submissions:
    """Tasks that were submitted one by one: a stream that stays open."""

    def __init__(self, run: StreamRun) -> None:
        self.run = run
        self._open: dict[int, Submission] = {}
        self._finished: deque[Group] = deque()
        self._arrived = anyio.Event()
        self._owed = 0
        self._ended = False

    @property
    def error(self) -> Exception | None:
        """What ended the stream, where something did."""
        return self.run.error

    def add(self, task: Task, rollouts: int) -> Submission:
        if rollouts < 1:
            raise ConfigError(f"rollouts must be 1 or more, not {rollouts}")
        index = self.run.scheduler.add(task, rollouts)
        submission = self._open[index] = Submission(self, index)
        self._owed += 1
        self.run.wake()
        return submission

    async def sort(self) -> None:
        """Gives each group to its submission, and to `collect`."""
        async for group in self.run.groups():
            self.run.taken()
            self._finished.append(group)
            self._open.pop(group.task_index).finish(group)
            self._arrived.set()
            self._arrived = anyio.Event()
        # The engine ends: nobody may wait for what will not come.
        self._ended = True
        for submission in self._open.values():
            submission.finish(None)
        self._arrived.set()

    async def collect(self, count: int) -> list[Group]:
        groups: list[Group] = []
        while len(groups) < count:
            while self._finished and len(groups) < count:
                groups.append(self._finished.popleft())
                self._owed -= 1
            if self._ended and not groups and self.error is not None:
                raise self.error
            if len(groups) == count or not self._owed or self._ended:
                break
            await self._arrived.wait()
        return groups

    def took(self, group: Group) -> None:
        at = next((i for i, other in enumerate(self._finished) if other is group), None)
        if at is not None:
            del self._finished[at]
            self._owed -= 1

    def cancel(self, task_index: int) -> None:
        self.run.cancel_task(task_index)


def _first(errors: BaseExceptionGroup[BaseException]) -> Exception:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
