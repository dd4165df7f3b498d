"""Short conversations that stand for a history, or have one message of it in them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from rollout.chat.messages import Function, Message, ToolCall
from rollout.codec.stand_in import HEAD, Head

_CALL_ID = "call00000"

#: Histories of so many messages are rendered whole once for each length.
_FEW = 16

#: Texts that are kept as they are in what is remembered of messages; longer ones by their digest.
SHORT = 64


def rough(history: Sequence[Message]) -> int:
    """How long a history is; roughly, where it is long."""
    return len(history) if len(history) <= _FEW else -len(history).bit_length()


def shortened(message: Message) -> Message:
    """The message without a long text, which is not seen."""
    if len(message.text) + len(message.reasoning_content or "") <= SHORT:
        return message
    reasoning = "." if message.reasoning_content else None
    return msgspec.structs.replace(message, content="." if message.text else None, reasoning_content=reasoning)


def behind(message: Message, first: bool) -> Sequence[Message]:
    """A short conversation with a message of the history in it, up to a stand-in."""
    if message.role == "user":  # as the first one, and as one of many
        return (message, Message("assistant", "."), message)
    if message.role == "tool":
        call = ToolCall(id=message.tool_call_id or _CALL_ID, function=Function(message.name or "tool", "{}"))
        answer = msgspec.structs.replace(message, tool_call_id=call.id, name=call.name)
        return (*HEAD, Message("assistant", tool_calls=(call,)), answer)
    return (message, *HEAD) if first else (*HEAD, Message("assistant", "."), message, *HEAD)


def short_head(history: Sequence[Message], seen: Sequence[Message]) -> Head | None:
    """The messages that are seen, as a conversation of their own; None where they cannot stand without the others."""
    if any(message.role == "tool" for message in seen):
        return None
    head: list[Message] = []
    for message in seen:
        if message.role == "user":
            head += [Message("assistant", ".")] if head and head[-1].role == "user" else []
        elif message is not history[0]:
            return None
        head.append(message)
    return head if head[-1].role == "user" else [*head, *HEAD]
