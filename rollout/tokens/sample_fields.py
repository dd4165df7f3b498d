"""A branch's routed experts and sampling masks: pieces of its nodes, put together as arrays when somebody wants them.

What nobody reported is marked, never made up: an expert of -1, a mask without an id.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rollout.token_fields import RoutedExperts, SamplingMask
from rollout.tokens.trajectory import Node

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SampleExperts:
    """The experts of a sample's tokens."""

    __slots__ = ("layers", "pieces", "tokens", "top_k")

    def __init__(self, tokens: int, pieces: Sequence[tuple[int, RoutedExperts]]) -> None:
        """`pieces` are rows, each with its first position. Raises ValueError where they are not of one model."""
        self.tokens, self.pieces = tokens, list(pieces)
        self.layers, self.top_k = pieces[0][1].layers, pieces[0][1].top_k
        """A server that does not tell its layers has one, with all of their experts in a row."""
        for _, piece in pieces:
            if piece.width != self.layers * self.top_k:
                raise ValueError(
                    f"routed experts of {self.layers} x {self.top_k} and of {piece.layers} x {piece.top_k} in a branch"
                )

    def __repr__(self) -> str:
        return f"<SampleExperts {self.known} of {self.tokens} tokens, {self.layers} layers, {self.top_k} each>"

    @property
    def known(self) -> int:
        """Tokens whose experts are known."""
        return sum(piece.rows for _, piece in self.pieces)

    def to_numpy(self) -> NDArray[Any]:
        """(tokens, layers, top k), int16, or int32 where a number needs it; -1 where they are not known. A new array.

        Raises UsageError where they lie in a run folder and are not there any more.
        """
        import numpy as np  # here: whoever only plays does not need it

        read = [(at, np.frombuffer(piece.data.data, piece.dtype)) for at, piece in self.pieces]
        wide = any(values.itemsize > 1 and values.size and values.max() > np.iinfo(np.int16).max for _, values in read)
        found = np.full((self.tokens, self.layers, self.top_k), -1, np.int32 if wide else np.int16)
        for at, values in read:
            rows = values.reshape(-1, self.layers, self.top_k)
            found[at : at + len(rows)] = rows
        return found

    def as_json(self) -> dict[str, Any]:
        """Type, shape and, base64, the bytes of the array."""
        array = self.to_numpy()
        return {"dtype": str(array.dtype), "shape": array.shape, "data": b64encode(array.tobytes()).decode()}


class SampleMask:
    """The ids that a sample's sampled tokens were drawn from."""

    __slots__ = ("pieces", "tokens")

    def __init__(self, tokens: int, pieces: Sequence[tuple[int, SamplingMask]]) -> None:
        """`pieces` are masks, each with the place of its first token."""
        self.tokens, self.pieces = tokens, list(pieces)

    def __repr__(self) -> str:
        return f"<SampleMask of {self.tokens} tokens in {len(self.pieces)} pieces>"

    def to_numpy(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The ids, int32, and the offsets, int64, one more than there are tokens. New arrays."""
        import numpy as np

        read = [(at, *piece.arrays()) for at, piece in self.pieces]
        counts = np.zeros(self.tokens, np.int64)
        for at, _, offsets in read:
            counts[at : at + len(offsets) - 1] = np.diff(np.frombuffer(offsets, np.int32))
        ids = np.concatenate([np.frombuffer(ids, np.int32) for _, ids, _ in read])
        return ids, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def as_json(self) -> dict[str, Any]:
        """The ids and the offsets, as lists."""
        ids, offsets = self.to_numpy()
        return {"ids": ids.tolist(), "offsets": offsets.tolist()}


def fields_of(path: Sequence[Node]) -> tuple[SampleExperts | None, SampleMask | None]:
    """What the nodes of a branch, from its root on, have of either; None where none has any."""
    experts, masks, at = list[tuple[int, RoutedExperts]](), list[tuple[int, SamplingMask]](), 0
    for node in path:
        end = at + node.length
        if (rows := node.routed_experts) is not None and rows.rows:
            # A node has the rows of the positions before its ids: the last is that of the last id but one.
            experts.append((end - 1 - rows.rows, rows))
        if node.sampling_mask is not None:
            masks.append((at, node.sampling_mask))
        at = end
    return SampleExperts(at, experts) if experts else None, SampleMask(at, masks) if masks else None
