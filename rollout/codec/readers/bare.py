"""Calls without a marker around them: JSON that is the whole answer, or a part of it that names an offered tool.

    llama   {"name": "add", "parameters": {"a": 1}}, also behind <|python_tag|>, several with `;` between; and
            <|python_tag|>brave_search.call(query="x"), as Llama 3's built-in tools are called
    xlam    [{"name": "add", "arguments": {"a": 1}}, ...], and {"tool_calls": [...]} as its first models write

JSON that is no call is an answer in JSON. What starts as a call does and cannot be read is malformed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rollout.chat.messages import ToolCall
from rollout.codec.readers.base import Format
from rollout.codec.readers.blocks import calls_in_array
from rollout.codec.readers.literals import after_space, read_call
from rollout.codec.readers.pieces import Piece, Sampled
from rollout.codec.readers.values import (
    INVALID_JSON,
    MALFORMED,
    NoCall,
    arguments_text,
    call_of,
    declared_names,
    make_call,
    read_members,
    read_value,
    skip_space,
)

_TAG = "<|python_tag|>"
_BUILT_IN = ".call"

#: What a call begins with, wherever it stands.
_CALL = re.compile(r'\{\s*"(?:name|type)"\s*:')

#: The same where it is the first of an answer: then nothing else was meant.
_FIRST = re.compile(r'\s*\{\s*"(?:name|type|function|parameters|arguments)"\s*:')
_FIRST_OF_ARRAY = re.compile(r'\s*\[\s*\{\s*"(?:name|type|function|parameters|arguments|id)"\s*:')

#: xLAM's first models put the array into an object.
_WRAPPED = re.compile(r'\s*\{\s*"tool_calls"\s*:\s*(?=\[)')
_WRAPPED_END = re.compile(r"\s*\}")
_BETWEEN = re.compile(r"\s*;?\s*")


class Llama(Format):
    """Llama 3's calls."""

    name = "llama"
    openers: tuple[str, ...] = (_TAG,)
    signs: tuple[str | tuple[str, ...], ...] = (_TAG, "<|start_header_id|>")

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        at = 0
        for start, tagged in self._starts(text, bare=bool(sampled.tools)):
            if start < at:
                continue  # within a call that was read
            piece = self._tagged(text, start) if tagged else self._bare(text, start, sampled)
            if piece is None:
                continue
            if start > at:
                yield Piece("text", text[at:start])
            yield piece
            at = start + len(piece.raw)
        if at < len(text):
            yield Piece("text", text[at:])

    def _starts(self, text: str, *, bare: bool) -> Iterator[tuple[int, bool]]:
        """Where calls may begin, and whether behind the tag."""
        found = {match.start(): True for match in re.finditer(re.escape(_TAG), text)}
        if bare:
            found |= {match.start(): False for match in _CALL.finditer(text)}
            found |= {after_space(text, 0): False} if _FIRST.match(text) else {}
        yield from sorted(found.items())

    def _tagged(self, text: str, start: int) -> Piece:
        """What begins at a tag. There a call is meant."""
        inside = after_space(text, start + len(_TAG))
        try:
            calls, after = self._calls(text, inside) if text.startswith("{", inside) else self._built_in(text, inside)
        except NoCall as error:
            following = text.find(_TAG, inside)
            return Piece("broken", text[start : following if following >= 0 else len(text)], reason=str(error))
        return Piece("call", text[start:after], tuple(calls))

    def _bare(self, text: str, start: int, sampled: Sampled) -> Piece | None:
        """What begins with JSON; None where it is no call."""
        first = not text[:start].strip()
        if first and _is_answer(text, start, sampled):
            return None
        try:
            calls, after = self._calls(text, start)
        except NoCall as error:
            return Piece("broken", text[start:], reason=str(error)) if first else None
        # In the middle of an answer only a tool that there is can be meant.
        if not first and not {call.name for call in calls} <= set(declared_names(sampled.tools)):
            return None
        return Piece("call", text[start:after], tuple(calls))

    def _calls(self, text: str, at: int) -> tuple[Sequence[ToolCall], int]:
        """The calls from `at` on, one after the other, and where they end. Raises NoCall."""
        members, at = read_members(text, at)
        calls = [call_of(members)]
        while True:
            between = _BETWEEN.match(text, at)
            following = between.end() if between else at
            if not _CALL.match(text, following):
                return calls, at
            members, at = read_members(text, following)
            calls.append(call_of(members))

    def _built_in(self, text: str, at: int) -> tuple[Sequence[ToolCall], int]:
        """A call of one of Llama's own tools, such as `brave_search.call(query="x")`. Raises NoCall."""
        name, arguments, end = read_call(text, at)
        if not name.endswith(_BUILT_IN):
            raise NoCall(MALFORMED)
        return [make_call(name.removesuffix(_BUILT_IN), arguments_text(arguments))], end


class Xlam(Format):
    """xLAM's calls: an array that is the whole answer."""

    name = "xlam"
    signs = ()

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        wrapped = _WRAPPED.match(text)
        start = wrapped.end() if wrapped is not None else skip_space(text, 0)
        listed = _FIRST_OF_ARRAY.match(text, start)
        if not sampled.tools or not listed or (wrapped is None and _is_answer(text, start, sampled)):
            yield from [Piece("text", text)] if text else []
            return
        try:
            calls, end = calls_in_array(text, start)
            closed = _WRAPPED_END.match(text, end) if wrapped is not None else None
            if wrapped is not None and closed is None:
                raise NoCall(INVALID_JSON)
        except NoCall as error:
            yield Piece("broken", text, reason=str(error))
            return
        after = closed.end() if closed is not None else end
        pieces = (Piece("fence", text[:start]), Piece("call", text[start:after], tuple(calls)))
        yield from [piece for piece in (*pieces, Piece("text", text[after:])) if piece.raw]


def _is_answer(text: str, at: int, sampled: Sampled) -> bool:
    """Whether JSON is about something else: no arguments, and no tool's name."""
    try:
        value, _ = read_value(text, at)
    except NoCall:
        return False
    names = set(declared_names(sampled.tools))
    each = value if isinstance(value, list) else [value]
    return not any(
        isinstance(one, dict) and (one.keys() & {"arguments", "parameters"} or str(one.get("name")) in names)
        for one in each
    )


LLAMA = Llama()
XLAM = Xlam()
