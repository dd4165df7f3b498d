"""A run's samples come out as files that trainers read, with their groups' advantages."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from array import array
from base64 import b64decode
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from rollout.cli.app import app
from rollout.errors import RolloutError, UsageError
from rollout.records import Failure, FailureKind, Rollout, StopReason
from rollout.request import WeightSpan
from rollout.store import sample_files
from rollout.store.export import export, samples_of_run
from rollout.store.folder import ROLLOUTS, RunFolder, encode_rollout
from rollout.token_fields import SamplingMask
from rollout.tokens.batch import FIELDS
from rollout.tokens.images import SampleImage
from rollout.tokens.samples import SampleTurn, TrainingSample, turn_ids
from rollout.tokens.trajectory import Node, Root
from transports.scripted import experts_of, kept_with

FORMAT_1, FORMAT_2 = (Path(__file__).parents[2] / "fixtures" / f"run-format-{number}" for number in (1, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: four tasks of two rollouts."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    args = ["run", "guess_number", "-n", "4", "-r", "2", "-s", "temperature=0.9", "-o", str(folder)]
    assert CliRunner().invoke(app, args).exit_code == 0
    return folder


@pytest.mark.slow
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


def test_every_format_holds_the_turns(run: Path, tmp_path: Path) -> None:
    """Where each turn lies, its reward and its temperature are the same whatever the file."""
    import pyarrow.parquet as pq

    samples = list(samples_of_run(run))
    for name in ("jsonl", "parquet", "safetensors"):
        export(run, tmp_path / name, name, "none")
    rows = pq.read_table(tmp_path / "parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()]
    arrays = load_file(tmp_path / "safetensors")
    for sample, row, line in zip(samples, rows, lines, strict=True):
        assert sample.turns
        assert [(turn["start"], turn["end"], turn["reward"]) for turn in row["turns"]] == [
            (turn.start, turn.end, turn.reward) for turn in sample.turns
        ]
        assert [{**turn, "metrics": dict(turn["metrics"])} for turn in row["turns"]] == line["turns"]
        assert line["turns"] == [msgspec.to_builtins(turn) for turn in sample.turns]
        assert line["temperatures"] == row["temperatures"] == sample.temperatures.tolist()
        assert line["logprobs_mode"] == row["logprobs_mode"] == sample.logprobs_mode
    assert arrays["temperatures"].tolist() == [value for sample in samples for value in sample.temperatures]
    assert arrays["turn_ids"].tolist() == [index for sample in samples for index in turn_ids(sample)]
    turns = [turn for sample in samples for turn in sample.turns]
    assert arrays["turn_rewards"].tolist() == [turn.reward for turn in turns]
    assert arrays["turn_cut_off"].tolist() == [turn.finish_reason == "length" for turn in turns]
    for start, end in zip(arrays["turn_starts"], arrays["turn_ends"], strict=True):
        assert arrays["loss_mask"][start:end].all()
        assert arrays["loss_mask"][start - 1] == 0


def test_every_field_of_a_sample_is_in_parquet_and_safetensors(tmp_path: Path) -> None:
    """Whoever asked, why a turn ended, where images stand: a field that is new is a column, too."""
    import pyarrow.parquet as pq
    from safetensors import safe_open

    turn = SampleTurn(start=1, end=3, turn=0, trained=2, temperature=1.0, agent="coder", finish_reason="length")
    image = SampleImage(start=0, length=1, image="sha256:00")
    whole = TrainingSample(
        token_ids=array("i", [4, 5, 6]),
        loss_mask=array("b", [0, 1, 1]),
        logprobs=array("d", [0.0, -1.0, -2.0]),
        weight_versions=[None, "3", "3"],
        turns=[turn],
        task_id="0-a",
        rollout_id="0-a-0",
        agent="coder",
        left_out=7,
        images=[image],
    )
    bare = msgspec.structs.replace(whole, turns=[], agent="", left_out=0, images=[])
    sample_files.write_parquet(tmp_path / "parquet", iter([whole, bare]), with_fields=True)
    table = pq.read_table(tmp_path / "parquet")
    row, other = table.to_pylist()
    apart = {"routed_experts", "sampling_mask"}
    assert set(TrainingSample.__struct_fields__) - apart <= set(table.column_names)
    assert {**row["turns"][0], "metrics": {}} == msgspec.to_builtins(turn)
    assert (row["agent"], row["left_out"], row["images"]) == ("coder", 7, [msgspec.to_builtins(image)])
    assert (other["agent"], other["left_out"], other["images"]) == ("", 0, [])
    sample_files.write_safetensors(tmp_path / "safetensors", iter([whole, bare]))
    with safe_open(tmp_path / "safetensors", "numpy") as file:
        metadata = file.metadata()
        assert file.get_tensor("turn_cut_off").tolist() == [1]
    assert json.loads(metadata["agents"]) == ["coder", ""]
    assert json.loads(metadata["images"]) == [[msgspec.to_builtins(image)], []]


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


def rollout_of(task: int, member: int, tokens: int, failure: FailureKind | None = None) -> Rollout:
    nodes = [
        Node(parent=-1, ids=array("i", range(tokens)), prompt_end=True),
        Node(
            parent=0,
            ids=array("i", range(tokens)),
            sampled=True,
            logprobs=array("d", [-0.5] * tokens),
            weight_versions=(WeightSpan("7", 0, tokens),),
        ),
    ]
    return Rollout(
        id=f"{task}-a-{member}",
        task_id=f"{task}-a",
        task_index=task,
        member=member,
        reward=float(member),
        stop=None if failure else StopReason.DONE,
        failure=Failure(kind=failure, message="x") if failure else None,
        roots=[Root()],
        nodes=nodes,
        leaves=[1],
    )


def written(folder: Path, rollouts: Iterator[Rollout]) -> Path:
    folder.mkdir()
    with (folder / ROLLOUTS).open("wb") as file:
        file.writelines(encode_rollout(rollout) + b"\n" for rollout in rollouts)
    return folder


def peak_of(run: Path, output: Path, format_name: str) -> int:
    export(run, output, format_name, "grpo")  # imports and their memos
    tracemalloc.start()
    try:
        export(run, output, format_name, "grpo")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("format_name", ["jsonl", "safetensors", "parquet"])
def test_a_larger_run_takes_no_more_memory(format_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the rollouts cost the bytes of their index: nothing of a sample is kept."""
    monkeypatch.setattr(sample_files, "ROW_GROUP_TOKENS", 4_000)
    peaks = []
    for tasks in (10, 60):
        rollouts = (rollout_of(task, member, 400) for task in range(tasks) for member in (0, 1))
        peaks.append(peak_of(written(tmp_path / str(tasks), rollouts), tmp_path / "out", format_name))
    assert peaks[1] - peaks[0] < 100 * 1_500, "a sample of these takes 15 kB"


