"""Calls as Python writes them.

llama4     [add(a=1), ping()], also between <|python_start|> and <|python_end|>; and Llama 3's JSON, which Llama 4's
           own template writes into earlier turns
lfm2       <|tool_call_start|>[add(a=1)]<|tool_call_end|>, or JSON there
olmo       <function_calls>\\nadd(a=1)\\nping()\\n</function_calls>
gemma      ```tool_code\\nadd(a=1)\\n```, [add(a=1)] or Llama's JSON: Gemma 3 has no format of its own, and follows the
           prompt; these are those that Google's documentation asks for
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rollout.chat.messages import ToolCall
from rollout.codec.readers.bare import Llama
from rollout.codec.readers.blocks import Block, Blocks, calls_in_array
from rollout.codec.readers.literals import after_space, read_call
from rollout.codec.readers.pieces import Piece, Sampled
from rollout.codec.readers.values import MALFORMED, NoCall, arguments_text, make_call

_CALL = re.compile(r"[^\W\d][\w.-]*\(")

#: A list of calls that is a whole answer.
_FIRST = re.compile(r"\s*\[\s*[^\W\d][\w.-]*\(")


class PythonBlocks(Blocks):
    """Calls between tags, as Python: a list of them, or one on each line."""

    def calls_in(self, text: str, at: int, block: Block, sampled: Sampled) -> tuple[Sequence[ToolCall], int]:
        """See `Blocks`."""
        at = after_space(text, at)
        if text.startswith("[", at) and text.startswith("{", after_space(text, at + 1)):
            return calls_in_array(text, at)
        return python_calls(text, at)


def python_calls(text: str, at: int) -> tuple[list[ToolCall], int]:
    """The calls from `at` on: in brackets, or one after the other. Raises NoCall."""
    listed = text.startswith("[", at)
    at = after_space(text, at + listed)
    calls: list[ToolCall] = []
    while True:
        printed = text.startswith("print(", at)
        name, arguments, at = read_call(text, at + len("print(") * printed)
        calls.append(make_call(name, arguments_text(arguments)))
        at = after_space(text, at)
        if printed:
            if not text.startswith(")", at):
                raise NoCall(MALFORMED)
            at = after_space(text, at + 1)
        if listed and text.startswith(",", at):
            at = after_space(text, at + 1)
        if listed and text.startswith("]", at):
            return calls, at + 1
        if not listed and not _CALL.match(text, at):
            return calls, at


class Listed(Llama):
    """Llama 4's calls, and what else has a list of calls as its answer, beside calls in `blocks`."""

    def __init__(self, name: str, blocks: PythonBlocks, signs: Sequence[str | tuple[str, ...]]) -> None:
        self.name = name
        self.blocks = blocks
        self.openers = (*Llama.openers, *blocks.openers)
        self.signs = tuple(signs)

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        if any(opener in text for opener in self.blocks.openers):
            yield from self.blocks.said(text, sampled)
        elif sampled.tools and _FIRST.match(text):
            start = after_space(text, 0)
            try:
                calls, end = python_calls(text, start)
            except NoCall as error:
                yield Piece("broken", text, reason=str(error))
                return
            pieces = [Piece("fence", text[:start]), Piece("call", text[start:end], tuple(calls))]
            yield from [piece for piece in (*pieces, Piece("text", text[end:])) if piece.raw]
        else:
            yield from super().said(text, sampled)


LLAMA4 = Listed(
    "llama4",
    PythonBlocks("python", Block("<|python_start|>", "<|python_end|>")),
    signs=("<|python_start|>", "<|header_start|>"),
)
GEMMA = Listed("gemma", PythonBlocks("tool_code", Block("```tool_code\n", "```")), signs=("<start_of_turn>",))
LFM2 = PythonBlocks(
    "lfm2", Block("<|tool_call_start|>", "<|tool_call_end|>"), signs=("<|tool_call_start|>", "<|tool_list_start|>")
)
OLMO = PythonBlocks("olmo", Block("<function_calls>", "</function_calls>"))
