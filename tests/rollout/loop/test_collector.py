"""Full garbage collections are rare while rollouts are played."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from rollout.loop.collector import infrequent_full_gc


@pytest.fixture
def _thawed() -> Iterator[None]:
    """Nothing is frozen before, as in a program; what the suite has frozen is so again afterwards."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.slow
@pytest.mark.usefixtures("_thawed")
def test_the_collector_leaves_out_what_was_there() -> None:
    """While rollouts are played, not afterwards, and also where playing raises."""
    frozen: list[int] = []

    def play() -> None:
        with infrequent_full_gc():
            frozen.append(gc.get_freeze_count())
            raise ValueError("played")

    with pytest.raises(ValueError, match="played"):
        play()
    assert frozen[0] > 0
    assert gc.get_freeze_count() == 0


def test_what_the_program_froze_stays_frozen() -> None:
    """A program that forks freezes what it shares with its children: that is not ours to thaw."""
    gc.freeze()
    before = gc.get_freeze_count()
    with infrequent_full_gc():
        assert gc.get_freeze_count() <= before
    assert 0 < gc.get_freeze_count() <= before


@pytest.mark.slow
@pytest.mark.usefixtures("_thawed")
def test_full_collections_are_rare_while_rollouts_are_played() -> None:
    """Objects that stay make Python look through all of them again and again: not here, and afterwards as before."""
    before = gc.get_threshold()

    def full_collections(full_every_s: float) -> int:
        with infrequent_full_gc(full_every_s=full_every_s), infrequent_full_gc():
            done = gc.get_stats()[2]["collections"]
            kept = [[number] for number in range(400_000)]
            assert kept
            return int(gc.get_stats()[2]["collections"] - done)

    assert full_collections(3600.0) == 0
    assert full_collections(0.0) > 0
    assert gc.get_threshold() == before
