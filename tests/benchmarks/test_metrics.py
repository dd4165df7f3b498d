"""What being watched costs is measured within one run, and is bounded."""

from __future__ import annotations

import pytest

from benchmarks import metrics


@pytest.mark.slow
def test_the_cost_of_being_watched_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A ratio of the same engine's CPU, watched by unwatched, and the share of a turn that its counters take."""
    assert metrics.main(["--rounds", "1", "--rollouts", "8", "--turns", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| what | CPU | of a turn's, or of a core |"
    assert lines[-1].startswith("| watched by unwatched, a scrape each second | ratio ")


def test_a_turns_counters_are_cheap() -> None:
    """A few microseconds at the very most, of the 500 that a turn takes."""
    assert 0 < metrics.counters_s() < metrics.MOST_SHARE * 500e-6


@pytest.mark.parametrize(("counters_s", "scrape_s", "status"), [(1e-6, 0.002, 0), (2e-5, 0.002, 1), (1e-6, 0.4, 1)])
def test_too_much_fails(
    counters_s: float, scrape_s: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than 2% of a turn, or of a core for the scrapes."""

    async def measured(*_: object) -> metrics.Costs:
        return metrics.Costs(turn_s=500e-6, counters_s=counters_s, scrape_s=scrape_s, ratios=[1.0])

    monkeypatch.setattr(metrics, "measured", measured)
    assert metrics.main(["--check"]) == status
    assert ("being watched takes more than 2%" in capsys.readouterr().err) is bool(status)
