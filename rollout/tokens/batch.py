"""Training samples -> arrays of one shape: padded rows, or sequences packed end to end with their boundaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rollout.moved import forward_names
from rollout.tokens.samples import TrainingSample

Array = NDArray[Any]


class Padded(msgspec.Struct, frozen=True, kw_only=True):
    """Samples as rows, padded at the right. Per-token arrays are (samples, length)."""

    token_ids: Array
    """int32; `pad_id` behind a sample's end."""
    attention_mask: Array
    """int8; 1 on the sample's tokens."""
    loss_mask: Array
    """int8."""
    logprobs: Array
    """float64."""
    weight_versions: Array
    """int64; -1 where none is known."""
    temperatures: Array
    """float64; 1 on padding and on what was not sampled, NaN where none is known."""
    turn_ids: Array
    """int32; the index of the turn that sampled the token, -1 for none."""
    rewards: Array
    """float64, (samples,)."""
    advantages: Array
    """float64, (samples,); NaN where none was computed."""
    routed_experts: Array | None = None
    """int16, or int32 where a number needs it, (samples, length, layers, top k); -1 where they are not known.
    None where no sample has any."""
    sampling_mask_ids: Array | None = None
    """int32: the ids that the tokens were drawn from, one after the other. None where no sample has any."""
    sampling_mask_offsets: Array | None = None
    """int64, (samples, length + 1): token t of sample i was drawn from ids[offsets[i, t]:offsets[i, t + 1]]."""


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """Samples end to end. Per-token arrays are (tokens,)."""

    token_ids: Array
    """int32."""
    loss_mask: Array
    """int8. A sample's first token is never trained on: nothing precedes it that it could be predicted from."""
    logprobs: Array
    """float64."""
    weight_versions: Array
    """int64; -1 where none is known."""
    temperatures: Array
    """float64; 1 on what was not sampled, NaN where none is known."""
    turn_ids: Array
    """int32; the index, in its rollout, of the turn that sampled the token, -1 for none."""
    position_ids: Array
    """int32; from 0 in each sample."""
    cu_seqlens: Array
    """int32, (samples + 1,): sample i has the tokens [cu_seqlens[i], cu_seqlens[i + 1])."""
    advantages: Array
    """float64, (tokens,): its sample's; NaN where none was computed."""
    rewards: Array
    """float64, (samples,)."""
    routed_experts: Array | None = None
    """int16, or int32 where a number needs it, (tokens, layers, top k); -1 where they are not known.
    None where no sample has any."""
    sampling_mask_ids: Array | None = None
    """int32: the ids that the tokens were drawn from, one after the other. None where no sample has any."""
    sampling_mask_offsets: Array | None = None
    """int64, (tokens + 1,): token i was drawn from ids[offsets[i]:offsets[i + 1]]."""

    def __repr__(self) -> str:
        return f"<Packed {len(self.rewards)} samples, {len(self.token_ids)} tokens>"


