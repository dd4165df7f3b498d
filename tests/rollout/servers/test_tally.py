"""What was asked of a server is counted, and adds up over processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout.servers.tally import BOUNDS_S, Tally


@given(st.lists(st.floats(0, 2000), max_size=40))
def test_each_answer_is_in_one_bucket(took_s: list[float]) -> None:
    """The bucket of the least bound that it does not exceed, as Prometheus' `le` has it; the last one has the rest."""
    tally = Tally()
    for one in took_s:
        tally.answer(one)
    bounds = [*BOUNDS_S, float("inf")]
    for at, bound in enumerate(bounds):
        assert sum(tally.counts[: at + 1]) == sum(one <= bound for one in took_s)
    assert tally.answered == sum(tally.counts) == len(took_s)


def test_two_add_up_and_neither_changes() -> None:
    """What a sum is made of goes on by itself."""
    first, second = Tally(in_flight=2, failed=1), Tally(in_flight=3)
    first.answer(0.2)
    both = first.plus(second)
    first.answer(0.3)
    second.answer(700.0)
    assert (both.in_flight, both.failed, both.answered, both.answer_s) == (5, 1, 1, 0.2)
    assert first.copied(in_flight=0).counts == first.counts
    assert first.copied(in_flight=0).in_flight == 0
    assert first.in_flight == 2
