"""Advantages compare a rollout with its group."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.tokens.advantages import ADVANTAGES, grpo, leave_one_out

REWARDS = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@given(REWARDS)
def test_advantages_sum_to_nothing_and_keep_the_order(rewards: list[float]) -> None:
    """Each kind is centred on its group, and a higher reward never has a lower advantage."""
    for advantage in ADVANTAGES.values():
        found = advantage(rewards)
        assert sum(found) == pytest.approx(0, abs=1e-6)
        ranked = [value for _, value in sorted(zip(rewards, found, strict=True))]
        assert all(a <= b + 1e-9 for a, b in pairwise(ranked))


def test_grpo_divides_by_the_deviation() -> None:
    """One of two that wins stands one deviation above the mean."""
    assert grpo([0.0, 1.0]) == pytest.approx([-1, 1], abs=1e-4)
    assert grpo([0.5, 0.5, 0.5]) == [0, 0, 0]


def test_leave_one_out_measures_against_the_others() -> None:
    """The baseline of each is the mean of the rest."""
    assert leave_one_out([0.0, 0.0, 3.0]) == pytest.approx([-1.5, -1.5, 3])


def test_a_group_of_one_has_no_advantage() -> None:
    """Nothing to compare with is 0, not an error; nothing at all is nothing."""
    assert grpo([1.0]) == [0.0]
    assert leave_one_out([1.0]) == [0.0]
    assert grpo([]) == leave_one_out([]) == []
