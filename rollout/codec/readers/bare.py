"""Calls without a marker around them: JSON that is the whole answer, or a part of it that names an offered tool.

    llama   {"name": "add", "parameters": {"a": 1}}, also behind <|python_tag|>, several with `;` between, or in a
            list; and <|python_tag|>brave_search.call(query="x"), as Llama 3's built-in tools are called
    xlam    [{"name": "add", "arguments": {"a": 1}}, ...], and {"tool_calls": [...]} as its first models write

JSON that is no call is an answer in JSON, and so is what stands inside it. What starts as a call does and cannot be
read is malformed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

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
)

_TAG = "<|python_tag|>"
_BUILT_IN = ".call"

#: What a call begins with, or a list of calls, wherever it stands.
_CALL = re.compile(r'(?:\[\s*)?(?P<call>\{)\s*"(?:name|type)"\s*:')

#: The same where it is the first of an answer: then nothing else was meant.
_FIRST = re.compile(r'\s*(?:\[\s*)?\{\s*"(?:name|type|function|parameters|arguments)"\s*:')
_LIST = re.compile(r"\s*\[\s*\{")
_FIRST_OF_ARRAY = re.compile(r'\s*(?:\[\s*)?\{\s*"(?:name|type|function|parameters|arguments|id)"\s*:')

#: xLAM's first models put the array into an object.
_WRAPPED = re.compile(r'\s*\{\s*"tool_calls"\s*:\s*(?=\[)')
_WRAPPED_END = re.compile(r"\s*\}")
_BETWEEN = re.compile(r"\s*+[;,]?\s*+")

_OPENER = re.compile(r"[\[{]")

#: Places at which JSON around a call is looked for, in one answer.
_OPENERS_TRIED = 64


class Llama(Format):
    """Llama 3's calls."""

    name = "llama"
    openers: tuple[str, ...] = (_TAG,)
    signs: tuple[str | tuple[str, ...], ...] = (_TAG, "<|start_header_id|>")
    first = _FIRST
    """What a call without the tag begins with as the first of an answer."""
    in_list = False
    """Whether calls come in a list: then one that is the whole answer may name any tool. Else a list of objects that
    have names is mostly an answer, and calls must be of offered tools."""

    def is_form_of(self, written: str) -> bool:
        """See `Format`. A list is xLAM's form: Llama's models write one at times, its templates never."""
        return self.in_list or not _LIST.match(written)

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        at, around = 0, _Around(text, sampled)
        for start, tagged in self._starts(text, bare=bool(sampled.tools)):
            if start < at or (not tagged and around.has(start)):
                continue  # within a call that was read, or within an answer in JSON
            piece = self._tagged(text, start) if tagged else self._bare(text, start, sampled)
            if piece is None:
                continue
            if start > at:
                yield Piece("text", text[at:start])
            yield piece
            at = around.at = start + len(piece.raw)
        if at < len(text):
            yield Piece("text", text[at:])

    def _starts(self, text: str, *, bare: bool) -> Iterator[tuple[int, bool]]:
        """Where calls may begin, and whether behind the tag."""
        found = {match.start(): True for match in re.finditer(re.escape(_TAG), text)} if _TAG in self.openers else {}
        if bare:
            begun = list(_CALL.finditer(text))
            found |= {match.start(): False for match in begun}
            # Where the list cannot be read, a call in it can be.
            found |= {} if self.in_list else {match.start("call"): False for match in begun}
            found |= {after_space(text, 0): False} if self.first.match(text) else {}
        yield from sorted(found.items())

    def _tagged(self, text: str, start: int) -> Piece:
        """What begins at a tag. There a call is meant."""
        inside = after_space(text, start + len(_TAG))
        read_calls = self._calls if text.startswith(("{", "["), inside) else self._built_in
        try:
            calls, after = read_calls(text, inside)
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
        sure = first and (self.in_list or not text.startswith("[", start))
        if not sure and not {call.name for call in calls} <= set(declared_names(sampled.tools)):
            return None
        return Piece("call", text[start:after], tuple(calls))

    def _calls(self, text: str, at: int) -> tuple[Sequence[ToolCall], int]:
        """The calls from `at` on, one after the other, and where they end. Raises NoCall."""
        calls: list[ToolCall] = []
        while True:
            if text.startswith("[", at):
                listed, at = calls_in_array(text, at)
                calls += listed
            else:
                members, at = read_members(text, at)
                calls.append(call_of(members))
            between = _BETWEEN.match(text, at)
            following = between.end() if between else at
            if not _CALL.match(text, following):
                return calls, at
            at = following

    def _built_in(self, text: str, at: int) -> tuple[Sequence[ToolCall], int]:
        """A call of one of Llama's own tools, such as `brave_search.call(query="x")`. Raises NoCall."""
        name, arguments, end = read_call(text, at)
        if not name.endswith(_BUILT_IN):
            raise NoCall(MALFORMED)
        return [make_call(name.removesuffix(_BUILT_IN), arguments_text(arguments))], end


