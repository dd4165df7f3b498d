"""Sums over what rollouts came to."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.observe.outcomes import MOST_METRICS, GroupSums, GroupTally, Outcomes, Spread, counted, pass_at
from rollout.records import Failure, FailureKind, Rollout, StopReason


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_spread_is_what_statistics_says(values: list[float]) -> None:
    """Mean, deviation and bounds are those of all numbers, though none is kept."""
    spread = Spread()
    for value in values:
        spread.add(value)
    assert spread.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert spread.std == pytest.approx(statistics.pstdev(values), abs=1e-3)
    assert (spread.low, spread.high, spread.count) == (min(values), max(values), len(values))


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_success(members: int, data: st.DataObject) -> None:
    """The estimate is what drawing every k of the group's members gives."""
    solved, k = data.draw(st.integers(0, members)), data.draw(st.integers(1, members))
    attempts = [True] * solved + [False] * (members - solved)
    subsets = list(itertools.combinations(attempts, k))
    assert pass_at(k, members, solved) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def tally(*rewards: float, success_at: float = 1.0) -> GroupTally:
    found = GroupTally()
    for reward in rewards:
        found.add(reward, success_at)
    return found


def test_groups_of_one_say_nothing_of_groups() -> None:
    """Neither equal rewards nor pass@k are told of tasks that were played once."""
    sums = GroupSums()
    sums.add(tally(1.0))
    assert (sums.groups, sums.equal, sums.pass_at_k) == (0, 0, {})


def test_equal_rewards_and_pass_at_k_over_groups() -> None:
    """A group counts for every k that it has members for; a sum of tenths is a success."""
    sums = GroupSums()
    sums.add(tally(1.0, 0.0, 0.0, 0.0))
    sums.add(tally(0.0, 0.0))
    sums.add(tally(sum([0.1] * 10), 0.0, 0.0))
    assert (sums.groups, sums.equal) == (3, 1)
    assert sums.pass_at_k == pytest.approx({1: (0.25 + 0 + 1 / 3) / 3, 2: (0.5 + 0 + 2 / 3) / 3, 4: 1.0})


def test_the_ks_are_few_however_large_the_group() -> None:
    """Powers of two, and the size itself."""
    assert counted(1) == [1]
    assert counted(6) == [1, 2, 4, 6]
    assert counted(1024)[-1] == 1024
    assert len(counted(1000)) == 11


def rollout(reward: float, **more: object) -> Rollout:
    return Rollout(id="a-0", task_id="a", task_index=0, member=0, reward=reward, **more)  # type: ignore[arg-type]


def test_failed_rollouts_have_no_reward() -> None:
    """They are counted by kind; rewards, metrics and stops are those of the others."""
    outcomes = Outcomes()
    outcomes.add(rollout(1.0, stop=StopReason.DONE, metrics={"steps": 4.0}))
    outcomes.add(rollout(0.0, stop=StopReason.MAX_TURNS, metrics={"steps": 6.0}))
    outcomes.add(rollout(9.0, failure=Failure(kind=FailureKind.ENVIRONMENT, message="m"), metrics={"steps": 99.0}))
    assert outcomes.rewards.mean == 0.5
    assert outcomes.metric_means == {"steps": 5.0}
    assert (dict(outcomes.stops), dict(outcomes.failures)) == ({"done": 1, "max_turns": 1}, {"environment": 1})


def test_metrics_named_by_task_do_not_fill_the_memory() -> None:
    """Only so many names are kept."""
    outcomes = Outcomes()
    for number in range(3 * MOST_METRICS):
        outcomes.add(rollout(0.0, stop=StopReason.DONE, metrics={f"of task {number}": 1.0}))
    assert len(outcomes.metrics) == MOST_METRICS
    assert math.isfinite(outcomes.rewards.low)


def test_a_reward_that_nobody_gave_is_no_zero() -> None:
    """It is counted apart, and its stop and metrics with the others'."""
    outcomes = Outcomes()
    outcomes.add(rollout(1.0, stop=StopReason.DONE))
    outcomes.add(rollout(0.0, stop=StopReason.DONE, reward_known=False))
    assert (outcomes.rewards.mean, outcomes.rewards.count, outcomes.unknown_rewards) == (1.0, 1, 1)
    assert dict(outcomes.stops) == {"done": 2}
