"""Reads a safetensors file as float32, bfloat16 included, which numpy has no type for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST_HEADER = 10_000_000


def read_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the file, by name. Raises ValueError for a file that is none or is cut off."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > min(len(raw) - 8, _LARGEST_HEADER):
        raise ValueError(f"{path} is no safetensors file, or is cut off")
    header: dict[str, Any] = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    body = memoryview(raw)[8 + size :]
    return {name: _tensor(path, name, entry, body) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: dict[str, Any], body: memoryview) -> NDArray[np.float32]:
    start, end = entry["data_offsets"]
    data = body[start:end]
    if len(data) != end - start:
        raise ValueError(f"{path} is cut off in the middle of {name}")
    match entry["dtype"]:
        case "F32":
            flat = np.frombuffer(data, np.float32).copy()
        case "F16":
            flat = np.frombuffer(data, np.float16).astype(np.float32)
        case "BF16":
            # A bfloat16 is the upper half of a float32.
            flat = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        case other:
            raise ValueError(f"{path}: {name} is {other}; float32, float16 and bfloat16 can be read")
    return flat.reshape(entry["shape"])