def to_torch(batch: Padded | Packed) -> dict[str, Any]:
    """The batch's arrays as tensors that share their memory. Needs torch."""
    import torch

    arrays = {name: getattr(batch, name) for name in batch.__struct_fields__}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def pad(samples: Sequence[TrainingSample], *, pad_id: int = 0, multiple_of: int = 1) -> Padded:
    """Rows of the longest sample's length, rounded up to `multiple_of`. Raises ValueError without samples."""
    if not samples:
        raise ValueError("there are no samples to pad")
    longest = max(len(sample.token_ids) for sample in samples)
    shape = (len(samples), -(-longest // multiple_of) * multiple_of)
    batch = Padded(
        token_ids=np.full(shape, pad_id, np.int32),
        attention_mask=np.zeros(shape, np.int8),
        loss_mask=np.zeros(shape, np.int8),
        logprobs=np.zeros(shape, np.float64),
        weight_versions=np.full(shape, -1, np.int64),
        temperatures=np.ones(shape, np.float64),
        turn_ids=np.full(shape, -1, np.int32),
        rewards=_rewards(samples),
        advantages=_advantages(samples),
    )
    found = [sample.to_numpy() for sample in samples]
    for row, arrays in enumerate(found):
        length = len(arrays["token_ids"])
        for name in arrays.keys() - FIELDS:
            getattr(batch, name)[row, :length] = arrays[name]
        batch.attention_mask[row, :length] = 1
    lengths = [shape[1]] * len(samples)
    experts, ids, offsets = experts_of(found, lengths), *mask_of(found, lengths)
    return msgspec.structs.replace(
        batch,
        routed_experts=None if experts is None else experts.reshape(*shape, *experts.shape[1:]),
        sampling_mask_ids=ids,
        sampling_mask_offsets=None if offsets is None else _rows(offsets, shape),
    )


def pack(samples: Iterable[TrainingSample], *, max_tokens: int) -> Iterator[Packed]:
    """Bins of `max_tokens` at most, filled by the longest sample that fits first.

    Raises ValueError, naming the sample, where one alone is longer.
    """
    longest_first = sorted(samples, key=lambda sample: -len(sample.token_ids))
    rooms = _Rooms(len(longest_first), max_tokens)
    bins: list[list[TrainingSample]] = []
    for sample in longest_first:
        length = len(sample.token_ids)
        if length > max_tokens:
            raise ValueError(f"{sample.rollout_id or 'a sample'} has {length} tokens, a bin {max_tokens}")
        at = rooms.take_first(length)
        if at == len(bins):
            bins.append([])
        bins[at].append(sample)
    return map(joined, bins)


class _Rooms:
    """The room that is left in each of many bins, as a tournament: the first bin with enough of it takes log n steps.

    `most[1]` is the most room in any bin, `most[i]` the most under i's two children, `most[size + b]` bin b's own.
    Bins that nothing was put into are full of room, so that the first of them follows those in use.
    """

    def __init__(self, count: int, room: int) -> None:
        self._size = 1 << max(0, count - 1).bit_length()
        self._most = [room] * (2 * self._size)

    def take_first(self, length: int) -> int:
        """Takes so much room in the first bin that has it; returns the bin."""
        most, at = self._most, 1
        while at < self._size:
            at *= 2
            if most[at] < length:
                at += 1
        found = at - self._size
        most[at] -= length
        while at > 1:
            at //= 2
            most[at] = max(most[2 * at], most[2 * at + 1])
        return found


def joined(samples: Sequence[TrainingSample]) -> Packed:
    """Samples end to end, in their order."""
    arrays = [sample.to_numpy() for sample in samples]
    lengths = [len(sample.token_ids) for sample in samples]

    def join(name: str, dtype: Any) -> Array:
        return np.concatenate([part[name] for part in arrays] or [np.empty(0)]).astype(dtype, copy=False)

    ids, offsets = mask_of(arrays, lengths)
    return Packed(
        token_ids=join("token_ids", np.int32),
        loss_mask=join("loss_mask", np.int8),
        logprobs=join("logprobs", np.float64),
        weight_versions=join("weight_versions", np.int64),
        temperatures=join("temperatures", np.float64),
        turn_ids=join("turn_ids", np.int32),
        position_ids=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths] or [np.empty(0, np.int32)]),
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32),
        advantages=np.repeat(_advantages(samples), lengths),
        rewards=_rewards(samples),
        routed_experts=experts_of(arrays, lengths),
        sampling_mask_ids=ids,
        sampling_mask_offsets=offsets,
    )


def _rows(offsets: Array, shape: tuple[int, int]) -> Array:
    """Offsets of rows end to end, row by row: the last of each is the first of the next."""
    rows, length = shape
    return np.stack([offsets[row * length : (row + 1) * length + 1] for row in range(rows)])


#: Of a sample's arrays, those that only samples of a run have which asked for them.
FIELDS = frozenset({"routed_experts", "sampling_mask_ids", "sampling_mask_offsets"})


def experts_of(arrays: Sequence[Mapping[str, Array]], lengths: Sequence[int]) -> Array | None:
    """The experts of samples in so many places each, end to end; None where none has any.

    Raises ValueError where they are not of one model.
    """
    having = [each["routed_experts"] for each in arrays if "routed_experts" in each]
    if not having:
        return None
    layers, top_k = having[0].shape[1:]
    joined = np.full((sum(lengths), layers, top_k), -1, np.result_type(*having))
    at = 0
    for each, length in zip(arrays, lengths, strict=True):
        if (experts := each.get("routed_experts")) is not None:
            if experts[0].size != layers * top_k:
                raise ValueError(f"samples have routed experts of shape {having[0].shape} and of {experts.shape}")
            joined[at : at + len(experts)] = experts.reshape(-1, layers, top_k)
        at += length
    return joined


def mask_of(arrays: Sequence[Mapping[str, Array]], lengths: Sequence[int]) -> tuple[Array | None, Array | None]:
    """The ids and the offsets of samples in so many places each, end to end; None where none has any."""
    if not any("sampling_mask_ids" in each for each in arrays):
        return None, None
    counts = np.zeros(sum(lengths), np.int64)
    ids = [np.empty(0, np.int32)]
    at = 0
    for each, length in zip(arrays, lengths, strict=True):
        if "sampling_mask_ids" in each:
            own = np.diff(each["sampling_mask_offsets"])
            counts[at : at + len(own)] = own
            ids.append(each["sampling_mask_ids"])
        at += length
    return np.concatenate(ids), np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _rewards(samples: Sequence[TrainingSample]) -> Array:
    return np.array([sample.reward for sample in samples], np.float64)


def _advantages(samples: Sequence[TrainingSample]) -> Array:
    return np.array([np.nan if sample.advantage is None else sample.advantage for sample in samples], np.float64)


forward_names("rollout.tokens.batch")
