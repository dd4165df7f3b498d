"""Large answers, read beside the event loop and in pieces.

Routed experts of 8,000 tokens and 48 layers are 16 MiB of base64 in one JSON text. Read in one go they hold the
interpreter for a tenth of a second, in whatever thread: a call into C gives it to nobody. So the text is cut out of the
answer before that is read as JSON, and is decoded in a thread, a piece at a time, between which the loop goes on.
"""

from __future__ import annotations

import binascii
from typing import Any

import msgspec

from transports.http.client import Answer, decode

#: Answers of more bytes are read in a thread; smaller ones take a millisecond or two, all told.
LARGE = 2**18

#: Bytes of a text that are decoded at once: about a millisecond. A multiple of 4, which base64 is written in.
_PIECE = 2**19

#: What stands where a text was cut out.
_APART = b'"read apart"'

_TEXT = msgspec.json.Decoder(bytes)


def decode_apart(
    decoder: msgspec.json.Decoder[Any], answer: Answer, path: str, name: str
) -> tuple[Any, msgspec.Raw | None]:
    """Reads an answer, but for the text of this name, where it is large: see `put_back`. Raises MalformedReply."""
    body = answer.body
    place = _text_of(body, f'"{name}"'.encode()) if len(body) > LARGE else None
    if place is None:
        return decode(decoder, answer, path), None
    begins, ends = place
    rest = b"".join((body[:begins], _APART, body[ends:]))
    value = decode(decoder, msgspec.structs.replace(answer, body=rest), path)
    return value, msgspec.Raw(memoryview(body)[begins:ends])


def put_back(field: msgspec.Raw, apart: msgspec.Raw | None) -> msgspec.Raw:
    """A field as it came: the text that was read apart, where it was cut out of this one."""
    return apart if apart is not None and memoryview(field) == _APART else field


def _text_of(body: bytes, key: bytes) -> tuple[int, int] | None:
    """Where the one text under a key stands, quotes included. A key within a text has backslashes, so it is none."""
    at = body.find(key)
    if at < 0 or body.find(key, at + len(key)) >= 0:
        return None
    begins = at + len(key)
    while body[begins : begins + 1] in (b" ", b":"):
        begins += 1
    if body[begins : begins + 1] != b'"':
        return None
    ends = body.find(b'"', begins + 1) + 1
    return (begins, ends) if ends and body[ends - 2] != ord("\\") else None


def bytes_of(text: msgspec.Raw) -> bytes:
    """The bytes that a JSON text holds in base64. Raises ValueError."""
    view = memoryview(text)
    if len(view) <= LARGE:
        return _TEXT.decode(text)
    if view[0] != ord('"') or view[-1] != ord('"') or len(view) % 4 != 2:
        raise ValueError("it is no base64")
    view = view[1:-1]
    pieces = [binascii.a2b_base64(view[at : at + _PIECE], strict_mode=True) for at in range(0, len(view), _PIECE)]
    if any(len(piece) != _PIECE // 4 * 3 for piece in pieces[:-1]):  # it is filled up in the middle
        raise ValueError("it is no base64")
    return b"".join(pieces)


def lists_of(lists: msgspec.Raw, decoder: msgspec.json.Decoder[list[list[int]]]) -> list[list[int]]:
    """JSON's lists of numbers. Raises ValueError."""
    view = bytes(memoryview(lists))
    if len(view) <= LARGE or not view.startswith(b"["):
        return decoder.decode(view)
    found: list[list[int]] = []
    begins = view.find(b"[") + 1
    while (ends := view.find(b"]", begins + _PIECE)) >= 0 and view[ends + 1 :].lstrip()[:1] == b",":
        found += decoder.decode(b"[%b]" % view[begins : ends + 1])
        begins = view.find(b",", ends) + 1
    return found + decoder.decode(b"[%b" % view[begins:])
