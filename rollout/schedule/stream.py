"""One stream of rollouts, played: the async shell around a scheduler.

A stream ends in one of these ways, and in no other. Whatever the way, its requests are closed, its permits are back,
and each rollout that was played is in one group, which the consumer got or which is in `engine.untaken`.

exhausted       The tasks are played. The loop ends after the last group.
tasks failed    The tasks' iterator raised, or gave a task that cannot be written. What had begun is played to its end
                and delivered; then the stream raises that error.
stopped         `engine.stop_admitting()`: what runs ends after its current turn, as cancelled. Every group of which
                something was played is delivered, without the members that never began; then the loop ends. From then
                on new streams and submissions raise EngineStopped.
cancelled       `engine.cancel()`: the same, but what runs ends at once, and what is started afterwards is played as
                ever.
failed          No server is left, or no process; or the caller's `on_rollout` raised. What runs ends at once, what was
                played is delivered, then the stream raises that error.
given up        The consumer left the loop, closed the stream, was cancelled in it, or raised, as its `keep` may. What
                runs ends at once, as cancelled. What was not taken goes to `engine.untaken`.
engine closed   As given up, but by whoever closed the engine. A consumer that still asks gets EngineClosed.

A submission (`rollout.schedule.submissions`) ends in the same ways with a group of what was played of it, which may be
nothing where it was cancelled or stopped. One that had not begun when the engine failed or was closed raises that
error.

    stream = engine.stream([{"n": 0}, {"n": 1}], rollouts_per_task=2)    # 3 of the 4 rollouts end, 1 runs on
    group = await anext(stream)                                          # both members of task 0
    await stream.aclose()                                                # ends the one that runs
    (rest,) = engine.take_untaken()                                      # task 1: one finished, one cancelled

A group reward is computed while the stream goes on, before its group is delivered. Where the stream is given up, or the
engine closed, before it is, the group goes to `untaken` with `rewarded` false and its environment's own rewards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from rollout.errors import RolloutError
from rollout.log import get_logger
from rollout.records import Failure, FailureKind, Group, Rollout
from rollout.schedule.hand_over import HAND_OVER_S, HandOver, OnRollout
from rollout.schedule.playing import Playable, Playing, Plays, ended_by
from rollout.schedule.scheduler import Scheduler
from rollout.schedule.task_source import Drawn, TaskSource, checked

#: Between so many starts the loop looks at its timers and sockets: starting one takes 60 µs.
STARTED_AT_ONCE = 64

Score = Callable[[Group], Awaitable[None]]

_log = get_logger(__name__)


class Players(Protocol):
    """What a stream needs of its engine."""

    def count_end(self, rollout: Rollout) -> None: ...

    def again(self, rollout: Rollout) -> bool:
        """Whether a failed rollout is played again."""
        ...

    def slot_freed(self) -> None: ...


class StreamRun:
    """One stream: the shell around a scheduler."""

    def __init__(
        self,
        players: Players,
        plays: Plays,
        scheduler: Scheduler,
        source: TaskSource | None = None,
        *,
        on_rollout: OnRollout | None = None,
        score: Score | None = None,
        give: Callable[[Group], None] | None = None,
        evaluation: bool = False,
        straggler_s: float | None = None,
        hand_over_s: float = HAND_OVER_S,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`score` is awaited for each complete group before it is delivered. `straggler_s`: see `EngineConfig`; `sleep`
        waits for it.

        `give` takes the groups where nobody awaits `next`.
        """
        self.scheduler = scheduler
        self.error: BaseException | None = None
        """What ended the stream, where something did. Raised once what was played is taken."""
        self._players = players
        self._plays = plays
        self._source = source
        self._hand_over = HandOver(on_rollout, self.fail, hand_over_s) if on_rollout is not None else None
        self._score = score
        self._give = give or self._put
        self._evaluation = evaluation
        self._straggler_s, self._sleep = straggler_s, sleep
        self._scope = anyio.CancelScope()
        self._feeding = anyio.CancelScope()
        self._wake = anyio.Event()
        self._wanted = anyio.Event()
        self._begun = False
        self._over = anyio.Event()
        self._given_up = False
        self._ready: deque[Group] = deque()
        self._arrived = anyio.Event()
        self._playing: dict[int, dict[int, Playing]] = {}
        """Those under way, by task and member."""
        self._timers: dict[int, anyio.CancelScope] = {}
        """Of tasks whose stragglers are timed."""
        self._tasks: anyio.abc.TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<StreamRun {self.scheduler}, {len(self._ready)} groups ready>"

    async def next(self) -> Group | None:
        """The next group that is finished; None at the end. Raises what ended the stream before."""
        while not self._ready or self._given_up:
            if self._over.is_set() or self._given_up:
                if self.error is not None:
                    raise self.error
                return None
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._ready.popleft()

    def put_back(self, group: Group) -> None:
        """The consumer could not take it after all."""
        self._ready.appendleft(group)

    def taken(self) -> None:
        """The consumer is done with a group."""
        self.scheduler.on_taken()
        self.wake()

    async def give_up(self) -> list[Group]:
        """Ends what runs, and waits until it has; returns what was played and not taken. May be called again."""
        self.close(None)
        # Shielded: a consumer that is cancelled itself must still leave no request running.
        with anyio.CancelScope(shield=True):
            if self._begun:  # else the engine was cancelled before it could
                await self._over.wait()
        return self.left()

    def close(self, error: Exception | None) -> None:
        """Ends everything, now, and for the consumer too: what it did not take is in `left` once this is over."""
        self._given_up = True
        self.error = self.error or error
        for group in self.scheduler.stop():
            self._give(group)
        self._scope.cancel()
        if self._hand_over is not None:
            self._hand_over.limit()
        self._arrived.set()

    def left(self) -> list[Group]:
        """Takes all that was not taken."""
        groups = list(self._ready)
        self._ready.clear()
        return groups

    def fail(self, error: BaseException) -> None:
        """Ends what runs; the stream raises the error after what was played."""
        self.error = self.error or error
        self._end_admission()
        self.cancel()

    def cancel(self) -> None:
        """Ends what is there: what runs at once, and what has not begun is not played."""
        if not self.scheduler.open_ended:
            self._end_admission()
        groups = self.scheduler.withdraw()
        for task_index in list(self._playing):
            self._end_members(task_index, None)
        for group in groups:
            self._deliver(group)

    def stop(self) -> None:
        """Admits nothing more; what runs ends by itself."""
        self._end_admission()
        for group in self.scheduler.withdraw():
            self._deliver(group)

    def cancel_task(self, task_index: int) -> None:
        """Ends what runs of a task; what has not begun is not played."""
        group = self.scheduler.drop(task_index)
        self._end_members(task_index, None)
        if group is not None:
            self._deliver(group)

    def end_older(self, submitted_at: int) -> None:
        """Ends what was submitted before so many weight updates, now."""
        if self._evaluation:
            return
        why = Failure(kind=FailureKind.STALE, message="the weights were updated under it")
        for members in self._playing.values():
            for playing in members.values():
                if playing.job.submitted_at < submitted_at:
                    playing.end(why)

    def wake(self) -> None:
        """Something changed that `play` may have waited for."""
        self._wake.set()

    async def play(self) -> None:
        """Plays until nothing is left. What goes wrong in one rollout is that rollout's result."""
        self._begun = True
        try:
            await self._play()
        except Exception as error:  # a fault of ours: nobody may wait for what will not come
            _log.error("internal_error", stream=repr(self), exc_info=error)
            self.error = self.error or error
        finally:
            for group in self.scheduler.stop():
                self._give(group)
            self._over.set()
            self._arrived.set()

    async def _play(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                if self._source is not None:
                    tasks.start_soon(self._feed, self._source)
                while not self.scheduler.done:
                    await self._admit(tasks)
                    if self.scheduler.done:
                        break
                    await self._wake.wait()
                    self._wake = anyio.Event()

    async def _admit(self, tasks: anyio.abc.TaskGroup) -> None:
        """Starts all that may start now."""
        started = 0
        while True:
            jobs = self.scheduler.admit()
            for job in jobs:
                playing = Playing(job, anyio.CancelScope())
                self._playing.setdefault(job.task_index, {})[job.member] = playing
                tasks.start_soon(self._play_one, playing)
                started += 1
                if started % STARTED_AT_ONCE == 0:  # shielded: what was admitted is started
                    await anyio.lowlevel.cancel_shielded_checkpoint()
            wanted = self.scheduler.wanted
            if self._source is None or not wanted:
                return
            if (drawn := self._source.draw_now(min(wanted, STARTED_AT_ONCE))) is None:
                self._wanted.set()
                return
            self._offer(drawn)
            if not jobs:  # any number of tasks may have been played before
                await anyio.lowlevel.cancel_shielded_checkpoint()

    async def _feed(self, source: TaskSource) -> None:
        """Draws tasks that may take their time, as they are wanted."""
        try:
            with self._feeding:
                while not self.scheduler.exhausted:
                    if not (wanted := self.scheduler.wanted):
                        self._wanted = anyio.Event()
                        await self._wanted.wait()
                        continue
                    self._offer(await source.draw(wanted))
                    self.wake()
        except RolloutError as error:  # no thread is left to draw in
            self._offer(Drawn([], ended=True, error=error))
            self.wake()
        finally:
            await source.aclose()

    def _offer(self, drawn: Drawn) -> None:
        drawn = checked(drawn, self.scheduler.offered)
        for task in drawn.tasks:
            self.scheduler.offer(task)
        if drawn.ended:
            self.scheduler.exhausted = True
            self._feeding.cancel()
            self.error = self.error or drawn.error

    def _end_admission(self) -> None:
        self.scheduler.admitting = False
        self._feeding.cancel()
        self.wake()

    def _end_members(self, task_index: int, why: Failure | None) -> None:
        for playing in self._playing.get(task_index, {}).values():
            playing.end(why)

    async def _play_one(self, playing: Playing) -> None:
        """Plays one rollout, again where it may be, and hands it over whatever becomes of it."""
        job, earlier = playing.job, list[Failure]()
        rollout = job.rollout()
        episode: Playable | None = None
        with playing.scope:
            try:
                while True:
                    episode = self._plays.episode(job, evaluation=self._evaluation)
                    episode.rollout.earlier_failures = list(earlier)
                    await episode.play()
                    failure = episode.rollout.failure
                    if failure is None or not self._players.again(episode.rollout):
                        break
                    earlier.append(failure)
            except BaseException as error:
                rollout = episode.rollout if episode is not None else rollout
                ended_by(rollout, playing.why, error)
                if not isinstance(error, Exception):
                    raise
            finally:
                # Shielded: a cancelled episode must still return its permit, and its rollout is kept.
                with anyio.CancelScope(shield=True):
                    await self._ended(episode.rollout if episode is not None else rollout)

    async def _ended(self, rollout: Rollout) -> None:
        self._players.count_end(rollout)
        members = self._playing[rollout.task_index]
        del members[rollout.member]
        if not members:
            del self._playing[rollout.task_index]
        if self._hand_over is not None:
            await self._hand_over.call(rollout)
        group = self.scheduler.on_finished(rollout)
        self._players.slot_freed()
        if group is not None:
            self._deliver(group)
        else:
            self._time_stragglers(rollout.task_index)

    def _time_stragglers(self, task_index: int) -> None:
        """From when half of a group has ended, the rest have so long."""
        if self._straggler_s is None or self._tasks is None or task_index in self._timers:
            return
        if self.scheduler.half_ended(task_index):
            scope = self._timers[task_index] = anyio.CancelScope()
            self._tasks.start_soon(self._end_stragglers, task_index, scope, self._straggler_s)

    async def _end_stragglers(self, task_index: int, scope: anyio.CancelScope, wait_s: float) -> None:
        """Ends what is left of a group, so that it is delivered."""
        with scope:
            await self._sleep(wait_s)
        if scope.cancelled_caught:
            return  # it was complete before
        message = f"half of its group had ended {wait_s:g} s before"
        self._end_members(task_index, Failure(kind=FailureKind.STRAGGLER, message=message))
        group = self.scheduler.drop(task_index)
        if group is not None:
            self._deliver(group)

    def _deliver(self, group: Group) -> None:
        """Hands a group over, once it is scored."""
        if (timer := self._timers.pop(group.task_index, None)) is not None:
            timer.cancel()
        if self._score is None or self._tasks is None or self._given_up or not group.finished:
            self._give(group)
        else:
            self._tasks.start_soon(self._give_scored, group, self._score)

    async def _give_scored(self, group: Group, score: Score) -> None:
        try:
            await score(group)
        finally:
            self._give(group)

    def _put(self, group: Group) -> None:
        self._ready.append(group)
        self._arrived.set()
