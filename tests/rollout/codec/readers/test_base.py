"""What all readers share."""

from __future__ import annotations

from rollout.chat.messages import Function, Message, ToolCall
from rollout.codec.readers import number_calls


def test_calls_are_numbered_through_the_conversation() -> None:
    """Calls without an id get one of nine letters and digits that no earlier call has; others keep theirs."""
    calls = (ToolCall(function=Function("a", "{}")), ToolCall(function=Function("b", "{}"), id="own"))
    numbered = number_calls(Message("assistant", tool_calls=calls), 7)
    assert [call.id for call in numbered.tool_calls] == ["call00007", "own"]
