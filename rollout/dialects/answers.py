"""What the model said once, as it is known when a client sends it back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from rollout.chat.canonical import digest
from rollout.chat.messages import Function, Message, ToolCall, read_json

#: What Claude Code sends for an answer without text.
_NOTHING_SAID = frozenset({"", "(no content)"})


_MOST_EXACT = 2**53
_MOST_DOUBLE = 2**1023
_LONG_NUMBER = re.compile(r"\d{16}")


class Answer(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the model said once, and where."""

    id: str
    message: Message
    text_key: bytes
    """`text_key(message)`."""
    behind: int
    """The mark of the conversation that it answers."""
    mark: int
    """The mark of the conversation with it."""
    length: int
    """Messages of the conversation with it."""
    seal: str
    """What stands for its reasoning on the wire: it says nothing by itself, and holds for that text only."""
    call_ids: tuple[str, ...]
    """Of its calls, on the wire."""
    shown: Message
    """The same as the client reads it: a stop text that ended it is left out, a call is in the client's own form."""
    earlier: Answer | None
    """The answer before it in its conversation."""
    asked: tuple[Message, ...]
    """The messages between the two: a conversation is kept once, however many answers it has."""
    instructions: str | None = None
    """What the first message is, where it held for this request only: see `Call.instructions`."""

    def conversation(self) -> list[Message]:
        """What was asked, with this answer."""
        parts: list[Sequence[Message]] = []
        at: Answer | None = self
        while at is not None:
            parts += [(at.message,), at.asked]
            at = at.earlier
        return [message for part in reversed(parts) for message in part]


def text_key(message: Message) -> bytes:
    """Stands for what a message says aloud: its text, and its calls without their ids; not its reasoning."""
    text = message.text.strip()
    calls = tuple(
        ToolCall(function=Function(call.name, _as_clients_read(call.function.arguments))) for call in message.tool_calls
    )
    return digest(Message("assistant", None if text in _NOTHING_SAID else text, tool_calls=calls))


def arguments_object(text: str) -> dict[str, Any]:
    """A call's arguments as an object: what is none is the one value of one, and what JSON does not have is null."""
    try:
        value = read_json(text or "{}", not_finite="null")
    except ValueError:
        return {"arguments": text}
    return value if isinstance(value, dict) else {"arguments": value}


def _as_clients_read(arguments: str) -> str:
    """A call's arguments as they come back: many programs know no integers beyond those that a double holds."""
    value = arguments_object(arguments)
    return json.dumps(_in_doubles(value)) if _LONG_NUMBER.search(arguments) else json.dumps(value)


def _in_doubles(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_doubles(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_doubles(item) for item in value]
    return float(value) if isinstance(value, int) and _MOST_EXACT < abs(value) < _MOST_DOUBLE else value


def is_same(came: Message, key: bytes, answer: Answer) -> bool:
    """Whether a message that came, with this `text_key`, is what the model said, its reasoning dropped or not."""
    if key != answer.text_key:
        return False
    reasoning = (came.reasoning_content or "").strip()
    return not reasoning or reasoning == (answer.shown.reasoning_content or "").strip()


def seal(identifier: str, reasoning: str) -> str:
    """A thinking block's signature, or a reasoning item's encrypted content."""
    check = hashlib.blake2b(f"{identifier}\n{reasoning}".encode("utf-8", "surrogatepass"), digest_size=8)
    return f"{identifier}.{check.hexdigest()}"


def joined(parts: Sequence[Message]) -> Message:
    """One message of the assistant's that was sent in several."""
    if len(parts) == 1:
        return parts[0]
    return Message(
        "assistant",
        "\n".join(part.text for part in parts if part.text) or None,
        "\n".join(part.reasoning_content for part in parts if part.reasoning_content) or None,
        tuple(call for part in parts for call in part.tool_calls),
        extra={name: value for part in parts for name, value in part.extra.items()},
    )
