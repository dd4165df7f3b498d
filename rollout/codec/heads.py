"""Short conversations that stand for a history, or have one message of it in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from rollout.chat.messages import Function, Message, ToolCall
from rollout.codec.stand_in import HEAD, Head, renamed_ids
from rollout.codec.walked import Walked

_CALL_ID = "call00000"

#: Histories of so many messages are rendered whole once for each length.
_FEW = 16

#: Texts that are kept as they are in what is remembered of messages; longer ones by their digest.
SHORT = 64


def rough(walked: Walked) -> tuple[int, int]:
    """How long a history is, and how many calls are in it, which templates number; roughly, where that is many."""
    return _rough(len(walked.messages), _FEW), _rough(walked.calls, _FEW // 2)


def _rough(number: int, few: int) -> int:
    return number if number <= few else -number.bit_length()


def shortened(message: Message) -> Message:
    """The message without a long text, which is not seen."""
    if len(message.text) + len(message.reasoning_content or "") <= SHORT:
        return message
    reasoning = "." if message.reasoning_content else None
    return msgspec.structs.replace(message, content="." if message.text else None, reasoning_content=reasoning)


def part_types(message: Message) -> tuple[str, ...]:
    """Of what a message with images or audio is made, in order; nothing for a text."""
    return tuple(str(part.get("type")) for part in message.content) if isinstance(message.content, tuple) else ()


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


def last_rounds(history: Sequence[Message], walked: Walked, finds: Callable[[str], object] | None) -> Head | None:
    """What is seen but for tools' results, and the last calls and the last turn, their texts shortened.

    DeepSeek's templates note that a tool has answered, and write the next answers in another way: whether one
    has, and what came last, says as much as the whole history.
    """
    others = [message for message in walked.seen if message.role != "tool"]
    before = short_head(history, others) if others else HEAD
    if walked.by_text or before is None or len(others) == len(walked.seen):
        return None
    turns = [at for at, message in enumerate(history) if message.role == "assistant"]
    last_answer = max(at for at, message in enumerate(history) if message.role == "tool")
    called = next((at for at in reversed(turns) if at < last_answer), None)
    if called is None:
        return None
    after = next((at for at in turns if at > called), len(history))
    recent = [*history[called:after], *history[max(turns[-1], after) :]]
    return [*before, *renamed_ids([_word(message, finds) for message in recent])]


def _word(message: Message, finds: Callable[[str], object] | None) -> Message:
    """A message of the same kind that says a word; the same one, where the template may find something in it."""
    if message.role == "assistant" and finds is not None and finds(message.text):
        return message
    calls = tuple(msgspec.structs.replace(call, function=Function(call.name, "{}")) for call in message.tool_calls)
    reasoning = None if message.reasoning_content is None else "."
    return msgspec.structs.replace(
        message, content="." if message.text else None, reasoning_content=reasoning, tool_calls=calls
    )
