"""Ratios are of pairs; what spoils a comparison is said."""

from __future__ import annotations

import re

from rollout.bench.report import Results, cells, faults, markdown, ratio, told
from rollout.bench.settings import Cell
from rollout.config import EngineConfig
from tests.rollout.bench.kit import run_of, small


def test_ratios_are_of_pairs() -> None:
    """A machine that was slow for one repeat was so for both modes; half a pair counts for nothing."""
    runs = [run_of("tito", 0, 30), run_of("mito", 0, 10), run_of("mito", 1, 1), run_of("tito", 1, 2)]
    found = ratio([*runs, run_of("tito", 2, 99)], lambda run: run.turns_per_s)
    assert found is not None
    assert (found.least, found.median, found.most) == (2, 2.5, 3)
    assert ratio(runs[:1], lambda run: run.turns_per_s) is None
    assert ratio(runs, lambda run: run.first_token_p50_s) is None
    assert list(cells(runs)) == [Cell(8, 4)]


def test_what_spoils_a_comparison_is_said() -> None:
    """Failures, fallbacks, other lengths and a full context stand below the table."""
    runs = [run_of("tito", 0, 1, failed=2, fallbacks=3), run_of("mito", 0, 1, other_lengths=4, out_of_context=5)]
    shown = markdown(Results(server="x", settings={}, runs=runs))
    assert sorted(re.sub(r"\D", "", fault) for fault in faults(runs)) == ["2", "3", "4", "5"]
    assert all(f"**{fault}**" in shown for fault in faults(runs))


def test_secrets_are_not_kept() -> None:
    """Headers may hold them."""
    kept = told(small(config=EngineConfig(headers={"authorization": "Bearer secret"})))
    assert "secret" not in str(kept)
