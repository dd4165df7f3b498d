"""Server-sent events: the frames of a stream, each made whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

#: A comment, which clients ignore: it keeps a connection open while the model thinks.
KEEPALIVE = b": keepalive\n\n"

#: Ends a stream of chat completions.
DONE = b"data: [DONE]\n\n"

MEDIA_TYPE = "text/event-stream"

#: Characters of text in one frame at most: some clients read lines of 64 kB, and no longer ones.
_PIECE = 8_192


def frame(data: Any, event: str | None = None) -> bytes:
    """One event. JSON has no newlines, so its data is one line."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


def pieces(text: str) -> Iterator[str]:
    """A text in pieces for one frame each; nothing of an empty one."""
    return (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
