"""A completion's text as a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Function, Message, ToolCall
from transports.embedded.reply import read_reply

ADD = ToolCall(function=Function("add", '{"a": 2}'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", Message("assistant", "4")),
        ("", Message("assistant")),
        ("<think>\nhm\n</think>\n\n4", Message("assistant", "4", "hm")),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>', Message("assistant", tool_calls=(ADD,))),
        (
            '<think>\nhm\n</think>\n\nI add.\n<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>'
            '\n<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>',
            Message("assistant", "I add.", "hm", (ADD, ADD)),
        ),
        ("<tool_call>\n{broken\n</tool_call>", Message("assistant", "<tool_call>\n{broken\n</tool_call>")),
        ('<tool_call>{"name": "add"}</tool_call>', Message("assistant", '<tool_call>{"name": "add"}</tool_call>')),
        ("<tool_call>\n", Message("assistant", "<tool_call>\n")),
    ],
)
def test_reasoning_text_and_calls(text: str, message: Message) -> None:
    """Each where it stands; what is no call stays text."""
    assert read_reply(text) == message


@given(st.text() | st.text(st.sampled_from('<>/{}[]"\n ')).map(lambda text: f"<tool_call>{text}</tool_call>"))
def test_any_text_is_read(text: str) -> None:
    """A model may write anything."""
    assert read_reply(text).role == "assistant"
