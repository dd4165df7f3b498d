"""The order of runs, and the defaults."""

from __future__ import annotations

import pytest

from rollout.bench.settings import Cell, schedule, settings_of
from rollout.config import EngineConfig
from rollout.errors import UsageError
from tests.rollout.bench.kit import small


def test_every_cell_is_played_in_both_modes_before_it_is_repeated() -> None:
    """Stopping early leaves whole pairs."""
    order = list(schedule(small(turns=[2, 4], concurrency=[1], repeats=2)))
    two, four = Cell(2, 1), Cell(4, 1)
    assert order[:4] == [(two, 0, "tito"), (two, 0, "mito"), (four, 0, "tito"), (four, 0, "mito")]
    assert order[4:6] == [(two, 1, "mito"), (two, 1, "tito")]
    assert len(order) == 8


def test_a_replay_has_the_recorded_turns() -> None:
    """Only the concurrency makes cells."""
    order = list(schedule(small(replay="run", concurrency=[1, 2], repeats=1)))
    assert {cell for cell, _, _ in order} == {Cell(None, 1), Cell(None, 2)}
    with pytest.raises(UsageError, match="--replay"):
        settings_of(EngineConfig(), turns="8", concurrency=None, replay="run")


def test_defaults_are_a_servers_or_the_embedded_models() -> None:
    """Nobody waits for hours without having asked for a large server's grid."""
    embedded = settings_of(EngineConfig(), turns=None, concurrency=None, replay=None)
    served = settings_of(EngineConfig(base_url="http://x"), turns=None, concurrency="1,2", replay=None)
    assert (embedded.turns, embedded.concurrency) == ((4, 16), (16,))
    assert (served.turns, served.concurrency) == ((8, 32, 128), [1, 2])
