"""Training samples -> files, written as the samples come: JSON lines, parquet, safetensors.

An entry point of the group `rollout.sample_formats` is a format more: a function that is called as those here are, with
the file to write and the samples.

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
from rollout.registry import entry_names, load_entry
from rollout.store.field_spills import FieldSpills, Spilled
from rollout.tokens.samples import TrainingSample, as_fields, numpy_arrays

#: Tokens of a row group of parquet; one that is being written is in memory.
ROW_GROUP_TOKENS = 1 << 20

#: What readers of safetensors take as a header at most.
MOST_HEADER_BYTES = 100_000_000

_INT32_MAX = 2**31 - 1

#: Whose entry points write further formats.
_FORMATS = "rollout.sample_formats"

#: Array -> its type in numpy and in safetensors.
_ARRAYS = {
    "advantages": ("<f8", "F64"),
    "logprobs": ("<f8", "F64"),
    "rewards": ("<f8", "F64"),
    "turn_rewards": ("<f8", "F64"),
    "turn_cut_off": ("|i1", "I8"),
    "temperatures": ("<f8", "F64"),
    "weight_versions": ("<i8", "I64"),
    "turn_starts": ("<i8", "I64"),
    "turn_ends": ("<i8", "I64"),
    "position_ids": ("<i4", "I32"),
    "token_ids": ("<i4", "I32"),
    "turn_ids": ("<i4", "I32"),
    "loss_mask": ("|i1", "I8"),
}

#: What only some samples have: in the header of safetensors, an entry a sample, where any has one.
_NAMED_WHERE_ANY = ("agents", "images")


def write_jsonl(path: Path, samples: Iterator[TrainingSample]) -> None:
    """One sample a line."""
    encoder = msgspec.json.Encoder(enc_hook=list)
    with path.open("wb") as file:
        for sample in samples:
            file.write(encoder.encode(as_fields(sample)) + b"\n")


def write_safetensors(path: Path, samples: Iterator[TrainingSample]) -> None:
    """Flat arrays with `cu_seqlens`; which sample is whose, and what its logprobs are of, is in the metadata.

    `turn_starts`, `turn_ends`, `turn_rewards` and `turn_cut_off` (1 where the answer ended at its limit) have an entry
    for each turn of each sample, in places of the whole. Agents and images are in the metadata, where there are any.
    `cu_seqlens` is int32 as attention kernels want it, and int64 where there are 2^31 tokens or more.
    """
    ends = [0]
    named: dict[str, list[Any]] = {
        name: [] for name in ("task_ids", "rollout_ids", "logprobs_modes", *_NAMED_WHERE_ANY)
    }
    with ExitStack() as stack:

        def spill() -> IO[bytes]:
            return stack.enter_context(tempfile.TemporaryFile(dir=path.parent))

        spills = {name: spill() for name in (*_ARRAYS, "cu_seqlens")}
        fields = FieldSpills(spill)
        for sample in samples:
            for name, part in _flat(sample, ends[-1]).items():
                spills[name].write(np.ascontiguousarray(part, _ARRAYS[name][0]).tobytes())
            fields.add(sample)
            ends.append(ends[-1] + len(sample.token_ids))
            own = (sample.task_id, sample.rollout_id, sample.logprobs_mode, sample.agent, sample.images)
            for values, value in zip(named.values(), own, strict=True):
                values.append(value)
        kinds = {**_ARRAYS, "cu_seqlens": ("<i8", "I64") if ends[-1] > _INT32_MAX else ("<i4", "I32")}
        spills["cu_seqlens"].write(np.array(ends, kinds["cu_seqlens"][0]).tobytes())
        arrays = {
            name: Spilled(file, *kinds[name], [file.tell() // np.dtype(kinds[name][0]).itemsize])
            for name, file in spills.items()
        }
        metadata = {
            name: msgspec.json.encode(values).decode()
            for name, values in named.items()
            if name not in _NAMED_WHERE_ANY or any(values)
        }
        _put_together(path, {**arrays, **fields.arrays()}, metadata)


def _flat(sample: TrainingSample, at: int) -> dict[str, Any]:
    """A sample's arrays, which begin at `at` of the whole."""
    length = len(sample.token_ids)
    return {
        **numpy_arrays(sample, fields=False),
        "position_ids": np.arange(length),
        "rewards": np.array([sample.reward]),
        "turn_starts": np.array([at + turn.start for turn in sample.turns], np.int64),
        "turn_ends": np.array([at + turn.end for turn in sample.turns], np.int64),
        "turn_rewards": np.array([turn.reward for turn in sample.turns], np.float64),
        "turn_cut_off": np.array([turn.finish_reason == "length" for turn in sample.turns], np.int8),
        "advantages": np.full(length, np.nan if sample.advantage is None else sample.advantage),
    }


