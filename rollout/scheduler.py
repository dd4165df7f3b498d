"""Who plays next: a pure core that decides, without await and without a clock.

The shell (`rollout.engine`) acts: it starts what `admit` gives, and reports every end by `on_finished`.
Permits are counted here and nowhere else, so what is given back is given back.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Literal

import msgspec

from rollout.episode import Job
from rollout.records import Group, Rollout


class Slots:
    """The permits of an engine, shared by its streams. Counted here and nowhere else."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.used = 0
        self.most_used = 0

    def take(self) -> None:
        self.used += 1
        self.most_used = max(self.most_used, self.used)

    def __repr__(self) -> str:
        return f"<Slots {self.used} of {self.cap}>"


class Scheduler:
    """Admits the rollouts of one stream of tasks, group by group, while slots are free.

    Tasks are drawn only when a slot is free, so the iterable may be endless; `add` puts further ones behind it.
    """

    def __init__(
        self,
        tasks: Iterable[Mapping[str, Any]],
        *,
        cap: int,
        share: float = 1.0,
        slots: Slots | None = None,
        rollouts_per_task: int = 1,
        skip: Container[tuple[int, int]] = (),
        max_waiting_groups: int | Literal["slots"] | None = None,
        open_ended: bool = False,
        updates: Callable[[], int] = lambda: 0,
    ) -> None:
        """`cap` limits this stream; `slots` are what it shares with others, `share` how much of them it takes.

        `updates` dates each job. While `max_waiting_groups` wait for the consumer, no further group is begun.
        """
        self._tasks = iter(tasks)
        self._added: deque[tuple[Mapping[str, Any], int]] = deque()
        self._drawn = 0
        self._dropped: set[int] = set()
        self._members = rollouts_per_task
        self._slots = slots or Slots(cap)
        self._share = share
        self._open_ended = open_ended
        self._updates = updates
        self._skip = skip
        self._queue: deque[Job] = deque()
        self._open: dict[int, _OpenGroup] = {}
        self._max_waiting = max_waiting_groups
        self.cap = cap
        self.running: set[tuple[int, int]] = set()
        self.admitting = True
        self.exhausted = False
        self.waiting_groups = 0
        """Groups that are complete and that the consumer has not taken yet."""

    def __repr__(self) -> str:
        return f"<Scheduler {len(self.running)} running, {len(self._queue)} queued, cap {self.cap}>"

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing more will be admitted."""
        nothing_left = self.exhausted and not self._queue and not self._added and not self._open_ended
        return not self.running and (not self.admitting or nothing_left)

    def add(self, task: Mapping[str, Any], members: int) -> int:
        """Puts a task behind those there are; returns its index. Only for streams without tasks of their own."""
        self._added.append((task, members))
        return self._drawn + len(self._added) - 1

    def drop(self, task_index: int) -> Group | None:
        """Takes a task's queued members back; returns its group where only finished members are left."""
        waiting = task_index - self._drawn
        if 0 <= waiting < len(self._added) and task_index not in self._dropped:
            self._dropped.add(task_index)
            task, _ = self._added[waiting]
            return Group(task_id=task_id(task_index, task), task_index=task_index, task=task, rollouts=[])
        kept = deque(job for job in self._queue if job.task_index != task_index)
        group = self._open.get(task_index)
        if group is None:
            return None
        group.size -= len(self._queue) - len(kept)
        self._queue = kept
        return self._complete(task_index) if len(group.rollouts) >= group.size else None

    def admit(self) -> list[Job]:
        """The jobs to start now. Each holds a permit until `on_finished`."""
        jobs: list[Job] = []
        while self.admitting and self._has_slot() and self._fill():
            job = self._queue.popleft()
            self.running.add((job.task_index, job.member))
            self._slots.take()
            jobs.append(job)
        return jobs

    def on_finished(self, rollout: Rollout) -> Group | None:
        """Takes one end, of whatever kind; returns the group that it completes."""
        self.running.remove((rollout.task_index, rollout.member))
        self._slots.used -= 1
        group = self._open[rollout.task_index]
        group.rollouts.append(rollout)
        if len(group.rollouts) < group.size:
            return None
        return self._complete(rollout.task_index)

    def half_ended(self, task_index: int) -> bool:
        """Whether half of an open group's members have ended."""
        group = self._open[task_index]
        return 2 * len(group.rollouts) >= group.size

    def stop(self) -> list[Group]:
        """Admits nothing more; returns the groups that will never be whole but have finished members."""
        self.admitting = False
        dropped = {job.task_index for job in self._queue}
        for job in self._queue:
            self._open[job.task_index].size -= 1
        self._queue.clear()
        ready = [i for i in dropped if i in self._open and len(self._open[i].rollouts) >= self._open[i].size]
        groups = [self._complete(index) for index in ready if self._open[index].rollouts]
        for index in ready:
            self._open.pop(index, None)
        return groups

    def on_taken(self) -> None:
        """The consumer took a group."""
        self.waiting_groups -= 1

    def leftover(self) -> list[Group]:
        """What has finished of groups that will not be whole any more, for a stream that is given up."""
        return [self._complete(index) for index in sorted(self._open) if self._open[index].rollouts]

    def _has_slot(self) -> bool:
        cap = min(self.cap, max(1, int(self._slots.cap * self._share)))
        return len(self.running) < cap and self._slots.used < self._slots.cap

    def _complete(self, task_index: int) -> Group:
        group = self._open.pop(task_index)
        self.waiting_groups += 1
        rollouts = sorted(group.rollouts, key=lambda rollout: rollout.member)
        return Group(task_id=group.task_id, task_index=task_index, task=group.task, rollouts=rollouts)

    def _fill(self) -> bool:
        """Makes sure that a job is queued, if there is one and the consumer keeps up."""
        while not self._queue:
            most = self._slots.cap if self._max_waiting == "slots" else self._max_waiting
            if most is not None and self.waiting_groups >= most:
                return False
            drawn = self._draw()
            if drawn is None:
                return False
            index, (task, count) = self._drawn, drawn
            self._drawn += 1
            members = [member for member in range(count) if (index, member) not in self._skip]
            if not members or index in self._dropped:
                self._dropped.discard(index)
                continue
            name, updates = task_id(index, task), self._updates()
            self._open[index] = _OpenGroup(task_id=name, task=task, size=len(members))
            size = len(members)
            self._queue.extend(
                Job(task_index=index, task_id=name, task=task, member=m, group_size=size, submitted_at=updates)
                for m in members
            )
        return True

    def _draw(self) -> tuple[Mapping[str, Any], int] | None:
        if not self.exhausted:
            task = next(self._tasks, None)
            if task is not None:
                return task, self._members
            self.exhausted = True
        return self._added.popleft() if self._added else None


class _OpenGroup(msgspec.Struct):
    task_id: str
    task: Mapping[str, Any]
    size: int
    rollouts: list[Rollout] = []


def task_id(index: int, task: Mapping[str, Any]) -> str:
    """A task's name: its position and what it holds, so that another task in its place has another name."""
    named = task.get("id")
    if isinstance(named, str | int):
        return f"{index}-{named}"
    content = msgspec.json.encode(dict(task), order="deterministic")
    return f"{index}-{hashlib.blake2b(content, digest_size=4).hexdigest()}"
