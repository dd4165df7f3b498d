"""Both modes play the same work, in turn; what is done is on disk; ratios are of pairs."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from rollout.bench import BenchRun, BenchSettings, Results, bench, cells, faults, markdown, pairs, quantile, ratio
from rollout.config import EngineConfig
from rollout.errors import UsageError
from rollout.records import Mode


def small(**changes: object) -> BenchSettings:
    base = BenchSettings(config=EngineConfig(), turns=[2], concurrency=[2], env_chars=40, max_tokens=4, repeats=2)
    return msgspec.structs.replace(base, **changes)


def run_of(mode: Mode, repeat: int, speed: float, **fields: int) -> BenchRun:
    return BenchRun(mode=mode, turns_each=8, concurrency=4, repeat=repeat, turns_per_s=speed, **fields)


async def test_both_modes_do_the_same_work_on_the_embedded_model(tmp_path: Path) -> None:
    """As many turns of the same lengths; each pair in another order; every run is written when it ends."""
    on_disk: list[int] = []

    def say(run: BenchRun) -> None:
        on_disk.append(len(msgspec.json.decode((tmp_path / "results.json").read_bytes(), type=Results).runs))

    results = await bench(small(), tmp_path, say)
    assert on_disk == [1, 2, 3, 4]
    assert [(run.mode, run.repeat) for run in results.runs] == [("tito", 0), ("mito", 0), ("mito", 1), ("tito", 1)]
    for run in results.runs:
        assert (run.rollouts, run.turns, run.failed, run.other_lengths, run.fallbacks) == (2, 4, 0, 0, 0)
        assert run.turns_per_s > 0
        assert run.client_cpu_ms_per_turn > 0
        assert run.turn_p50_s <= run.turn_p95_s <= run.turn_p99_s
    tito = [run for run in results.runs if run.mode == "tito"]
    assert all(run.prefix_breaks == run.never_sampled == 0 and run.samples == run.rollouts for run in tito)
    assert faults(results.runs) == []
    assert "rollout-tiny" in results.server
    assert (tmp_path / "results.md").read_text() == markdown(results)


def test_every_cell_is_played_in_both_modes_before_it_is_repeated() -> None:
    """Stopping early leaves whole pairs."""
    order = list(pairs(small(turns=[2, 4], concurrency=[1], repeats=2)))
    assert order[:4] == [(2, 1, 0, "tito"), (2, 1, 0, "mito"), (4, 1, 0, "tito"), (4, 1, 0, "mito")]
    assert order[4:6] == [(2, 1, 1, "mito"), (2, 1, 1, "tito")]
    assert len(order) == 8


def test_ratios_are_of_pairs() -> None:
    """A machine that was slow for one repeat was so for both modes; half a pair counts for nothing."""
    runs = [run_of("tito", 0, 30), run_of("mito", 0, 10), run_of("mito", 1, 1), run_of("tito", 1, 2)]
    found = ratio([*runs, run_of("tito", 2, 99)], lambda run: run.turns_per_s)
    assert found is not None
    assert (found.least, found.median, found.most) == (2, 2.5, 3)
    assert ratio(runs[:1], lambda run: run.turns_per_s) is None
    assert list(cells(runs)) == [(8, 4)]


def test_what_spoils_a_comparison_is_said() -> None:
    """Failures, fallbacks and other lengths stand below the table."""
    runs = [run_of("tito", 0, 1, failed=2, fallbacks=3), run_of("mito", 0, 1, other_lengths=4)]
    shown = markdown(Results(server="x", settings={}, runs=runs))
    assert [re.sub(r"\D", "", fault) for fault in faults(runs)] == ["2", "3", "4"]
    assert all(f"**{fault}**" in shown for fault in faults(runs))


def test_quantiles() -> None:
    """Of values in any order; one value is every quantile."""
    assert [quantile([3, 1, 2, 4], share) for share in (0, 0.5, 0.99)] == [1, 3, 4]
    assert quantile([7], 0.95) == 7


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"turns": [0]}, "--turns"), ({"concurrency": []}, "--concurrency"), ({"rollouts": 0}, "--rollouts")],
)
async def test_wrong_numbers_are_named(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    """Before anything is opened."""
    with pytest.raises(UsageError, match=named):
        await bench(small(**changes), tmp_path, lambda run: None)


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file is in the folder's place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="-o"):
        await bench(small(repeats=1), tmp_path / "file", lambda run: None)
