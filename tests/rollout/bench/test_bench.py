"""Both modes play the same work, in turn; what is done is on disk."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest

from envs.guess_number import GuessNumber
from rollout import Engine, EngineConfig
from rollout.bench import BenchRun, Results, bench, faults, markdown
from rollout.errors import UsageError
from rollout.store.folder import RunFolder
from tests.rollout.bench.kit import small


@pytest.mark.slow
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
        assert run.first_token_p50_s is not None
        assert 0 < run.first_token_p50_s <= run.turn_p99_s
        assert run.sent_bytes > 4 * 40
        assert run.received_bytes > run.turns * 100
    tito = [run for run in results.runs if run.mode == "tito"]
    assert all(run.prefix_breaks == run.never_sampled == 0 and run.samples == run.rollouts for run in tito)
    assert faults(results.runs) == []
    assert "rollout-tiny" in results.server
    assert (tmp_path / "results.md").read_text() == markdown(results)
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
async def test_stopping_early_keeps_what_is_done(tmp_path: Path) -> None:
    """The page is there for the runs that ended."""
    with anyio.CancelScope() as scope:
        await bench(small(repeats=9), tmp_path, lambda run: scope.cancel())
    assert len(msgspec.json.decode((tmp_path / "results.json").read_bytes(), type=Results).runs) == 1
    assert "token-in" in (tmp_path / "report.html").read_text().lower()


@pytest.mark.slow
async def test_a_recorded_run_is_compared_on_its_own_environment(tmp_path: Path) -> None:
    """As many turns as were recorded, each as long as it was then, in both modes."""
    folder = RunFolder.create(tmp_path / "run")
    recorded: list[list[int]] = []
    async with Engine(EngineConfig(max_tokens=24), GuessNumber) as engine:
        async for group in engine.stream(GuessNumber().tasks(3, seed=1)):
            for rollout in group.rollouts:
                await folder.write(rollout)
                recorded.append([turn.completion_tokens for turn in rollout.turns])
    folder.close()
    settings = small(replay=str(tmp_path / "run"), repeats=1)
    results = await bench(settings, tmp_path / "bench", lambda run: None)
    for run in results.runs:
        assert (run.rollouts, run.failed, run.other_lengths, run.fallbacks) == (3, 0, 0, 0)
        assert run.turns == sum(map(len, recorded))
    assert "recorded" in markdown(results)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"turns": [0]}, "--turns"),
        ({"concurrency": []}, "--concurrency"),
        ({"rollouts": 0}, "--rollouts"),
        ({"replay": "nowhere"}, "nowhere"),
    ],
)
async def test_wrong_settings_are_named(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    """Before anything is opened."""
    with pytest.raises(UsageError, match=named):
        await bench(small(**changes), tmp_path, lambda run: None)


@pytest.mark.slow
async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file is in the folder's place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="-o"):
        await bench(small(repeats=1), tmp_path / "file", lambda run: None)
