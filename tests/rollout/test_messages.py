"""Messages come in every form, are read once, and what cannot be read is named."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.canonical import canonical
from rollout.errors import MessageError
from rollout.messages import Message, tool, with_tool_names

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "x"}'}}


def call_with(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{**CALL, **changes}]}


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ("hello", "not str"),
        ({"content": "x"}, "role"),
        ({"role": "user", "content": 7}, "content"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "function.name"),
        (call_with(function={"name": "f", "arguments": {"a": float("nan")}}), "JSON"),
        ({"role": "user", "content": "x", "extra_thing": {1, 2}}, "set"),
        ({"role": "user", "content": "x", "name": 3}, "name"),
    ],
)
def test_unreadable_messages_are_named(bad: Any, named: str) -> None:
    """A message that cannot be read raises an error that names what is wrong."""
    with pytest.raises(MessageError, match=named):
        canonical(bad)


def test_tool_messages_get_their_functions_name() -> None:
    """A tool message without a name has that of the call that it answers."""
    messages = [Message.of(call_with()), Message.of({"role": "tool", "content": "3", "tool_call_id": "c1"})]
    assert with_tool_names(messages)[1].name == "add"
    assert tool("3", call=messages[0].tool_calls[0]).name == "add"


def test_a_callers_later_change_does_not_reach_us() -> None:
    """A message keeps what it was when it was read."""
    parts = [{"type": "image_url", "image_url": {"url": "a"}}]
    message = Message.of({"role": "user", "content": parts})
    before = canonical(message)
    parts[0]["image_url"] = {"url": "b"}
    assert canonical(message) == before
    assert message.is_multimodal
