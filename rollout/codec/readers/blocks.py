"""Calls between tags, in JSON. Formats differ in the tags, and in whether a block holds one call or several.

hermes       <tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>       Qwen2.5, Qwen3, Hermes, Granite 4
granite      <|tool_call|>[{"name": "add", "arguments": {"a": 1}}]                   Granite 3; from 3.1 on <tool_call>
phi          <|tool_call|>[...]<|/tool_call|>, and functools[...]                    Phi-4-mini
nemotron     <TOOLCALL>[...]</TOOLCALL>                                              Nemotron Nano v2, Llama-Nemotron
minimax-m1   <tool_calls>\\n{...}\\n{...}\\n</tool_calls>
hunyuan      <tool_calls>[...]</tool_calls>                                          Hunyuan-A13B, Jamba
cohere       <|START_ACTION|>[{"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}}]<|END_ACTION|>
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from rollout.chat.messages import ToolCall
from rollout.codec.readers.base import Format
from rollout.codec.readers.pieces import Kind, Piece, Sampled
from rollout.codec.readers.reasoning import THINK, Tags
from rollout.codec.readers.values import (
    INVALID_JSON,
    MALFORMED,
    PLAIN_KEYS,
    UNCLOSED,
    Keys,
    NoCall,
    call_of,
    read_members,
    skip_space,
)

Layout = Literal["one", "array", "lines"]


class Block(msgspec.Struct, frozen=True):
    """What stands around calls."""

    open: str
    close: str = ""
    """"" where a block ends with its JSON."""
    may_be_open: bool = False
    """Whether a block may end with its JSON, too."""


class Blocks(Format):
    """Calls between tags: `calls_in` reads what stands in one."""

    def __init__(
        self,
        name: str,
        *blocks: Block,
        gap: int = 1,
        tags: Sequence[Tags] = (THINK,),
        signs: Sequence[str | tuple[str, ...]] = (),
        fences: Sequence[str] = (),
    ) -> None:
        """`fences` are tags around all the blocks of a turn."""
        self.name = name
        self.fences = tuple(fences)
        self.blocks = blocks
        self._by_opener = {block.open: block for block in blocks}
        self._opener = re.compile("|".join(map(re.escape, self._by_opener)))
        self.openers = (*self.fences[:1], *self._by_opener)
        self.signs = tuple(signs) or self.openers
        self.gap = gap
        self.tags = tuple(tags)

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        at, attempts = 0, 0
        while (found := self._next(text, at)) is not None:
            start, block = found
            if start > at:
                yield from split_at(text[at:start], self.fences, "fence")
            piece = self._piece(text, start, block, sampled)
            yield piece
            at, attempts = start + len(piece.raw), attempts + 1
        rest = text[at:]
        fenced = min((place for fence in self.fences if (place := rest.find(fence)) >= 0), default=-1)
        if fenced >= 0 and not attempts:  # calls were announced, and none is there
            yield Piece("text", rest[:fenced])
            yield Piece("broken", rest[fenced:], reason=MALFORMED)
        else:
            yield from split_at(rest, self.fences, "fence")

    def calls_in(self, text: str, at: int, block: Block, sampled: Sampled) -> tuple[Sequence[ToolCall], int]:
        """The calls of the block that begins at `at`, and where they end. Raises NoCall."""
        raise NotImplementedError

    def _next(self, text: str, at: int) -> tuple[int, Block] | None:
        """Where the next block begins, and which it is."""
        found = self._opener.search(text, at)
        return (found.start(), self._by_opener[found[0]]) if found is not None else None

    def _piece(self, text: str, start: int, block: Block, sampled: Sampled) -> Piece:
        """The block that begins at `start`."""
        inside = start + len(block.open)
        try:
            calls, end = self.calls_in(text, inside, block, sampled)
            if not calls:
                raise NoCall(MALFORMED)
            if block.close:
                closed = skip_space(text, end)
                if text.startswith(block.close, closed):
                    end = closed + len(block.close)
                elif not block.may_be_open:
                    raise NoCall(INVALID_JSON)
            return Piece("call", text[start:end], tuple(calls))
        except NoCall as error:
            reason = str(error)
        following = self._next(text, inside)
        end = following[0] if following is not None else len(text)
        if not block.close:
            return Piece("broken", text[start:end], reason=reason)
        closed = text.find(block.close, inside, end)
        # The next opener begins another attempt, unless this one is closed first.
        if closed < 0:
            return Piece("broken", text[start:end], reason=reason if block.may_be_open else UNCLOSED)
        return Piece("broken", text[start : closed + len(block.close)], reason=reason)


def split_at(text: str, tags: Sequence[str], kind: Kind) -> Iterator[Piece]:
    """A text as pieces, with each of the tags as a piece of this kind."""
    while text:
        at, tag = min(((at, tag) for tag in tags if (at := text.find(tag)) >= 0), default=(len(text), ""))
        yield from [part for part in (Piece("text", text[:at]), Piece(kind, tag)) if part.raw]
        text = text[at + len(tag) :]


class JsonBlocks(Blocks):
    """Calls between tags, as JSON objects."""

    def __init__(
        self,
        name: str,
        *blocks: Block,
        layouts: Iterable[Layout] = ("one",),
        keys: Keys = PLAIN_KEYS,
        gap: int = 1,
        tags: Sequence[Tags] = (THINK,),
        signs: Sequence[str | tuple[str, ...]] = (),
    ) -> None:
        super().__init__(name, *blocks, gap=gap, tags=tags, signs=signs)
        self.layouts = frozenset(layouts)
        self.keys = keys

    def calls_in(self, text: str, at: int, block: Block, sampled: Sampled) -> tuple[Sequence[ToolCall], int]:
        """See `Blocks`."""
        # An opener may hold the array's bracket: `functools` alone is Python's module.
        at = at - 1 if block.open.endswith("[") else skip_space(text, at)
        if text.startswith("[", at):
            if "array" not in self.layouts:
                raise NoCall(INVALID_JSON)
            return calls_in_array(text, at, self.keys)
        if "lines" not in self.layouts and "one" not in self.layouts:
            raise NoCall(INVALID_JSON)
        members, at = read_members(text, at)
        calls = [call_of(members, self.keys)]
        while "lines" in self.layouts and text.startswith("{", following := skip_space(text, at)):
            members, at = read_members(text, following)
            calls.append(call_of(members, self.keys))
        return calls, at


def calls_in_array(text: str, at: int, keys: Keys = PLAIN_KEYS) -> tuple[list[ToolCall], int]:
    """The calls of the JSON array that starts at `at`, and where it ends. Raises NoCall."""
    calls: list[ToolCall] = []
    at = skip_space(text, at + 1)
    while not text.startswith("]", at):
        if calls:
            if not text.startswith(",", at):
                raise NoCall(INVALID_JSON)
            at = skip_space(text, at + 1)
        members, at = read_members(text, at)
        calls.append(call_of(members, keys))
        at = skip_space(text, at)
    return calls, at + 1


class Wrapped(JsonBlocks):
    """Such calls, where what is said stands between tags of its own: they go nowhere."""

    wrapper: tuple[str, str]

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        for piece in super().said(text, sampled):
            yield from split_at(piece.raw, self.wrapper, "mark") if piece.kind == "text" else (piece,)


class Granite(Wrapped):
    """Granite 3, whose reasoning is announced in words, or stands in `<think>` with the answer in `<response>`."""

    wrapper = ("<response>", "</response>")


class Cohere(Wrapped):
    """Cohere's Command models."""

    wrapper = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")


