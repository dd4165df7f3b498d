"""Who plays next: a pure core that decides, without await and without a clock.

The shell (`rollout.schedule.stream`) acts: it draws as many tasks as are `wanted` and offers them, starts what `admit`
gives, and reports every end by `on_finished`. Permits are counted here and nowhere else, so what is given back is given
back. Whatever is done to one rollout or one task costs the same, however many there were before.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Container, Mapping
from typing import Any, Literal

import msgspec

from rollout.records import Group, Job, Rollout


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

    Tasks are wanted only when a slot is free for them, so there may be endlessly many.
    """

    def __init__(
        self,
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

        `updates` dates each job. While `max_waiting_groups` wait for the consumer, no further group is begun. An
        `open_ended` one is done only when it is stopped, and gives the group of every task, even one that never began.
        """
        self._offered: deque[int] = deque()
        self._waiting: dict[int, tuple[Mapping[str, Any], int]] = {}
        self._known = 0
        self._members = rollouts_per_task
        self._slots = slots or Slots(cap)
        self._share = share
        self.open_ended = open_ended
        self._updates = updates
        self._skip = skip
        self._queue: deque[Job] = deque()
        self._open: dict[int, _OpenGroup] = {}
        self._max_waiting = max_waiting_groups
        self.cap = cap
        self.running: set[tuple[int, int]] = set()
        self.admitting = True
        self.exhausted = False
        """Whether no further task will be offered."""
        self.waiting_groups = 0
        """Groups that are complete and that the consumer has not taken yet."""

    def __repr__(self) -> str:
        return f"<Scheduler {len(self.running)} running, {len(self._queue)} queued, cap {self.cap}>"

    @property
    def queued(self) -> int:
        """Rollouts of groups that have begun, which wait for a slot."""
        return len(self._queue)

    @property
    def offered(self) -> int:
        """How many tasks were offered so far, which is the next one's index."""
        return self._known

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing more will be admitted."""
        nothing_left = self.exhausted and not self._queue and not self._waiting and not self.open_ended
        return not self.running and (not self.admitting or nothing_left)

    @property
    def wanted(self) -> int:
        """How many further tasks could begin now. At the most: the slots may be taken by other streams."""
        if not self.admitting or self.exhausted or self._queue:
            return 0
        tasks = -(-self._free() // self._members)
        if (room := self._room()) is not None:
            tasks = min(tasks, room)
        return max(0, tasks - len(self._waiting))

    def offer(self, task: Mapping[str, Any], members: int | None = None) -> int:
        """Puts a task behind those there are; returns its index. `members` are the stream's number, if not given."""
        index = self._known
        self._known += 1
        self._offered.append(index)
        self._waiting[index] = task, self._members if members is None else members
        return index

    def drop(self, task_index: int) -> Group | None:
        """Takes back what has not begun of a task; returns its group where only finished members are left."""
        if (waiting := self._waiting.pop(task_index, None)) is not None:
            self._open[task_index] = _OpenGroup(task_id=task_id(task_index, waiting[0]), task=waiting[0], size=0)
            return self._complete(task_index)
        group = self._open.get(task_index)
        if group is None:
            return None
        kept = deque(job for job in self._queue if job.task_index != task_index)
        group.size -= len(self._queue) - len(kept)
        self._queue = kept
        return self._complete(task_index) if len(group.rollouts) >= group.size else None

    def admit(self) -> list[Job]:
        """The jobs to start now. Each holds a permit until `on_finished`."""
        jobs: list[Job] = []
        while self.admitting and self._free() > 0 and self._fill():
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

    def withdraw(self) -> list[Group]:
        """Takes back all that has not begun; returns the groups that have no other members left than finished ones."""
        groups: list[Group] = []
        for index in dict.fromkeys([*(job.task_index for job in self._queue), *self._waiting]):
            group = self.drop(index)
            if group is None:
                continue
            if group.rollouts or self.open_ended:
                groups.append(group)
            else:
                self.waiting_groups -= 1  # nobody asked for it by name, and nothing of it was played
        self._offered.clear()
        return groups

    def stop(self) -> list[Group]:
        """Admits nothing more; see `withdraw`. What runs completes its groups yet."""
        self.admitting = False
        return self.withdraw()

    def on_taken(self) -> None:
        """The consumer took a group."""
        self.waiting_groups -= 1

    def _free(self) -> int:
        cap = min(self.cap, max(1, int(self._slots.cap * self._share)))
        return min(cap - len(self.running), self._slots.cap - self._slots.used)

    def _room(self) -> int | None:
        """How many groups may begin before the consumer takes one; None where that is not limited."""
        most = self._slots.cap if self._max_waiting == "slots" else self._max_waiting
        return None if most is None else most - self.waiting_groups

    def _complete(self, task_index: int) -> Group:
        group = self._open.pop(task_index)
        self.waiting_groups += 1
        rollouts = sorted(group.rollouts, key=lambda rollout: rollout.member)
        return Group(task_id=group.task_id, task_index=task_index, task=group.task, rollouts=rollouts)

    def _fill(self) -> bool:
        """Makes sure that a job is queued, if there is one and the consumer keeps up."""
        while not self._queue:
            room = self._room()
            if (room is not None and room <= 0) or not self._offered:
                return False
            index = self._offered.popleft()
            task, count = self._waiting.pop(index, ({}, 0))  # without one it was dropped
            members = [member for member in range(count) if (index, member) not in self._skip]
            if not members:
                continue
            name, updates, size = task_id(index, task), self._updates(), len(members)
            self._open[index] = _OpenGroup(task_id=name, task=task, size=size)
            self._queue.extend(
                Job(task_index=index, task_id=name, task=task, member=m, group_size=size, submitted_at=updates)
                for m in members
            )
        return True


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
    try:
        content = msgspec.json.encode(dict(task), order="deterministic")
    except (OverflowError, TypeError, ValueError):  # an integer beyond 64 bits, or a task that no door has seen
        content = json.dumps(dict(task), sort_keys=True, default=str).encode("utf-8", "surrogatepass")
    return f"{index}-{hashlib.blake2b(content, digest_size=4).hexdigest()}"
