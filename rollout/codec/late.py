"""Whether a template shows a message that comes late, in its place."""

from __future__ import annotations

import msgspec

from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.codec import stand_in
from rollout.codec.stand_in import HEAD, Conversation, NotRendered, Steps


def shows_late(before: str, role: str, behind: str) -> Steps[bool]:
    """Whether the template shows a message of this role behind one of `before` and, if named, in front of `behind`.

    Shown in its place: DeepSeek's templates write every system message at the beginning, before what was sampled.
    """
    first_word, second_word = stand_in.WORDS
    call = ToolCall(id="call00000", function=Function("tool", "{}"))
    said = {
        "assistant": [Message("assistant", ".")],
        "tool": [Message("assistant", tool_calls=(call,)), Message("tool", ".", tool_call_id=call.id, name="tool")],
    }
    head, tail = [*HEAD, *said.get(before, [])], [user(".")] if behind == "user" else []
    try:
        first = yield Conversation([*head, Message(role, first_word), *tail])
        second = yield Conversation([*head, Message(role, second_word), *tail])
        earlier = yield Conversation(
            [*head[:-1], msgspec.structs.replace(head[-1], content=second_word), Message(role, first_word), *tail]
        )
    except NotRendered:
        return False
    return first != second and stand_in.common_prefix(first, second) > stand_in.common_prefix(first, earlier)
