"""Routed experts and sampling masks as servers write them -> ours. Pure, but for `tell_unreported`, which logs.

vLLM      a choice's `routed_experts`: base64 of a .npy file, (positions, layers, top k); `sampling_mask`: lists of ids
SGLang    `meta_info.routed_experts`: base64 of int32, without a shape; `output_token_sampling_mask`: lists of ids
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rollout.errors import MalformedReply
from rollout.log import get_logger
from rollout.token_fields import Blob, ExpertType, RoutedExperts, SamplingMask
from rollout.transport import ServerInfo, TransportConfig
from transports.large import bytes_of, lists_of

#: What a field that is not in an answer is, where it is read only when it was asked for: it may be large.
ABSENT = msgspec.Raw(b"null")

#: The field that is read apart from an answer, where that is large: see `transports.large`.
EXPERTS = "routed_experts"

_LISTS = msgspec.json.Decoder(list[list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]])

_T = TypeVar("_T")

_log = get_logger(__name__)


def experts_of_npy(field: msgspec.Raw, path: str) -> RoutedExperts | None:
    """vLLM's. Raises MalformedReply."""
    data = _read(bytes_of, field, EXPERTS, path)
    if data is None:
        return None
    try:
        found = _array(data)
    except Exception as error:  # of a header that is no header numpy's reader raises one thing or another
        raise MalformedReply(f"{path}: routed_experts is no .npy file: {error}") from error
    if found.ndim != 3 or found.dtype.kind not in "iu":
        raise MalformedReply(
            f"{path}: routed_experts is {found.dtype} of shape {found.shape}, not numbers of (positions, layers, top k)"
        )
    return _experts(found, path)


def _array(data: bytes) -> NDArray[Any]:
    """What a .npy file holds, where it stands: a header that promises more than there is has nothing made for it."""
    file = io.BytesIO(data)
    read = np.lib.format.read_array_header_1_0
    if np.lib.format.read_magic(file) != (1, 0):
        read = np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a header that has to be guessed at
        shape, by_columns, dtype = read(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{len(data) - file.tell()} bytes are not {dtype} of shape {shape}")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")


def experts_of_bytes(field: msgspec.Raw, shape: tuple[int, int] | None, rows: int, path: str) -> RoutedExperts | None:
    """SGLang's. Without a (layers, top k) that is known it is one layer of all. Raises MalformedReply."""
    data = _read(bytes_of, field, EXPERTS, path)
    if data is None:
        return None
    layers, top_k = shape or (1, len(data) // (4 * rows) if rows > 0 else 0)
    if rows <= 0 or not layers * top_k or len(data) != 4 * rows * layers * top_k:
        of = f" of {layers} layers with {top_k} experts each" if shape else ""
        raise MalformedReply(f"{path}: routed_experts has {len(data)} bytes, which are not {rows} positions{of}")
    return _experts(np.frombuffer(data, "<i4").reshape(rows, layers, top_k), path)


def mask_of_lists(field: msgspec.Raw, path: str) -> SamplingMask | None:
    """Either's. Raises MalformedReply."""
    kept = _read(lambda lists: lists_of(lists, _LISTS), field, "the sampling mask", path)
    return None if kept is None else SamplingMask.of(kept)


def tell_unreported(config: TransportConfig, info: ServerInfo, **remedies: str) -> None:
    """Logs what is wanted of a server that was not seen to report it, with what to do there."""
    for name in ("routed_experts", "sampling_mask"):
        if getattr(config, name) and not getattr(info, f"reports_{name}"):
            remedy = remedies.get(name, f"{info.dialect} does not report it")
            _log.warning(f"{name}_not_reported", server=config.base_url or info.dialect, remedy=remedy)


def _read(read: Callable[[msgspec.Raw], _T], field: msgspec.Raw, name: str, path: str) -> _T | None:
    if bytes(memoryview(field)[:5]).strip() == b"null":
        return None
    try:
        return read(field)
    except (ValueError, RecursionError) as error:  # msgspec's errors and binascii's are ValueErrors
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
