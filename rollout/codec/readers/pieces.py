"""A completion cut into pieces, and the message that the pieces make.

A format is a way of cutting: each piece is a slice of the sampled text, and all of them together are that text, so that
nothing can get lost. What a piece is decides where it goes:

    <think>\\nI add.\\n</think>\\n\\nA moment.\\n<tool_call>\\n{"name": "add", "arguments": {}}\\n</tool_call>
    mark      reasoning  mark           text         call

Marks are the format's own and go nowhere, with the newlines that the format's templates write around them; whatever
whitespace goes beyond those is the model's own, and stays. A call goes to `tool_calls`, with its arguments' text as it
was written. What was meant as a call and cannot be read is `broken`: it stays in the content, and is listed with its
reason. Where no tools were offered nothing is a call, nor an attempt at one: the syntax is text. Only what is nested
beyond any use is told then, too: a policy that degenerates explains no syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from rollout.chat.messages import MalformedToolCall, Message, ToolCall
from rollout.door import MOST_DEEP

_BRACKET = re.compile(r"[\[\]{}()]")

Kind = Literal["text", "reasoning", "call", "broken", "mark", "fence"]


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """One turn, as a reader is shown it."""

    text: str
    """The completion, decoded, without the stop token that ended it."""
    prompt_end: str = ""
    """The text of the prompt's end. It may have opened reasoning, or a channel; "" where the prompt is not known."""
    tools: Sequence[Mapping[str, Any]] = ()
    """The tools that were offered, in OpenAI's form: formats that write values without quotes need their types."""
    ended: bool = True
    """Whether a stop token ended the turn; else it was cut off."""


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A slice of the sampled text, and what it is.

    text       content
    reasoning  reasoning
    call       calls of tools: `calls`, mostly one
    broken     an attempt at a call that cannot be read: `reason`; text where no tools were offered
    mark       syntax around reasoning and channels
    fence      syntax around calls: text where no tools were offered
    """

    kind: Kind
    raw: str
    calls: tuple[ToolCall, ...] = ()
    reason: str = ""


def assembled(pieces: Iterable[Piece], *, offered: bool, gap: int = 1) -> Message:
    """The message that pieces make. `offered` tells whether there were tools to call.

    `gap` is how many newlines before a call are the format's.
    """
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    malformed: list[MalformedToolCall] = []
    texts: list[str] = []

    def end_text(*, before_call: bool) -> None:
        text = "".join(texts)
        texts.clear()
        # Whitespace alone beside a call is the format's, not something that was said.
        if text.strip() or not (before_call or calls):
            # Of what is malformed nothing is taken off.
            said = not (malformed and text.endswith(malformed[-1].raw))
            content.append(_without_newlines_at_end(text, gap) if before_call and said else text)

    for piece in pieces:
        if piece.kind == "reasoning":
            reasoning.append(piece.raw)
        elif piece.kind in ("call", "fence") and offered:
            end_text(before_call=True)
            calls += piece.calls
        elif piece.kind != "mark":
            texts.append(piece.raw)
            if piece.kind == "broken" and (offered or _is_deep(piece.raw)):
                malformed.append(MalformedToolCall(piece.raw, piece.reason))
    end_text(before_call=False)
    thoughts = "\n".join(reasoning)
    return Message(
        "assistant",
        content="".join(content) or None,
        reasoning_content=thoughts if thoughts.strip() else None,
        tool_calls=tuple(calls),
        malformed_tool_calls=tuple(malformed),
    )


def _is_deep(text: str) -> bool:
    """Whether brackets are nested deeper than any value may be."""
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += 1 if found[0] in "[{(" else -1
        if depth > MOST_DEEP:
            return True
    return False


def _without_newlines_at_end(text: str, most: int) -> str:
    while most and text.endswith("\n"):
        text, most = text[:-1], most - 1
    return text
