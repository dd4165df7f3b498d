"""Training samples -> files, written as the samples come: JSON lines, parquet, safetensors.

Safetensors has its sizes at its beginning, and whole arrays one after another. So each array is spilled to a file of
its own beside the result, and they are put together at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from rollout.errors import UsageError
from rollout.tokens.samples import TrainingSample, numpy_arrays

#: Tokens of a row group of parquet; one that is being written is in memory.
ROW_GROUP_TOKENS = 1 << 20

#: What readers of safetensors take as a header at most.
MOST_HEADER_BYTES = 100_000_000

_INT32_MAX = 2**31 - 1

#: Array -> its type in numpy and in safetensors.
_ARRAYS = {
    "advantages": ("<f8", "F64"),
    "logprobs": ("<f8", "F64"),
    "rewards": ("<f8", "F64"),
    "turn_rewards": ("<f8", "F64"),
    "temperatures": ("<f8", "F64"),
    "weight_versions": ("<i8", "I64"),
    "turn_starts": ("<i8", "I64"),
    "turn_ends": ("<i8", "I64"),
    "position_ids": ("<i4", "I32"),
    "token_ids": ("<i4", "I32"),
    "turn_ids": ("<i4", "I32"),
    "loss_mask": ("|i1", "I8"),
}


def write_jsonl(path: Path, samples: Iterator[TrainingSample]) -> None:
    """One sample a line."""
    encoder = msgspec.json.Encoder(enc_hook=list)
    with path.open("wb") as file:
        for sample in samples:
            file.write(encoder.encode(sample) + b"\n")


def write_safetensors(path: Path, samples: Iterator[TrainingSample]) -> None:
    """Flat arrays with `cu_seqlens`; which sample is whose, and what its logprobs are of, is in the metadata.

    `turn_starts`, `turn_ends` and `turn_rewards` have an entry for each turn of each sample, in places of the whole.
    `cu_seqlens` is int32 as attention kernels want it, and int64 where there are 2^31 tokens or more.
    """
    ends = [0]
    task_ids: list[str] = []
    rollout_ids: list[str] = []
    modes: list[str | None] = []
    with ExitStack() as stack:

        def spill() -> IO[bytes]:
            return stack.enter_context(tempfile.TemporaryFile(dir=path.parent))

        spills = {name: spill() for name in (*_ARRAYS, "cu_seqlens")}
        for sample in samples:
            for name, part in _flat(sample, ends[-1]).items():
                spills[name].write(np.ascontiguousarray(part, _ARRAYS[name][0]).tobytes())
            ends.append(ends[-1] + len(sample.token_ids))
            task_ids.append(sample.task_id)
            rollout_ids.append(sample.rollout_id)
            modes.append(sample.logprobs_mode)
        kinds = {**_ARRAYS, "cu_seqlens": ("<i8", "I64") if ends[-1] > _INT32_MAX else ("<i4", "I32")}
        spills["cu_seqlens"].write(np.array(ends, kinds["cu_seqlens"][0]).tobytes())
        names = {"task_ids": task_ids, "rollout_ids": rollout_ids, "logprobs_modes": modes}
        _put_together(path, spills, kinds, {key: msgspec.json.encode(ids).decode() for key, ids in names.items()})


def _flat(sample: TrainingSample, at: int) -> dict[str, Any]:
    """A sample's arrays, which begin at `at` of the whole."""
    length = len(sample.token_ids)
    return {
        **numpy_arrays(sample),
        "position_ids": np.arange(length),
        "rewards": np.array([sample.reward]),
        "turn_starts": np.array([at + turn.start for turn in sample.turns], np.int64),
        "turn_ends": np.array([at + turn.end for turn in sample.turns], np.int64),
        "turn_rewards": np.array([turn.reward for turn in sample.turns], np.float64),
        "advantages": np.full(length, np.nan if sample.advantage is None else sample.advantage),
    }


def _put_together(
    path: Path, spills: Mapping[str, IO[bytes]], kinds: Mapping[str, tuple[str, str]], metadata: Mapping[str, str]
) -> None:
    """Writes the header, and the arrays behind it: the widest first, so that each lies aligned."""
    header: dict[str, Any] = {"__metadata__": metadata}
    order = sorted(spills, key=lambda name: (-np.dtype(kinds[name][0]).itemsize, name))
    at = 0
    for name in order:
        kind, code = kinds[name]
        size = spills[name].seek(0, os.SEEK_END)
        header[name] = {"dtype": code, "shape": [size // np.dtype(kind).itemsize], "data_offsets": [at, at + size]}
        at += size
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER_BYTES:
        raise ValueError("it has more samples than the header of one file can name: take jsonl or parquet")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            spills[name].seek(0)
            shutil.copyfileobj(spills[name], file)


def write_parquet(path: Path, samples: Iterator[TrainingSample]) -> None:
    """One sample a row, in row groups of about a million tokens."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("format parquet needs pyarrow: pip install 'rollout-engine[parquet]'") from error
    schema = _parquet_schema(pa)
    with pq.ParquetWriter(path, schema) as writer:
        for rows in _row_groups(samples):
            columns = [
                pa.array([_cell(row, name) for row in rows], kind)
                for name, kind in zip(schema.names, schema.types, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _parquet_schema(pa: Any) -> Any:
    turn = [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("turn", pa.int32()),
        ("trained", pa.int32()),
        ("temperature", pa.float64()),
        ("logprobs_mode", pa.string()),
        ("reward", pa.float64()),
        ("metrics", pa.map_(pa.string(), pa.float64())),
    ]
    return pa.schema(
        [
            ("token_ids", pa.list_(pa.int32())),
            ("loss_mask", pa.list_(pa.int8())),
            ("logprobs", pa.list_(pa.float64())),
            ("weight_versions", pa.list_(pa.string())),
            ("temperatures", pa.list_(pa.float64())),
            ("turns", pa.list_(pa.struct(turn))),
            ("logprobs_mode", pa.string()),
            ("reward", pa.float64()),
            ("advantage", pa.float64()),
            ("task_id", pa.string()),
            ("rollout_id", pa.string()),
        ]
    )


def _cell(sample: TrainingSample, name: str) -> Any:
    """A sample's field as pyarrow takes it."""
    value = getattr(sample, name)
    if isinstance(value, array):
        return np.frombuffer(value, value.typecode)
    if name == "turns":
        return [{**msgspec.structs.asdict(turn), "metrics": list(turn.metrics.items())} for turn in value]
    return value


def _row_groups(samples: Iterator[TrainingSample]) -> Iterator[list[TrainingSample]]:
    rows: list[TrainingSample] = []
    tokens = 0
    for sample in samples:
        rows.append(sample)
        tokens += len(sample.token_ids)
        if tokens >= ROW_GROUP_TOKENS:
            yield rows
            rows, tokens = [], 0
    if rows:
        yield rows


WRITERS: dict[str, Callable[[Path, Iterator[TrainingSample]], None]] = {
    "jsonl": write_jsonl,
    "safetensors": write_safetensors,
    "parquet": write_parquet,
}
