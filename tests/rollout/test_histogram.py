"""What a server measured between two looks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.histogram import Histogram, added

BOUNDS = (0.1, 0.2, 0.5, math.inf)


def of(values: list[float]) -> Histogram:
    return Histogram(BOUNDS, tuple(float(sum(value <= bound for value in values)) for bound in BOUNDS))


def test_quantiles_are_spread_evenly_within_a_bucket() -> None:
    """As Prometheus' histogram_quantile has it; above the last bound it is that bound."""
    seen = of([0.15] * 10)
    assert seen.quantile(0.5) is not None
    assert math.isclose(seen.quantile(0.5) or 0, 0.15)
    assert of([9.0]).quantile(0.5) == 0.5
    assert of([]).quantile(0.5) is None


@given(st.lists(st.floats(0, 0.5), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_within_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    """For all observations below the last finite bound."""
    found = of(values).quantile(share)
    ordered = sorted(values)
    true = ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]
    upper = next(bound for bound in BOUNDS if true <= bound)
    lower = max((bound for bound in BOUNDS if bound < upper), default=0.0)
    assert found is not None
    assert lower - 1e-9 <= found <= upper + 1e-9


@pytest.mark.slow
@given(st.lists(st.floats(0, 1)), st.lists(st.floats(0, 1)))
def test_looks_are_subtracted_and_servers_added(first: list[float], then: list[float]) -> None:
    """What came between two looks is what came between them; two servers' requests are as one's."""
    assert of(first + then).since(of(first)) == of(then)
    assert added([of(first), of(then)]) == of(first + then)


def test_a_server_that_began_again_has_all_of_it_after() -> None:
    """Its counts are lower than they were."""
    assert of([0.1]).since(of([0.1, 0.1])) == of([0.1])
    assert added([of([0.1]), Histogram((1.0,), (1.0,))]) is None
    assert added([]) is None