def test_members_that_ended_far_apart_are_one_group(tmp_path: Path) -> None:
    """Whatever the order in the file: samples come by task and member, with their group's advantages."""
    run = written(tmp_path / "run", (rollout_of(task, member, 3) for member in (1, 0) for task in (2, 0, 1)))
    samples = list(samples_of_run(run, lambda rewards: [reward - sum(rewards) / len(rewards) for reward in rewards]))
    assert [sample.rollout_id for sample in samples] == [f"{task}-a-{member}" for task in range(3) for member in (0, 1)]
    assert [sample.advantage for sample in samples] == [-0.5, 0.5] * 3


def test_safetensors_beyond_int32_have_wide_boundaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cu_seqlens` never wraps around."""
    run = written(tmp_path / "run", (rollout_of(0, member, 3) for member in range(2)))
    export(run, tmp_path / "narrow", "safetensors", "none")
    monkeypatch.setattr(sample_files, "_INT32_MAX", 10)
    export(run, tmp_path / "wide", "safetensors", "none")
    narrow, wide = (load_file(tmp_path / name) for name in ("narrow", "wide"))
    assert (narrow["cu_seqlens"].dtype, wide["cu_seqlens"].dtype) == ("int32", "int64")
    for name in narrow:
        assert narrow[name].tobytes() == wide[name].astype(narrow[name].dtype).tobytes()


def test_a_run_of_failures_says_so(tmp_path: Path) -> None:
    """With their kinds, and how to look at them; no file is left, and what was there before stays."""
    run = written(tmp_path / "run", (rollout_of(0, member, 3, FailureKind.ENVIRONMENT) for member in range(2)))
    (tmp_path / "out").write_text("before")
    with pytest.raises(RolloutError, match=r"all 2 rollouts .*\(environment 2\): see `rollout show .*--failed`"):
        export(run, tmp_path / "out", "jsonl", "grpo")
    assert (tmp_path / "out").read_text() == "before"
    assert os.listdir(tmp_path / "run") == [ROLLOUTS]
    assert CliRunner().invoke(app, ["export", str(run)]).exit_code == 1


async def test_a_run_that_is_being_written_is_exported_as_far_as_it_is(tmp_path: Path) -> None:
    """Before its first rollout there is nothing, and its writer is named; a line that is half there is passed over."""
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(RolloutError, match=f"no rollout of .* has ended yet.*process {os.getpid()}"):
        export(tmp_path / "run", None, "jsonl", "grpo")
    await folder.write(rollout_of(0, 0, 3))
    with (tmp_path / "run" / ROLLOUTS).open("ab") as file:
        file.write(encode_rollout(rollout_of(0, 1, 3))[:100])
    assert export(tmp_path / "run", None, "jsonl", "grpo").samples == 1
    folder.close()


def test_a_fault_in_the_middle_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """An export is whole or not there."""
    run = written(tmp_path / "run", (rollout_of(0, member, 3) for member in range(2)))
    with (run / ROLLOUTS).open("r+b") as file:
        lines = file.readlines()
        lines[1] = lines[1].replace(b'"ids":[0', b'"ids":["')
        lines.append(lines[0].replace(b'"member":0', b'"member":2'))
        file.seek(0)
        file.truncate()
        file.writelines(lines)
    (tmp_path / "out").write_text("before")
    with pytest.raises(UsageError, match="line 2"):
        export(run, tmp_path / "out", "jsonl", "grpo")
    assert (tmp_path / "out").read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]


def test_a_device_is_written_as_it_is(run: Path) -> None:
    """A pipe or /dev/null is not replaced by a file."""
    assert export(run, Path("/dev/null"), "jsonl", "grpo").samples == 8
    assert not Path("/dev/null").is_file()


def test_a_folder_of_format_2_is_exported(tmp_path: Path) -> None:
    """The samples of a run that an earlier version played are those that it exported itself."""
    export(FORMAT_2, tmp_path / "samples.jsonl", "jsonl", "grpo")
    files = [folder / "samples.jsonl" for folder in (tmp_path, FORMAT_2)]
    for lines in zip(*(file.read_text().splitlines() for file in files), strict=True):
        now, then = map(json.loads, lines)
        assert {name: now[name] for name in then} == then
        assert now["logprobs_mode"] is None


def test_a_folder_of_format_1_is_exported(tmp_path: Path) -> None:
    """A folder from before there were versions, with a torn last line."""
    shutil.copytree(FORMAT_1, tmp_path / "run")
    assert export(tmp_path / "run", None, "jsonl", "grpo").samples == 2


@pytest.mark.parametrize("format_name", ["jsonl", "safetensors", "parquet"])
async def test_every_format_holds_what_some_samples_have(format_name: str, tmp_path: Path) -> None:
    """Routed experts and sampling masks, of a run in which some servers reported them and some did not."""
    folder = RunFolder.create(tmp_path / "run")
    having = [False, True, True, False]
    for member, has in enumerate(having):
        rollout = rollout_of(0, member, 3)
        if has:
            ids = [*range(3), *range(3)]
            rollout.nodes[0].routed_experts = experts_of(ids).part(0, 2)
            rollout.nodes[1].routed_experts = experts_of(ids).part(2, 5)
            rollout.nodes[1].sampling_mask = SamplingMask.of(map(kept_with, range(3)))
        await folder.write(rollout)
    folder.close()
    export(tmp_path / "run", tmp_path / "out", format_name, "none")
    samples = list(samples_of_run(tmp_path / "run"))
    assert [sample.routed_experts is not None for sample in samples] == having
    found = fields_of_file(tmp_path / "out", format_name)
    for sample, (experts, ids, offsets) in zip(samples, found, strict=True):
        arrays = sample.to_numpy()
        if sample.routed_experts is None:
            assert experts is None or (experts == -1).all()
            assert ids is None or ids.size == 0
            continue
        assert experts is not None
        assert experts.tolist() == arrays["routed_experts"].tolist()
        assert (ids.tolist(), offsets.tolist()) == (
            arrays["sampling_mask_ids"].tolist(),
            arrays["sampling_mask_offsets"].tolist(),
        )


def fields_of_file(path: Path, format_name: str) -> list[tuple[Any, Any, Any]]:
    """Of each sample: experts, the mask's ids, and their offsets."""
    if format_name == "safetensors":
        arrays = load_file(path)
        experts, ids, offsets = (arrays[name] for name in sorted(FIELDS))
        return [
            (experts[start:end], ids[offsets[start] : offsets[end]], offsets[start : end + 1] - offsets[start])
            for start, end in pairwise(arrays["cu_seqlens"])
        ]
    if format_name == "parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        return [
            (None, None, None)
            if row["routed_experts"] is None
            else (
                np.array(row["routed_experts"]).reshape(row["routed_experts_shape"]),
                np.array(row["sampling_mask_ids"]),
                np.array(row["sampling_mask_offsets"]),
            )
            for row in rows
        ]
    found: list[tuple[Any, Any, Any]] = []
    for line in map(json.loads, path.read_text().splitlines()):
        if "routed_experts" not in line:
            assert "sampling_mask" not in line
            found.append((None, None, None))
            continue
        said, mask = line["routed_experts"], line["sampling_mask"]
        experts = np.frombuffer(b64decode(said["data"]), said["dtype"]).reshape(said["shape"])
        found.append((experts, np.array(mask["ids"]), np.array(mask["offsets"])))
    return found


@pytest.mark.parametrize("format_name", ["jsonl", "safetensors", "parquet"])
def test_a_run_that_asked_for_none_has_no_such_columns(run: Path, format_name: str, tmp_path: Path) -> None:
    """Its files are what they were before there were any."""
    export(run, tmp_path / "out", format_name, "none")
    if format_name == "parquet":
        import pyarrow.parquet as pq

        names = set(pq.read_schema(tmp_path / "out").names)
    elif format_name == "safetensors":
        names = set(load_file(tmp_path / "out"))
    else:
        names = set(json.loads((tmp_path / "out").read_text().splitlines()[0]))
    assert names.isdisjoint(FIELDS | {"routed_experts_shape", "sampling_mask"})
