"""A run's samples come out as files that trainers read, with their groups' advantages."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from rollout.cli import app
from rollout.errors import UsageError
from rollout.export import export, samples_of_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: four tasks of two rollouts."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    args = ["run", "guess_number", "-n", "4", "-r", "2", "-o", str(folder)]
    assert CliRunner().invoke(app, args).exit_code == 0
    return folder


@pytest.mark.parametrize("format_name", ["jsonl", "safetensors", "parquet"])
def test_every_format_holds_the_same_samples(run: Path, format_name: str, tmp_path: Path) -> None:
    """Ids, masks, rewards and advantages read back are those of the run."""
    samples = sorted(
        samples_of_run(run, lambda rewards: [reward - 1 for reward in rewards]), key=lambda s: s.rollout_id
    )
    assert len(samples) == 8
    done = export(run, tmp_path / "out", format_name, "grpo")
    assert done.samples == 8
    assert done.tokens == sum(len(sample.token_ids) for sample in samples)
    if format_name == "jsonl":
        lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        ids = {line["rollout_id"]: line["token_ids"] for line in lines}
        assert sum(sum(line["loss_mask"]) for line in lines) == done.trained_tokens
    elif format_name == "parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(tmp_path / "out").to_pylist()
        ids = {row["rollout_id"]: row["token_ids"] for row in table}
        assert {row["reward"] for row in table} == {sample.reward for sample in samples}
    else:
        arrays = load_file(tmp_path / "out")
        ends = arrays["cu_seqlens"]
        assert arrays["loss_mask"].sum() == done.trained_tokens
        parts = [arrays["token_ids"][a:b].tolist() for a, b in pairwise(ends)]
        ids = dict(zip([sample.rollout_id for sample in samples], parts, strict=True))
    assert ids == {sample.rollout_id: sample.token_ids.tolist() for sample in samples}


def test_a_rollout_played_again_counts_once(run: Path, tmp_path: Path) -> None:
    """Where a stopped rollout was played again on resume, its last record stands."""
    lines = (run / "rollouts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rollouts.jsonl").write_bytes(b"".join([*lines, lines[0]]))
    assert len(list(samples_of_run(tmp_path))) == 8


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("csv", "grpo"), "no format 'csv'; there are: jsonl"),
        (("jsonl", "best"), "no advantage 'best'; there are: grpo"),
    ],
)
def test_unknown_names_list_the_known_ones(run: Path, args: tuple[str, str], said: str) -> None:
    """A wrong format or advantage is one line that lists the right ones."""
    with pytest.raises(UsageError, match=said):
        export(run, None, *args)


def test_the_command_tells_what_it_wrote(run: Path, tmp_path: Path) -> None:
    """`rollout export` prints the file and its size; a folder that is no run is a user's mistake."""
    result = CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / "s.jsonl")])
    assert "8 samples" in result.stdout
    assert CliRunner().invoke(app, ["export", str(tmp_path)]).exit_code == 2
    assert CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / "no" / "s")]).exit_code == 2
