"""Quantiles and shares."""

from __future__ import annotations

from rollout.bench.measure import quantile, work_of
from rollout.bench.replay import Script
from rollout.bench.settings import Cell
from rollout.chat.messages import user
from tests.rollout.bench.kit import run_of, small


def test_quantiles() -> None:
    """Of values in any order; one value is every quantile."""
    assert [quantile([3, 1, 2, 4], share) for share in (0, 0.5, 0.99)] == [1, 3, 4]
    assert quantile([7], 0.95) == 7


def test_the_cached_share_is_unknown_where_the_server_does_not_say() -> None:
    """Not 0."""
    assert run_of("tito", 0, 1, prompt_tokens=10).cached_share is None
    assert run_of("tito", 0, 1, prompt_tokens=10, cached_tokens=5).cached_share == 0.5


def test_repeats_play_other_tasks_and_modes_the_same() -> None:
    """What one repeat left in a cache is of no use to the next."""
    first, second = (work_of(small(), Cell(3, 2), repeat, []) for repeat in (0, 1))
    assert [task["index"] for task in first.tasks] == [0, 1]
    assert [task["index"] for task in second.tasks] == [2, 3]
    assert first.lengths == [[4, 4, 4]] * 2


def test_a_replay_plays_every_script_or_as_many_as_are_asked_for() -> None:
    """More than there are go round."""
    scripts = [Script([user("a")], (), [], [5]), Script([user("b")], (), [[user("c")]], [2, 9])]
    work = work_of(small(), Cell(None, 4), 0, scripts)
    assert (len(work.tasks), work.longest) == (2, 9)
    assert len(work_of(small(rollouts=5), Cell(None, 4), 0, scripts).tasks) == 5
