"""`rollout export`: a run's training samples as a file that a trainer reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rollout.advantages import ADVANTAGES, Advantage
from rollout.batch import joined
from rollout.errors import UsageError
from rollout.records import Group, Rollout
from rollout.samples import TrainingSample, group_samples
from rollout.store import read_rollouts


class Exported(msgspec.Struct):
    """What was written."""

    path: str
    samples: int
    tokens: int
    trained_tokens: int


def export(run: Path, output: Path | None, format_name: str, advantage: str) -> Exported:
    """Writes a run's samples. Raises UsageError for an unknown name, a folder that is no run, a missing package."""
    if format_name not in WRITERS:
        raise UsageError(f"no format {format_name!r}; there are: {', '.join(WRITERS)}")
    if advantage not in (*ADVANTAGES, "none"):
        raise UsageError(f"no advantage {advantage!r}; there are: {', '.join(ADVANTAGES)}, none")
    path = output or run / f"samples.{format_name}"
    samples = list(samples_of_run(run, ADVANTAGES.get(advantage)))
    try:
        WRITERS[format_name](path, samples)
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"cannot export {str(run)!r} as {format_name}: {error}") from error
    tokens = sum(len(sample.token_ids) for sample in samples)
    return Exported(str(path), len(samples), tokens, sum(sum(sample.loss_mask) for sample in samples))


def samples_of_run(run: Path, advantage: Advantage | None = None) -> Iterator[TrainingSample]:
    """A run's samples, group by group. A rollout that was played again after a stop counts once, as it ended."""
    last: dict[tuple[int, int], Rollout] = {}
    for rollout in read_rollouts(run):
        last[rollout.task_index, rollout.member] = rollout
    ordered = [last[key] for key in sorted(last)]
    for task_index, members in groupby(ordered, key=lambda rollout: rollout.task_index):
        rollouts = list(members)
        first = rollouts[0]
        group = Group(task_id=first.task_id, task_index=task_index, task=first.task, rollouts=rollouts)
        yield from group_samples(group, advantage)


def _write_jsonl(path: Path, samples: list[TrainingSample]) -> None:
    encoder = msgspec.json.Encoder(enc_hook=list)
    with path.open("wb") as file:
        for sample in samples:
            file.write(encoder.encode(sample) + b"\n")


def _write_safetensors(path: Path, samples: list[TrainingSample]) -> None:
    """Flat arrays with `cu_seqlens`; which sample is whose is in the metadata."""
    from safetensors.numpy import save_file

    packed = joined(samples)
    names = {
        "task_ids": msgspec.json.encode([sample.task_id for sample in samples]).decode(),
        "rollout_ids": msgspec.json.encode([sample.rollout_id for sample in samples]).decode(),
    }
    arrays = {name: np.ascontiguousarray(getattr(packed, name)) for name in packed.__struct_fields__}
    save_file(arrays, path, metadata=names)


def _write_parquet(path: Path, samples: list[TrainingSample]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("format parquet needs pyarrow: pip install 'rollout-engine[parquet]'") from error
    arrays = [sample.to_numpy() for sample in samples]
    columns: dict[str, Any] = {
        name: pa.array([part[name] for part in arrays], pa.list_(kind))
        for name, kind in (
            ("token_ids", pa.int32()),
            ("loss_mask", pa.int8()),
            ("logprobs", pa.float64()),
        )
    }
    columns["weight_versions"] = pa.array([sample.weight_versions for sample in samples], pa.list_(pa.string()))
    for name, kind in (("reward", pa.float64()), ("advantage", pa.float64())):
        columns[name] = pa.array([getattr(sample, name) for sample in samples], kind)
    for name in ("task_id", "rollout_id"):
        columns[name] = pa.array([getattr(sample, name) for sample in samples], pa.string())
    pq.write_table(pa.table(columns), path)


WRITERS: dict[str, Callable[[Path, list[TrainingSample]], None]] = {
    "jsonl": _write_jsonl,
    "safetensors": _write_safetensors,
    "parquet": _write_parquet,
}