HERMES = JsonBlocks("hermes", Block("<tool_call>", "</tool_call>"))
GRANITE = Granite(
    "granite",
    Block("<|tool_call|>"),
    # Granite 3's own template leaves the closing tag out; the model has seen Hermes' calls, too.
    Block("<tool_call>", "</tool_call>", may_be_open=True),
    layouts=("array", "one"),
    tags=(
        THINK,
        Tags("Here is my thought process:", "Here is my response:", newlines=2, told_by_close=False),
        Tags("Here's my thought process:", "Here's my response:", newlines=2, told_by_close=False),
    ),
    signs=("<|tool_call|>",),
)
PHI = JsonBlocks(
    "phi",
    Block("<|tool_call|>", "<|/tool_call|>"),
    Block("functools["),
    layouts=("array", "one"),
    # Phi-4-mini, Phi-4, Phi-3: the last two were taught no calls, and do as they are told.
    signs=("<|/tool_call|>", "<|/tool|>", "<|im_sep|>", ("<|user|>", "<|assistant|>", "<|end|>")),
)
NEMOTRON = JsonBlocks("nemotron", Block("<TOOLCALL>", "</TOOLCALL>"), layouts=("array",))
MINIMAX_M1 = JsonBlocks("minimax-m1", Block("<tool_calls>", "</tool_calls>"), layouts=("lines",))
HUNYUAN = JsonBlocks("hunyuan", Block("<tool_calls>", "</tool_calls>"), layouts=("array",))
COHERE = Cohere(
    "cohere",
    Block("<|START_ACTION|>", "<|END_ACTION|>"),
    layouts=("array", "one"),
    keys=Keys(name=("tool_name", "name"), arguments=("parameters",), others=("tool_call_id", "id")),
    tags=(Tags("<|START_THINKING|>", "<|END_THINKING|>"),),
)
