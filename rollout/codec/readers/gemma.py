"""Gemma's calls, in a notation of its own.

    gemma4         <|tool_call>call:add{a:1,s:<|"|>x<|"|>,o:{<|"|>k<|"|>:[true,null]}}<tool_call|>
    functiongemma  <start_function_call>call:add{a:1,s:<escape>x<escape>}<end_function_call>

Gemma 4 reasons in a channel: <|channel>thought\\n ... <channel|>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rollout.chat.messages import ToolCall
from rollout.codec.readers.blocks import Block, Blocks
from rollout.codec.readers.literals import CONSTANTS, after_space, next_item
from rollout.codec.readers.pieces import Sampled
from rollout.codec.readers.reasoning import Tags
from rollout.codec.readers.values import INVALID_JSON, MALFORMED, NoCall, arguments_text, make_call, read_spelled
from rollout.door import MOST_DEEP

_HEAD = re.compile(r"\s*+call:(?P<name>[^{}\s<]++)\s*+(?=\{)")
_KEY = re.compile(r"[^\s,:{}\[\]][^,:{}\[\]]*")
_SCALAR = re.compile(r"[^,{}\[\]:]+")


class Gemma(Blocks):
    """Gemma's calls. `quote` stands on both sides of a text."""

    def __init__(self, name: str, block: Block, quote: str, tags: Sequence[Tags] = ()) -> None:
        super().__init__(name, block, tags=tags)
        self.quote = quote

    def calls_in(self, text: str, at: int, block: Block, sampled: Sampled) -> tuple[Sequence[ToolCall], int]:
        """See `Blocks`."""
        calls: list[ToolCall] = []
        head = _HEAD.match(text, at)
        if head is None:
            raise NoCall(MALFORMED)
        value, end = self._value(text, head.end(), 0)
        calls.append(make_call(head["name"], arguments_text(value)))
        return calls, after_space(text, end)

    def _value(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        if depth > MOST_DEEP:
            raise NoCall(INVALID_JSON)
        if text.startswith(self.quote, at):
            return self._text(text, at)
        if text.startswith("{", at):
            return self._object(text, at + 1, depth)
        if text.startswith("[", at):
            return self._array(text, at + 1, depth)
        scalar = _SCALAR.match(text, at)
        word = scalar[0].strip() if scalar else ""
        if scalar is None or not word:
            raise NoCall(INVALID_JSON)
        if word in CONSTANTS:
            return CONSTANTS[word], scalar.end()
        value, end = read_spelled(word, 0)
        if end != len(word):
            raise NoCall(INVALID_JSON)
        return value, scalar.end()

    def _text(self, text: str, at: int) -> tuple[str, int]:
        start = at + len(self.quote)
        end = text.find(self.quote, start)
        if end < 0:
            raise NoCall(INVALID_JSON)
        return text[start:end], end + len(self.quote)

    def _object(self, text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        at = after_space(text, at)
        while not text.startswith("}", at):
            if text.startswith(self.quote, at):
                key, at = self._text(text, at)
            else:
                bare = _KEY.match(text, at)
                if bare is None:
                    raise NoCall(INVALID_JSON)
                key, at = bare[0].rstrip(), bare.end()
            if key in values:
                raise NoCall(MALFORMED)
            if not text.startswith(":", at):
                raise NoCall(INVALID_JSON)
            values[key], at = self._value(text, after_space(text, at + 1), depth + 1)
            at = next_item(text, at, "}")
        return values, at + 1

    def _array(self, text: str, at: int, depth: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        at = after_space(text, at)
        while not text.startswith("]", at):
            value, at = self._value(text, at, depth + 1)
            values.append(value)
            at = next_item(text, at, "]")
        return values, at + 1


GEMMA4 = Gemma(
    "gemma4", Block("<|tool_call>", "<tool_call|>"), '<|"|>', tags=(Tags("<|channel>thought", "<channel|>"),)
)
FUNCTIONGEMMA = Gemma("functiongemma", Block("<start_function_call>", "<end_function_call>"), "<escape>")
