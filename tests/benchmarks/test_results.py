"""The page of results is made of what was measured, and loses nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import results
from rollout.bench.measure import BenchRun
from rollout.bench.report import RESULTS, Results
from rollout.bench.settings import Cell


def test_one_server_is_measured_again_and_the_others_sections_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on the page of servers that were not measured here is written as it was."""
    page = tmp_path / "RESULTS.md"
    page.write_text(results.PAGE.read_text())
    monkeypatch.setattr(results, "PAGE", page)
    monkeypatch.setattr(results, "ROOT", tmp_path / "runs")
    before = page.read_text()
    results.write()
    assert page.read_text() == before
    folder = tmp_path / "runs" / "embedded"
    (folder / "0").mkdir(parents=True)
    (folder / results.COMMIT).write_text("abc1234")
    cell = Cell(turns=4, concurrency=16)
    runs = [BenchRun(mode="tito", cell=cell, repeat=1, turns=4, turns_per_s=77.7)]
    runs.append(msgspec.structs.replace(runs[0], mode="mito", turns_per_s=70.0))
    (folder / "0" / RESULTS).write_bytes(msgspec.json.encode(Results(server="x", settings={}, runs=runs)))
    results.write()
    after = page.read_text()
    title = "## The embedded model, in process"
    assert after.partition(title)[0] == before.partition(title)[0]
    assert "Measured at commit abc1234." in after.partition(title)[2]
    assert "77.7" in after.partition(title)[2]
