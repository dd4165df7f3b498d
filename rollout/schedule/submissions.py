"""Tasks that are submitted one by one, beside whatever else is played: a stream that stays open.

Each submission ends as its engine's streams do (see `rollout.schedule.stream`), and for itself: one that fails, is
cancelled, or could not be played leaves the others as they were.

    submission = await engine.submit({"n": 1}, rollouts=8)
    group = await submission.result()       # or, for whichever finish next: await engine.collect(4)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import anyio

from rollout import door
from rollout.env import Task
from rollout.errors import ConfigError
from rollout.records import Group, Job
from rollout.schedule.playing import Playable, Plays
from rollout.schedule.stream import StreamRun


class Submission:
    """One submitted task, on its way."""

    def __init__(self, state: Submitted) -> None:
        self._state = state

    def __repr__(self) -> str:
        return f"<Submission {self._state}>"

    @property
    def task_index(self) -> int:
        """Its position among all that were submitted."""
        return self._state.task_index

    @property
    def done(self) -> bool:
        """Whether `result` has something to give, or to raise."""
        return self._state.over.is_set()

    async def result(self) -> Group:
        """The task's group, once its last member has ended. `collect` does not give it again.

        Raises what ended the engine before it began, such as NoServerLeft or EngineClosed.
        """
        await self._state.over.wait()
        return self._state.take()

    def cancel(self) -> None:
        """Ends what runs of it; what has not begun is not played. The result has what was played."""
        if not self.done:
            self._state.cancel()


class Submitted:
    """What becomes of one."""

    def __init__(self, submissions: Submissions, task_index: int, plays: Plays) -> None:
        self.task_index = task_index
        self.plays = plays
        """What plays it, which may be of another environment than its neighbours."""
        self.over = anyio.Event()
        self._submissions = submissions
        self._group: Group | None = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f"{self.task_index} {self._group or self._error or 'on its way'}"

    def finish(self, group: Group | None, error: BaseException | None = None) -> None:
        """With its group, or with what ended the engine before it began."""
        self._group, self._error = group, error
        self.over.set()

    def cancel(self) -> None:
        """See `Submission.cancel`."""
        self._submissions.cancel(self.task_index)

    def take(self) -> Group:
        """The result of one that is over, also after the engine was closed."""
        if self._error is not None:
            raise self._error
        assert self._group is not None, "it is over"
        self._submissions.took(self.task_index)
        return self._group


class Submissions:
    """All tasks that were submitted to an engine."""

    def __init__(self, open_run: Callable[[Plays, Callable[[Group], None]], StreamRun]) -> None:
        """`open_run` makes the stream that plays them, which hands its groups to the function that it is given."""
        self.run = open_run(self, self._finished_one)
        self._open: dict[int, Submitted] = {}
        self._finished: OrderedDict[int, Group] = OrderedDict()
        self._unplayed: BaseException | None = None
        self._arrived = anyio.Event()

    def __repr__(self) -> str:
        return f"<Submissions {len(self._open)} on their way, {len(self._finished)} to be collected>"

    def episode(self, job: Job, *, evaluation: bool) -> Playable:
        """See `Plays`."""
        return self._open[job.task_index].plays.episode(job, evaluation=evaluation)

    def add(self, task: Task, rollouts: int, plays: Plays) -> Submission:
        """Has a task played. Raises ConfigError for one that cannot be."""
        if rollouts < 1:
            raise ConfigError(f"rollouts must be 1 or more, not {rollouts}")
        index = self.run.scheduler.offer(door.task(task, self.run.scheduler.offered), rollouts)
        state = self._open[index] = Submitted(self, index, plays)
        self.run.wake()
        return Submission(state)

    async def collect(self, count: int) -> list[Group]:
        """See `Engine.collect`. Takes nothing before it has all: whoever is cancelled here loses no group."""
        while len(self._finished) < count and self._open:
            await self._arrived.wait()
        return self.take(count)

    def take(self, count: int) -> list[Group]:
        """The next `count` groups of those that are there. Raises what ended the engine where none is."""
        groups = [self._finished.popitem(last=False)[1] for _ in range(min(count, len(self._finished)))]
        if not groups and count > 0 and self._unplayed is not None:
            raise self._unplayed
        return groups

    def took(self, task_index: int) -> None:
        """A group was taken by its submission."""
        self._finished.pop(task_index, None)
        self._arrive()

    def cancel(self, task_index: int) -> None:
        """Ends what runs of a submission."""
        self.run.cancel_task(task_index)

    def _finished_one(self, group: Group) -> None:
        self.run.scheduler.on_taken()
        submission = self._open.pop(group.task_index)
        if self.run.error is not None and not group.rollouts:
            self._unplayed = self.run.error
            submission.finish(None, self.run.error)
        else:
            self._finished[group.task_index] = group
            submission.finish(group)
        self._arrive()

    def _arrive(self) -> None:
        arrived, self._arrived = self._arrived, anyio.Event()
        arrived.set()
