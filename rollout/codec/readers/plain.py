"""Answers without calls: what is read of a model that no reader fits."""

from __future__ import annotations

from collections.abc import Iterable

from rollout.codec.readers.base import Format
from rollout.codec.readers.pieces import Piece, Sampled


class Plain(Format):
    """Reasoning and text."""

    name = "none"

    def said(self, text: str, sampled: Sampled) -> Iterable[Piece]:
        """See `Format`."""
        return (Piece("text", text),) if text else ()


PLAIN = Plain()
