"""Training samples -> arrays of one shape: padded rows, or sequences packed end to end with their boundaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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

    def __repr__(self) -> str:
        return f"<Packed {len(self.rewards)} samples, {len(self.token_ids)} tokens>"


def to_torch(batch: Padded | Packed) -> dict[str, Any]:
    """The batch's arrays as tensors that share their memory. Needs torch."""
    import torch

    return {name: torch.from_numpy(getattr(batch, name)) for name in batch.__struct_fields__}


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
    for row, sample in enumerate(samples):
        arrays, length = sample.to_numpy(), len(sample.token_ids)
        for name, values in arrays.items():
            getattr(batch, name)[row, :length] = values
        batch.attention_mask[row, :length] = 1
    return batch


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
    )


def _rewards(samples: Sequence[TrainingSample]) -> Array:
    return np.array([sample.reward for sample in samples], np.float64)


def _advantages(samples: Sequence[TrainingSample]) -> Array:
    return np.array([np.nan if sample.advantage is None else sample.advantage for sample in samples], np.float64)


forward_names("rollout.tokens.batch")
