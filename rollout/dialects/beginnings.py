"""Conversations that were seen: one that goes on begins with the same bytes, and what they came to is known.

Turn t+1 brings the items of turn t, byte for byte but for the last few (a cache mark moved), and a few more. So what
most of it comes to is one comparison of digests, and only the rest is cut into items:

    [ {system...},{user...},{assistant...},{user...} , {assistant...},{user...,"cache_control"} ]
      `------------- known by one digest ---------'     items, each known by its own digest or decoded
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.dialects.answers import Answer
from rollout.dialects.types import Call

#: Conversations of one session whose beginnings are kept: a main loop's and its sub-agents'.
_CONVERSATIONS = 16

#: Items at the end that may come again with other bytes.
_LOOSE = 4

#: Bytes at both ends that are compared before a digest is made.
_EDGE = 256

_SPACE = b" \t\n\r,"


class Beginning(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The first items of a request's list, and what reading them came to."""

    kind: bytes
    behind: int
    """The mark of what stood before the list."""
    length: int
    """Bytes, from the list's bracket to the end of its last item."""
    edges: tuple[bytes, bytes]
    digest: bytes
    count: int
    """Items."""
    messages: Sequence[Message]
    """With what stood before the list."""
    mark: int
    restored: int
    previous: Answer | None


class Rest(msgspec.Struct, kw_only=True):
    """A request's list: what is known of its beginning, and where what is left of it lies."""

    text: memoryview
    """The whole list."""
    kind: bytes
    behind: int
    begun: Beginning | None = None
    hashed: Any = None
    """The digest's state behind the beginning."""

    @property
    def count(self) -> int:
        """Items that are known."""
        return self.begun.count if self.begun is not None else 0

    @property
    def json(self) -> memoryview | bytes:
        """The items that are left, as a list of their own."""
        if self.begun is None:
            return self.text
        return b"[" + bytes(self.text[self.begun.length :]).lstrip(_SPACE)


class Beginnings:
    """Those of one session, the latest first."""

    def __init__(self) -> None:
        self._known: list[Beginning] = []

    def __repr__(self) -> str:
        return f"<Beginnings of {len(self._known)} conversations>"

    def find(self, raw: msgspec.Raw, kind: bytes, call: Call) -> Rest:
        """Puts a list's known beginning into a call; what is left is to be read."""
        rest = Rest(text=memoryview(raw), kind=kind, behind=call.mark)
        for begun in self._known:
            if begun.kind != kind or begun.behind != call.mark or begun.length >= rest.text.nbytes:
                continue
            if _edges(rest.text, begun.length) != begun.edges:
                continue
            hashed = hashlib.sha256(rest.text[: begun.length])
            if hashed.digest() == begun.digest:
                rest.begun, rest.hashed = begun, hashed
                call.messages, call.mark, call.previous = list(begun.messages), begun.mark, begun.previous
                call.restored += begun.restored
                break
        return rest

    def keep(self, rest: Rest, raws: Sequence[msgspec.Raw], call: Call) -> None:
        """A list's beginning was read: what was known of it, and these further items."""
        start = rest.begun.length if rest.begun is not None else 1
        length = start
        for raw in raws:
            while rest.text[length] in _SPACE:
                length += 1
            length += memoryview(raw).nbytes
        hashed = rest.hashed if rest.hashed is not None else hashlib.sha256(rest.text[:1])
        hashed.update(rest.text[start:length])
        begun = Beginning(
            kind=rest.kind,
            behind=rest.behind,
            length=length,
            edges=_edges(rest.text, length),
            digest=hashed.digest(),
            count=rest.count + len(raws),
            messages=tuple(call.messages),
            mark=call.mark,
            restored=call.restored,
            previous=call.previous,
        )
        others = [other for other in self._known if other is not rest.begun]
        self._known = [begun, *others[: _CONVERSATIONS - 1]]


def settled_items(said: Sequence[bool]) -> int:
    """How many of these items will come again as they are, and end at a message that is not the model's."""
    count = len(said) - _LOOSE
    while count > 0 and said[count - 1]:
        count -= 1
    return max(0, count)


def _edges(text: memoryview, length: int) -> tuple[bytes, bytes]:
    return bytes(text[:_EDGE]), bytes(text[max(0, length - _EDGE) : length])
