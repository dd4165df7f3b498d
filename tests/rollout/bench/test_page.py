"""One page that needs nothing beside it."""

from __future__ import annotations

import re
import sys

import pytest

from rollout.bench.page import NO_PLOTS, page
from rollout.bench.report import Results
from rollout.bench.settings import Cell
from tests.rollout.bench.kit import run_of

RUNS = [
    run_of(mode, repeat, 10.0 * turns, Cell(turns, at_once), prompt_tokens=100, cached_tokens=50, rollouts=1, samples=1)
    for turns in (8, 32)
    for at_once in (16, 64)
    for repeat in (0, 1)
    for mode in ("tito", "mito")
]


def results(**changes: object) -> Results:
    fields = {"server": "a <model> & more", "settings": {"turns": [8, 32], "config": {"model": "m"}}, "runs": RUNS}
    return Results(**{**fields, **changes})  # type: ignore[arg-type]  # the fields of a struct, by name


@pytest.mark.slow
def test_the_page_holds_tables_and_plots_and_fetches_nothing() -> None:
    """Both plots are in it as SVG; what a server calls itself is text."""
    written = page(results())
    assert written.count("<svg") == 2
    assert "By turns of a conversation" in written
    assert "By rollouts at once" in written
    assert "a &lt;model&gt; &amp; more" in written
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|url\((?!#)", written)
    assert not re.findall(r'(?:src|href)="(?!#|http://www.w3.org)', written)
    assert written.count("<tr class=") == 8


@pytest.mark.slow
def test_faults_stand_on_the_page() -> None:
    """Above the numbers."""
    written = page(results(runs=[run_of("tito", 0, 1, failed=3), run_of("mito", 0, 1)]))
    assert written.index("3 rollouts failed") < written.index("<table")


def test_without_matplotlib_the_tables_are_there_and_the_page_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A benchmark on a bare install loses nothing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = page(results())
    assert "<svg" not in written
    assert NO_PLOTS.split("'")[1] in written
    assert written.count("<tr class=") == 8


def test_a_replay_is_plotted_by_concurrency() -> None:
    """Its turns are what was recorded."""
    runs = [run_of(mode, 0, 5, Cell(None, at_once)) for at_once in (1, 4) for mode in ("tito", "mito")]
    written = page(results(runs=runs))
    assert written.count("<svg") == 1
    assert "By turns" not in written
    assert "recorded" in written
