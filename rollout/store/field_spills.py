"""Routed experts and sampling masks of samples -> arrays of a safetensors file, which has them where any sample has.

routed_experts           int16, (tokens, layers, top k); -1 where they are not known
sampling_mask_ids        int32, end to end
sampling_mask_offsets    int64, (tokens + 1,): token i was drawn from ids[offsets[i]:offsets[i + 1]]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

import numpy as np

from rollout.tokens.samples import TrainingSample

#: Bytes that are written at once where many tokens have no experts.
_CHUNK = 1 << 20


class Spilled:
    """An array that lies in a file, with what a safetensors header says of it."""

    def __init__(self, file: IO[bytes], kind: str, code: str, shape: list[int]) -> None:
        self.file, self.kind, self.code, self.shape = file, kind, code, shape

    def __repr__(self) -> str:
        return f"<Spilled {self.code} {self.shape}>"


class FieldSpills:
    """Takes samples as they come. One of before the first that has a field has it too: unknown."""

    def __init__(self, spill: Callable[[], IO[bytes]]) -> None:
        self._spill = spill
        self._experts: IO[bytes] | None = None
        self._shape = (0, 0)
        self._mask: tuple[IO[bytes], IO[bytes]] | None = None
        self._ids = 0
        """Ids of masks so far."""
        self._tokens = 0

    def __repr__(self) -> str:
        return f"<FieldSpills of {self._tokens} tokens>"

    def add(self, sample: TrainingSample) -> None:
        """Raises ValueError where its experts are not of the others' model, or too many for int16."""
        self._add_experts(sample)
        self._add_mask(sample)
        self._tokens += len(sample.token_ids)

    def arrays(self) -> dict[str, Spilled]:
        """What there is, by name."""
        found: dict[str, Spilled] = {}
        if self._experts is not None:
            found["routed_experts"] = Spilled(self._experts, "<i2", "I16", [self._tokens, *self._shape])
        if self._mask is not None:
            ids, offsets = self._mask
            found["sampling_mask_ids"] = Spilled(ids, "<i4", "I32", [self._ids])
            found["sampling_mask_offsets"] = Spilled(offsets, "<i8", "I64", [self._tokens + 1])
        return found

    def _add_experts(self, sample: TrainingSample) -> None:
        experts = sample.routed_experts
        if experts is None:
            if self._experts is not None:
                self._fill(self._experts, len(sample.token_ids))
            return
        if self._experts is None:
            self._experts, self._shape = self._spill(), (experts.layers, experts.top_k)
            self._fill(self._experts, self._tokens)
        array = experts.to_numpy()
        if array[0].size != self._shape[0] * self._shape[1]:
            raise ValueError(f"routed experts of {self._shape[0]} x {self._shape[1]} and of {array.shape[1:]}")
        if array.dtype != np.int16:
            raise ValueError("an expert's number is beyond int16: take jsonl")
        self._experts.write(np.ascontiguousarray(array, "<i2").tobytes())

    def _fill(self, file: IO[bytes], tokens: int) -> None:
        left = 2 * tokens * self._shape[0] * self._shape[1]
        while left:
            file.write(b"\xff" * min(left, _CHUNK))
            left -= min(left, _CHUNK)

    def _add_mask(self, sample: TrainingSample) -> None:
        mask = sample.sampling_mask
        if mask is None:
            if self._mask is not None:
                self._mask[1].write(np.full(len(sample.token_ids), self._ids, "<i8").tobytes())
            return
        if self._mask is None:
            self._mask = self._spill(), self._spill()
            self._mask[1].write(np.zeros(self._tokens + 1, "<i8").tobytes())
        ids, offsets = mask.to_numpy()
        self._mask[0].write(np.ascontiguousarray(ids, "<i4").tobytes())
        self._mask[1].write((offsets[1:] + self._ids).astype("<i8").tobytes())
        self._ids += len(ids)