def _put_together(path: Path, arrays: Mapping[str, Spilled], metadata: Mapping[str, str]) -> None:
    """Writes the header, and the arrays behind it: the widest first, so that each lies aligned."""
    header: dict[str, Any] = {"__metadata__": metadata}
    order = sorted(arrays, key=lambda name: (-np.dtype(arrays[name].kind).itemsize, name))
    at = 0
    for name in order:
        array = arrays[name]
        size = array.file.seek(0, os.SEEK_END)
        header[name] = {"dtype": array.code, "shape": array.shape, "data_offsets": [at, at + size]}
        at += size
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER_BYTES:
        raise ValueError("it has more samples than the header of one file can name: take jsonl or parquet")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            arrays[name].file.seek(0)
            shutil.copyfileobj(arrays[name].file, file)


def write_parquet(path: Path, samples: Iterator[TrainingSample], *, with_fields: bool = False) -> None:
    """One sample a row, in row groups of about a million tokens. Its columns must be known before its samples are.

    `with_fields` gives it those of routed experts and sampling masks.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("format parquet needs pyarrow: pip install 'rollout-engine[parquet]'") from error
    schema = _parquet_schema(pa, with_fields=with_fields)
    with pq.ParquetWriter(path, schema) as writer:
        for rows in _row_groups(samples):
            cells = [_cells(row, with_fields=with_fields) for row in rows]
            columns = [
                pa.array([cell[name] for cell in cells], kind)
                for name, kind in zip(schema.names, schema.types, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _parquet_schema(pa: Any, *, with_fields: bool) -> Any:
    turn = [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("turn", pa.int32()),
        ("trained", pa.int32()),
        ("temperature", pa.float64()),
        ("logprobs_mode", pa.string()),
        ("reward", pa.float64()),
        ("metrics", pa.map_(pa.string(), pa.float64())),
        ("agent", pa.string()),
        ("finish_reason", pa.string()),
    ]
    image = [("start", pa.int32()), ("length", pa.int32()), ("image", pa.string())]
    fields = [
        ("routed_experts", pa.list_(pa.int32())),
        ("routed_experts_shape", pa.list_(pa.int64())),
        ("sampling_mask_ids", pa.list_(pa.int32())),
        ("sampling_mask_offsets", pa.list_(pa.int64())),
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
            ("agent", pa.string()),
            ("left_out", pa.int64()),
            ("images", pa.list_(pa.struct(image))),
            *(fields if with_fields else ()),
        ]
    )


def _cells(sample: TrainingSample, *, with_fields: bool) -> dict[str, Any]:
    """A sample's columns as pyarrow takes them."""
    cells = {
        name: np.frombuffer(value, value.typecode) if isinstance(value, array) else value
        for name, value in msgspec.structs.asdict(sample).items()
    }
    cells["turns"] = [{**msgspec.structs.asdict(turn), "metrics": list(turn.metrics.items())} for turn in sample.turns]
    cells["images"] = [msgspec.structs.asdict(image) for image in sample.images]
    if not with_fields:
        return cells
    experts = sample.routed_experts.to_numpy() if sample.routed_experts is not None else None
    cells["routed_experts"] = None if experts is None else experts.reshape(-1)
    cells["routed_experts_shape"] = None if experts is None else experts.shape
    mask = sample.sampling_mask
    cells["sampling_mask_ids"], cells["sampling_mask_offsets"] = (None, None) if mask is None else mask.to_numpy()
    return cells


def _row_groups(samples: Iterator[TrainingSample]) -> Iterator[list[TrainingSample]]:
    rows: list[TrainingSample] = []
    tokens = 0
    for sample in samples:
        rows.append(sample)
        experts = sample.routed_experts
        # What is as large as many tokens counts as many.
        tokens += len(sample.token_ids) * (1 if experts is None else 1 + experts.layers * experts.top_k // 8)
        if tokens >= ROW_GROUP_TOKENS:
            yield rows
            rows, tokens = [], 0
    if rows:
        yield rows


def write(name: str, path: Path, samples: Iterator[TrainingSample], *, with_fields: bool) -> None:
    """Writes a file of a format. `with_fields` says whether any may have routed experts or sampling masks."""
    if name == "parquet":
        write_parquet(path, samples, with_fields=with_fields)
    else:
        (WRITERS.get(name) or load_entry(_FORMATS, name))(path, samples)


def format_names() -> list[str]:
    """Ours, and those that have an entry point."""
    return [*WRITERS, *entry_names(_FORMATS)]


WRITERS: dict[str, Callable[[Path, Iterator[TrainingSample]], None]] = {
    "jsonl": write_jsonl,
    "safetensors": write_safetensors,
    "parquet": write_parquet,
}