class Xlam(Llama):
    """xLAM's calls: an array that is the whole answer, or stands in it."""

    name = "xlam"
    openers = ()
    signs = ()
    first, in_list = _FIRST_OF_ARRAY, True

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        wrapped = _WRAPPED.match(text) if sampled.tools else None
        if wrapped is None or not self.first.match(text, wrapped.end()):
            yield from super().said(text, sampled)
            return
        try:
            calls, end = calls_in_array(text, wrapped.end())
            closed = _WRAPPED_END.match(text, end)
            if closed is None:
                raise NoCall(INVALID_JSON)
        except NoCall as error:
            yield Piece("broken", text, reason=str(error))
            return
        pieces = (
            Piece("fence", text[: wrapped.end()]),
            Piece("call", text[wrapped.end() : closed.end()], tuple(calls)),
            Piece("text", text[closed.end() :]),
        )
        yield from [piece for piece in pieces if piece.raw]


class _Around:
    """JSON that has calls' beginnings inside it, and is itself no call: an answer about calls."""

    def __init__(self, text: str, sampled: Sampled) -> None:
        self._text, self._names = text, set(declared_names(sampled.tools))
        self._tries = _OPENERS_TRIED
        self._end = 0
        """Where the last one ends."""
        self.at = 0
        """From where on more is looked for."""

    def has(self, start: int) -> bool:
        """Whether what begins at `start` stands in such JSON. Asked from left to right."""
        while self._end <= start and self._tries and (opener := _OPENER.search(self._text, self.at, start)) is not None:
            self._tries -= 1
            self.at = opener.end()
            try:
                value, end = read_value(self._text, opener.start())
            except NoCall:
                continue
            if end <= start:
                self.at = end
            elif not self._are_calls(value):
                self._end = self.at = end
        return start < self._end

    def _are_calls(self, value: Any) -> bool:
        """Whether a list names tools that were offered: calls in another format's array."""
        return isinstance(value, list) and all(
            isinstance(one, dict) and one.get("name") in self._names for one in value
        )


def _is_answer(text: str, at: int, sampled: Sampled) -> bool:
    """Whether JSON is about something else: no arguments, and no tool's name."""
    try:
        value, _ = read_value(text, at)
    except NoCall:
        return False
    names = set(declared_names(sampled.tools))
    each = value if isinstance(value, list) else [value]
    return not any(
        isinstance(one, dict) and (_is_named(one, names) or _is_named(one.get("function"), names)) for one in each
    )


def _is_named(value: Any, names: Collection[str]) -> bool:
    """Whether an object is a call's, be it one that cannot be read."""
    return isinstance(value, dict) and bool(
        value.keys() & {"arguments", "parameters"} or str(value.get("name")) in names
    )


LLAMA = Llama()
XLAM = Xlam()
