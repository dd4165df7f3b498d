"""What all readers share: a completion cut into pieces, and the message that the pieces make.

A format is a way of cutting: each piece is a slice of the sampled text, and all of them together are that text, so that
nothing can get lost. What a piece is decides where it goes:

    <think>\\nI add.\\n</think>\\n\\nA moment.\\n<tool_call>\\n{"name": "add", "arguments": {}}\\n</tool_call>
    mark      reasoning  mark           text         call

Marks are the format's own and go nowhere, with the newlines that the format's templates write around them; whatever
whitespace goes beyond those is the model's own, and stays. A call goes to `tool_calls`, with its arguments' text as it
was written. What was meant as a call and cannot be read is `broken`: it stays in the content, and is listed with its
reason. Where no tools were offered nothing is a call: the syntax is text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from rollout.chat.messages import MalformedToolCall, Message, ToolCall
from rollout.door import error_text, well_formed
from rollout.log import get_logger

_log = get_logger(__name__)

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


class Reader(Protocol):
    """Reads what one kind of model writes. Has no state: any number of threads may share it."""

    @property
    def name(self) -> str:
        """As `--reader` takes it."""
        ...

    def read(self, sampled: Sampled) -> Message:
        """The assistant's message. Never raises for what a model sampled."""
        ...


def number_calls(message: Message, first: int) -> Message:
    """Gives calls without an id one: nine letters and digits, as Mistral's templates demand, counted from `first`."""
    if all(call.id for call in message.tool_calls):
        return message
    calls = tuple(
        call if call.id else msgspec.structs.replace(call, id=f"call{first + i:05d}")
        for i, call in enumerate(message.tool_calls)
    )
    return msgspec.structs.replace(message, tool_calls=calls)


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A slice of the sampled text, and what it is.

    text       content
    reasoning  reasoning
    call       a call of a tool: `call`
    broken     an attempt at a call that cannot be read: `reason`
    mark       syntax around reasoning and channels
    fence      syntax around calls: text where no tools were offered
    """

    kind: Kind
    raw: str
    call: ToolCall | None = None
    reason: str = ""


def read(reader: Reader, sampled: Sampled) -> Message:
    """What a reader reads; the text itself where a reader raises, which would be a bug of ours."""
    try:
        return reader.read(sampled)
    except Exception as error:
        _log.warning("parser_raised", error=f"{type(error).__name__}: {error_text(error)}", exc_info=error)
        return Message("assistant", well_formed(sampled.text) or None)


class Format:
    """A reader that cuts the text into pieces: `pieces` gives them in their order."""

    name: str
    """As `--reader` takes it."""
    openers: tuple[str, ...] = ()
    """What begins a call in this format, unmistakably; none where calls have no marker."""
    gap: int = 1
    """Newlines that templates of this format write between text and calls, at most."""

    def __repr__(self) -> str:
        return f"<reader {self.name}>"

    def pieces(self, sampled: Sampled) -> Iterator[Piece]:
        """Cuts the text. The pieces' slices, one after the other, are the text."""
        raise NotImplementedError

    def read(self, sampled: Sampled) -> Message:
        """See `Reader`."""
        if not sampled.text.isascii():
            sampled = msgspec.structs.replace(sampled, text=well_formed(sampled.text))
        return assembled(self.pieces(sampled), offered=bool(sampled.tools), gap=self.gap)


def assembled(pieces: Iterable[Piece], *, offered: bool, gap: int = 1) -> Message:
    """The message that pieces make. `offered` tells whether there were tools to call."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    malformed: list[MalformedToolCall] = []
    texts: list[Piece] = []

    def end_text(*, before_call: bool) -> None:
        text = "".join(piece.raw for piece in texts)
        texts.clear()
        # Whitespace alone beside a call is the format's, not something that was said.
        if text.strip() or not (before_call or calls):
            content.append(_without_newlines_at_end(text, gap) if before_call else text)

    for piece in pieces:
        if piece.kind == "reasoning":
            reasoning.append(piece.raw)
        elif piece.kind == "call" and offered and piece.call is not None:
            end_text(before_call=True)
            calls.append(piece.call)
        elif piece.kind == "fence" and offered:
            end_text(before_call=True)
        elif piece.kind != "mark":
            texts.append(piece)
            if piece.kind == "broken":
                malformed.append(MalformedToolCall(piece.raw, piece.reason))
    end_text(before_call=False)
    thoughts = "".join(reasoning)
    return Message(
        "assistant",
        content="".join(content) or None,
        reasoning_content=thoughts if thoughts.strip() else None,
        tool_calls=tuple(calls),
        malformed_tool_calls=tuple(malformed),
    )


def _without_newlines_at_end(text: str, most: int) -> str:
    while most and text.endswith("\n"):
        text, most = text[:-1], most - 1
    return text
