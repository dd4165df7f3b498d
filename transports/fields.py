"""Routed experts and sampling masks as servers write them -> ours. Pure, but for `tell_unreported`, which logs.

vLLM      a choice's `routed_experts`: base64 of a .npy file, (positions, layers, top k); `sampling_mask`: lists of ids
SGLang    `meta_info.routed_experts`: base64 of int32, without a shape; `output_token_sampling_mask`: lists of ids
"""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rollout.errors import MalformedReply
from rollout.log import get_logger
from rollout.token_fields import Blob, ExpertType, RoutedExperts, SamplingMask
from rollout.transport import ServerInfo, TransportConfig

#: What a field that is not in an answer is, where it is read only when it was asked for: it may be large.
ABSENT = msgspec.Raw(b"null")

_BYTES = msgspec.json.Decoder(bytes | None)
_LISTS = msgspec.json.Decoder(list[list[int]] | None)

_log = get_logger(__name__)


def experts_of_npy(field: msgspec.Raw, path: str) -> RoutedExperts | None:
    """vLLM's. Raises MalformedReply."""
    data = _read(_BYTES, field, "routed_experts", path)
    if data is None:
        return None
    try:
        found = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise MalformedReply(f"{path}: routed_experts is no .npy file: {error}") from error
    if found.ndim != 3 or found.dtype.kind not in "iu":
        raise MalformedReply(
            f"{path}: routed_experts is {found.dtype} of shape {found.shape}, not numbers of (positions, layers, top k)"
        )
    return _experts(found, path)


def experts_of_bytes(field: msgspec.Raw, shape: tuple[int, int] | None, rows: int, path: str) -> RoutedExperts | None:
    """SGLang's. Without a (layers, top k) that is known it is one layer of all. Raises MalformedReply."""
    data = _read(_BYTES, field, "routed_experts", path)
    if data is None:
        return None
    layers, top_k = shape or (1, len(data) // (4 * rows) if rows else 0)
    if not rows or not layers * top_k or len(data) != 4 * rows * layers * top_k:
        of = f" of {layers} layers with {top_k} experts each" if shape else ""
        raise MalformedReply(f"{path}: routed_experts has {len(data)} bytes, which are not {rows} positions{of}")
    return _experts(np.frombuffer(data, "<i4").reshape(rows, layers, top_k), path)


def mask_of_lists(field: msgspec.Raw, path: str) -> SamplingMask | None:
    """Either's. Raises MalformedReply."""
    kept = _read(_LISTS, field, "the sampling mask", path)
    try:
        return None if kept is None else SamplingMask.of(kept)
    except OverflowError as error:
        raise MalformedReply(f"{path}: the sampling mask has an id beyond 32 bits") from error


def tell_unreported(config: TransportConfig, info: ServerInfo, **remedies: str) -> None:
    """Logs what is wanted of a server that was not seen to report it, with what to do there."""
    for name in ("routed_experts", "sampling_mask"):
        if getattr(config, name) and not getattr(info, f"reports_{name}"):
            remedy = remedies.get(name, f"{info.dialect} does not report it")
            _log.warning(f"{name}_not_reported", server=config.base_url or info.dialect, remedy=remedy)


def _read(decoder: msgspec.json.Decoder[Any], field: msgspec.Raw, name: str, path: str) -> Any:
    try:
        return decoder.decode(field)
    except msgspec.MsgspecError as error:
        raise MalformedReply(f"{path}: {name} cannot be read: {error}") from error


def _experts(found: NDArray[Any], path: str) -> RoutedExperts:
    """In a type that holds them: the server's own where it is small, else the smallest."""
    kind: ExpertType
    if found.dtype in (np.uint8, np.uint16):
        kind = "uint8" if found.dtype == np.uint8 else "uint16"
    else:
        most, least = (int(found.max()), int(found.min())) if found.size else (0, 0)
        if not 0 <= least <= most < 2**31:
            wrong = least if least < 0 else most
            raise MalformedReply(f"{path}: routed_experts has {wrong}, which is no expert's number")
        kind = "uint8" if most < 2**8 else "uint16" if most < 2**16 else "int32"
    _, layers, top_k = found.shape
    if not layers * top_k:
        raise MalformedReply(f"{path}: routed_experts has no experts: its shape is {found.shape}")
    data = np.ascontiguousarray(found, np.dtype(kind).newbyteorder("<")).tobytes()
    return RoutedExperts(data=Blob(data), layers=layers, top_k=top_k, dtype=kind)
