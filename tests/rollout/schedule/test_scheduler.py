"""The deciding core: permits come back, slots refill, groups are whole."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rollout.records import Group, Job, Rollout, StopReason
from rollout.schedule.scheduler import Scheduler, Slots, task_id


def ended(job: Job) -> Rollout:
    return Rollout(id=job.id, task_id=job.task_id, task_index=job.task_index, member=job.member, stop=StopReason.DONE)


def stream(given: Iterable[dict[str, Any]], **options: Any) -> Scheduler:
    """A scheduler whose tasks were all offered."""
    scheduler = Scheduler(**options)
    for task in given:
        scheduler.offer(task)
    scheduler.exhausted = True
    return scheduler


def tasks(n: int) -> list[dict[str, Any]]:
    return [{"n": index} for index in range(n)]


def test_a_slot_refills_as_it_frees() -> None:
    """One end admits one rollout, of the next group too: there is no barrier."""
    scheduler = stream(tasks(3), cap=2, rollouts_per_task=2)
    first = scheduler.admit()
    assert [(job.task_index, job.member) for job in first] == [(0, 0), (0, 1)]
    assert scheduler.on_finished(ended(first[0])) is None
    assert [(job.task_index, job.member) for job in scheduler.admit()] == [(1, 0)]


def test_tasks_are_wanted_as_slots_are_free() -> None:
    """As many tasks are drawn as could begin, and none while one waits: so the iterable may be endless."""
    scheduler = Scheduler(cap=4, rollouts_per_task=3)
    assert scheduler.wanted == 2
    scheduler.offer({"n": 0})
    assert scheduler.wanted == 1
    scheduler.offer({"n": 1})
    jobs = scheduler.admit()
    assert [len(jobs), scheduler.wanted, scheduler.queued] == [4, 0, 2]
    for job in jobs:
        scheduler.on_finished(ended(job))
    assert len(scheduler.admit()) == 2
    assert [scheduler.wanted, scheduler.done] == [1, False]
    scheduler.exhausted = True
    assert scheduler.wanted == 0


def test_no_more_tasks_are_wanted_than_the_consumer_has_room_for() -> None:
    """A task that cannot begin before a group is taken is not drawn."""
    scheduler = Scheduler(cap=8, max_waiting_groups=3)
    assert scheduler.wanted == 3
    scheduler.offer({})
    for job in scheduler.admit():
        scheduler.on_finished(ended(job))
    assert scheduler.wanted == 2


@pytest.mark.slow
def test_nothing_costs_more_the_more_there_were() -> None:
    """A hundred thousand tasks, submitted and cancelled in any order, leave nothing behind and are not searched."""
    scheduler = Scheduler(cap=1, open_ended=True)
    scheduler.offer({})
    (job,) = scheduler.admit()
    indices = [scheduler.offer({"n": n}) for n in range(100_000)]
    random.Random(0).shuffle(indices)
    for index in indices:
        group = scheduler.drop(index)
        assert group is not None
        scheduler.on_taken()
    assert scheduler.withdraw() == []
    assert scheduler.waiting_groups == 0
    scheduler.on_finished(ended(job))
    held = [scheduler._offered, scheduler._waiting, scheduler._queue, scheduler._open, scheduler.running]
    assert [len(each) for each in held] == [0] * 5


def test_admission_waits_for_a_slow_consumer() -> None:
    """When too many groups wait to be taken nothing new starts, until one is taken."""
    scheduler = stream(tasks(9), cap=4, max_waiting_groups=2)
    for job in scheduler.admit():
        scheduler.on_finished(ended(job))
    assert scheduler.waiting_groups == 4
    assert scheduler.admit() == []
    for _ in range(3):
        scheduler.on_taken()
    assert scheduler.admit()


def test_what_is_on_disk_is_not_played() -> None:
    """Skipped members do not run, and their groups hold the others."""
    scheduler = stream(tasks(2), cap=9, rollouts_per_task=2, skip={(0, 0), (0, 1), (1, 0)})
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
    scheduler = stream(tasks(n), cap=cap, rollouts_per_task=members)
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


class SharedSlots(RuleBasedStateMachine):
    """Several streams over one set of slots, under finishes, stops, submissions and withdrawals in any order."""

    CAP = 3

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(self.CAP)
        self.streams: list[Scheduler] = []
        self.updates = 0
        self.running: list[tuple[int, Job]] = []
        self.played: Counter[tuple[int, int, int]] = Counter()
        self.groups: list[tuple[int, Group]] = []
        self.asked: dict[tuple[int, int], int] = {}
        self.withdrawn: set[tuple[int, int]] = set()

    @rule(
        tasks=st.integers(0, 4),
        members=st.integers(1, 3),
        cap=st.integers(1, 4),
        share=st.sampled_from([0.25, 0.5, 1.0]),
        open_ended=st.booleans(),
    )
    def open_stream(self, tasks: int, members: int, cap: int, share: float, open_ended: bool) -> None:
        if len(self.streams) == 3:
            return
        index = len(self.streams)
        given = [] if open_ended else [{"n": n} for n in range(tasks)]
        self.asked.update({(index, n): members for n in range(len(given))})
        self.streams.append(
            stream(
                given,
                cap=cap,
                share=share,
                slots=self.slots,
                rollouts_per_task=members,
                open_ended=open_ended,
                updates=lambda: self.updates,
            )
        )

    @rule(which=st.integers(0, 2), members=st.integers(1, 3))
    def submit(self, which: int, members: int) -> None:
        if which < len(self.streams) and self.streams[which].open_ended:
            task_index = self.streams[which].offer({"submitted": members}, members)
            assert (which, task_index) not in self.asked
            self.asked[which, task_index] = members

    @rule(which=st.integers(0, 2), task_index=st.integers(0, 6))
    def withdraw(self, which: int, task_index: int) -> None:
        if (which, task_index) in self.asked and which < len(self.streams):
            self.withdrawn.add((which, task_index))
            if (group := self.streams[which].drop(task_index)) is not None:
                self.groups.append((which, group))

    @rule()
    def admit(self) -> None:
        for which, each in enumerate(self.streams):
            before, used = len(each.running), self.slots.used
            self.running += [(which, job) for job in each.admit()]
            # A cap that has shrunk ends nothing; it admits nothing either, until there is room.
            assert len(each.running) <= max(before, 1, int(self.slots.cap * each._share))
            assert self.slots.used <= max(used, self.slots.cap)

    @rule(cap=st.integers(1, 6))
    def resize(self, cap: int) -> None:
        self.slots.cap = cap

    @rule()
    def update(self) -> None:
        self.updates += 1

    @rule(chance=st.randoms(use_true_random=False))
    def finish(self, chance: random.Random) -> None:
        if self.running:
            which, job = self.running.pop(chance.randrange(len(self.running)))
            assert job.submitted_at <= self.updates
            self.played[which, job.task_index, job.member] += 1
            if (group := self.streams[which].on_finished(ended(job))) is not None:
                self.groups.append((which, group))

    @rule(which=st.integers(0, 2))
    def stop(self, which: int) -> None:
        if which < len(self.streams):
            self.groups += [(which, group) for group in self.streams[which].stop()]

    @invariant()
    def permits_are_those_of_running_rollouts(self) -> None:
        assert self.slots.used == len(self.running) == sum(len(stream.running) for stream in self.streams)
        assert self.slots.most_used >= self.slots.used
        assert all(len(stream.running) <= stream.cap for stream in self.streams)

    def teardown(self) -> None:
        while True:
            self.admit()
            if not self.running:
                break
            self.finish(random.Random(0))
        assert self.slots.used == 0
        assert set(self.played.values()) <= {1}, "a rollout was played twice"
        in_groups = [(which, r.task_index, r.member) for which, group in self.groups for r in group.rollouts]
        assert sorted(in_groups) == sorted(self.played), "each that was played is in one group, once"
        whole = Counter((which, group.task_index) for which, group in self.groups)
        assert set(whole.values()) <= {1}, "a group came twice"
        for (which, task_index), members in self.asked.items():
            if self.streams[which].admitting:
                (group,) = [g for w, g in self.groups if (w, g.task_index) == (which, task_index)]
                assert len(group.rollouts) == members or (which, task_index) in self.withdrawn


TestSharedSlots = pytest.mark.slow(SharedSlots.TestCase)
