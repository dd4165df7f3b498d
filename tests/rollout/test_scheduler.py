"""The deciding core: permits come back, slots refill, groups are whole."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rollout.episode import Job
from rollout.records import Group, Rollout, StopReason
from rollout.scheduler import Scheduler, task_id


def ended(job: Job) -> Rollout:
    return Rollout(id=job.id, task_id=job.task_id, task_index=job.task_index, member=job.member, stop=StopReason.DONE)


def tasks(n: int) -> list[dict[str, Any]]:
    return [{"n": index} for index in range(n)]


def test_a_slot_refills_as_it_frees() -> None:
    """One end admits one rollout, of the next group too: there is no barrier."""
    scheduler = Scheduler(tasks(3), cap=2, rollouts_per_task=2)
    first = scheduler.admit()
    assert [(job.task_index, job.member) for job in first] == [(0, 0), (0, 1)]
    assert scheduler.on_finished(ended(first[0])) is None
    assert [(job.task_index, job.member) for job in scheduler.admit()] == [(1, 0)]


def test_tasks_may_be_endless() -> None:
    """Tasks are drawn only when a slot is free."""
    drawn = itertools.count()
    scheduler = Scheduler(({"n": n} for n in drawn), cap=4)
    assert len(scheduler.admit()) == 4
    assert next(drawn) == 4


def test_admission_waits_for_a_slow_consumer() -> None:
    """When too many groups wait to be taken nothing new starts, until one is taken."""
    scheduler = Scheduler(tasks(9), cap=4, max_waiting_groups=2)
    for job in scheduler.admit():
        scheduler.on_finished(ended(job))
    assert scheduler.waiting_groups == 4
    assert scheduler.admit() == []
    for _ in range(3):
        scheduler.on_taken()
    assert scheduler.admit()


def test_what_is_on_disk_is_not_played() -> None:
    """Skipped members do not run, and their groups hold the others."""
    scheduler = Scheduler(tasks(2), cap=9, rollouts_per_task=2, skip={(0, 0), (0, 1), (1, 0)})
    jobs = scheduler.admit()
    assert [(job.task_index, job.member) for job in jobs] == [(1, 1)]
    group = scheduler.on_finished(ended(jobs[0]))
    assert isinstance(group, Group)
    assert len(group.rollouts) == 1
    assert scheduler.admit() == []
    assert scheduler.done


def test_a_tasks_name_tells_its_content() -> None:
    """Another task at the same position has another name; a task's own id is kept."""
    assert task_id(0, {"a": 1}) != task_id(0, {"a": 2})
    assert task_id(0, {"a": 1, "b": 2}) == task_id(0, {"b": 2, "a": 1})
    assert task_id(3, {"id": "x7"}) == "3-x7"


@given(
    n=st.integers(0, 6),
    members=st.integers(1, 4),
    cap=st.integers(1, 5),
    stop_after=st.none() | st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_every_rollout_ends_once_under_any_order(
    n: int, members: int, cap: int, stop_after: int | None, seed: int
) -> None:
    """Whatever ends first and whenever the run is stopped: the cap holds, nothing runs twice, groups are whole."""
    scheduler = Scheduler(tasks(n), cap=cap, rollouts_per_task=members)
    chance = random.Random(seed)
    running: list[Job] = []
    played: Counter[tuple[int, int]] = Counter()
    groups: list[Group] = []
    ends = 0
    while not scheduler.done:
        running += scheduler.admit()
        assert len(running) == len(scheduler.running) <= cap
        if not running:
            continue
        job = running.pop(chance.randrange(len(running)))
        played[job.task_index, job.member] += 1
        if (group := scheduler.on_finished(ended(job))) is not None:
            groups.append(group)
        ends += 1
        if ends == stop_after:
            groups += scheduler.stop()
    assert not scheduler.running
    assert set(played.values()) <= {1}
    in_groups = [rollout.id for group in groups for rollout in group.rollouts]
    assert len(in_groups) == len(set(in_groups)) == len(played)
    if stop_after is None or stop_after > n * members:
        assert len(groups) == n
        assert all(len(group.rollouts) == members for group in groups)
