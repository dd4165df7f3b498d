"""What a server can report of each token beside its id and its logprob, for trainers that want it back.

Routed experts: of a mixture of experts, which experts each layer sent a token to. A trainer that replays them computes
the gradient through the same experts that the token was sampled with. A server reports a row for each position: after a
prompt of P tokens and C sampled ones there are P + C - 1, since nobody has computed the last token yet. The next turn
of a conversation asks for those from there on.

Sampling masks: which ids were left after top-k, top-p and min-p, for each sampled token. A trainer that renormalizes
over the same ids has the probability that the token was drawn with.

Both are large beside ids, so they are bytes here, cut and joined as bytes, and a run folder keeps them in a file of
their own: see `rollout.store.apart`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from rollout.errors import UsageError

#: An expert's number, in numpy's words, and in those of Python's arrays.
ExpertType = Literal["uint8", "uint16", "int32"]
_TYPECODES: dict[ExpertType, str] = {"uint8": "B", "uint16": "H", "int32": "i"}

#: Bytes of an id, and of an offset.
_INT32 = 4


class Blob:
    """Bytes that are in memory, or lie in a file until they are wanted. Never changed once made."""

    __slots__ = ("_data", "_place")

    def __init__(self, data: bytes = b"", place: tuple[Path | None, int, int] | None = None) -> None:
        """`place` is where they lie instead: a file, None where nobody said which, the first byte, and how many."""
        self._data, self._place = data, place

    def __len__(self) -> int:
        return len(self._data) if self._place is None else self._place[2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"<Blob of {len(self)} bytes{'' if self._place is None else f' in {self._place[0]}'}>"

    @property
    def data(self) -> bytes:
        """The bytes; those in a file are read anew each time. Raises UsageError where they are not there any more."""
        if self._place is None:
            return self._data
        path, begins, size = self._place
        if path is None:
            raise UsageError("a rollout's routed experts or sampling masks lie in its run folder: read it from there")
        try:
            with path.open("rb") as file:
                file.seek(begins)
                data = file.read(size)
        except OSError as error:
            raise UsageError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
        if len(data) != size:
            raise UsageError(f"{str(path)!r} has no {size} bytes at {begins}: it was cut, or is another run's")
        return data


class RoutedExperts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The experts of a row of positions."""

    data: Blob
    """Numbers of experts as `dtype` says, little-endian: position by position, layer by layer, `top_k` in a row."""
    layers: int
    top_k: int
    dtype: ExpertType = "uint8"

    def __repr__(self) -> str:
        return f"<RoutedExperts {self.rows} positions, {self.layers} layers, {self.top_k} each>"

    @property
    def width(self) -> int:
        """Numbers of one position."""
        return self.layers * self.top_k

    @property
    def rows(self) -> int:
        """Positions."""
        return len(self.data) // self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.width * array(_TYPECODES[self.dtype]).itemsize

    def part(self, start: int, end: int) -> RoutedExperts | None:
        """The positions [start, end) of these; None where there is none."""
        if start >= end:
            return None
        if start == 0 and end == self.rows:
            return self
        size = self._row_bytes
        return msgspec.structs.replace(self, data=Blob(self.data.data[start * size : end * size]))

    def joined(self, then: RoutedExperts | None) -> RoutedExperts:
        """These positions and then those. Raises ValueError where they are not of one model."""
        if then is None:
            return self
        if self.width != then.width:
            raise ValueError(f"{self.layers} x {self.top_k} experts, and then {then.layers} x {then.top_k}")
        wider = max(self.dtype, then.dtype, key=lambda dtype: array(_TYPECODES[dtype]).itemsize)
        data = Blob(self._as(wider) + then._as(wider))
        return msgspec.structs.replace(self, data=data, dtype=wider)

    def _as(self, dtype: ExpertType) -> bytes:
        data = self.data.data
        return data if dtype == self.dtype else array(_TYPECODES[dtype], array(_TYPECODES[self.dtype], data)).tobytes()


class SamplingMask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The ids that each of a row of sampled tokens was drawn from. A token without any is one that nobody reported."""

    ids: Blob
    """int32, token after token."""
    offsets: Blob
    """int32, one more than there are tokens: token i has ids[offsets[i]:offsets[i + 1]]."""

    @classmethod
    def of(cls, kept: Iterable[Sequence[int]]) -> SamplingMask:
        """From lists of ids, one a token."""
        ids, offsets = array("i"), array("i", [0])
        for one in kept:
            ids.extend(one)
            offsets.append(len(ids))
        return cls(ids=Blob(ids.tobytes()), offsets=Blob(offsets.tobytes()))

    def __repr__(self) -> str:
        return f"<SamplingMask {self.tokens} tokens, {len(self.ids) // _INT32} ids>"

    @property
    def tokens(self) -> int:
        return len(self.offsets) // _INT32 - 1

    def arrays(self) -> tuple[array[int], array[int]]:
        """The ids and the offsets."""
        return array("i", self.ids.data), array("i", self.offsets.data)

    def part(self, start: int, end: int) -> SamplingMask | None:
        """The tokens [start, end) of these; None where there is none."""
        if start >= end:
            return None
        if start == 0 and end == self.tokens:
            return self
        ids, offsets = self.arrays()
        first = offsets[start]
        own = array("i", [offset - first for offset in offsets[start : end + 1]])
        return SamplingMask(ids=Blob(ids[first : offsets[end]].tobytes()), offsets=Blob(own.tobytes()))


def joined_masks(parts: Sequence[tuple[SamplingMask | None, int]]) -> SamplingMask | None:
    """One mask of parts, each with its tokens' number: those of a part without one are not known."""
    if all(mask is None for mask, _ in parts):
        return None
    ids, offsets = array("i"), array("i", [0])
    for mask, tokens in parts:
        at = len(ids)
        if mask is None:
            offsets.extend([at] * tokens)
            continue
        own, starts = mask.arrays()
        ids.extend(own)
        offsets.extend(at + start for start in starts[1:])
    return SamplingMask(ids=Blob(ids.tobytes()), offsets=Blob(offsets.tobytes()))
