"""What a dialect is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from rollout.dialects.memory import Memory
from rollout.dialects.types import Call, DialectError, Said


class Dialect(Protocol):
    """One wire format. Stateless: what is remembered is in the session's Memory."""

    name: str
    """chat, responses or anthropic."""

    def read(self, body: bytes, memory: Memory) -> Call:
        """What a request asks for. Raises DialectError, naming the field and what is wrong with it."""

    def body(self, said: Said, call: Call, memory: Memory) -> bytes:
        """The answer as one JSON object. What the model said is remembered, to be known when it comes back."""

    def events(self, said: Said, call: Call, memory: Memory) -> Iterator[bytes]:
        """The answer as a stream, one whole frame at a time; the last one ends the turn for the client.

        What the model said is remembered before the first.
        """

    def error(self, error: DialectError) -> bytes:
        """The body of an answer with `error.status`."""

    def error_event(self, error: DialectError) -> bytes:
        """The same as the last frames of a stream whose status was sent already."""
