"""The assistant's message is what the model wrote; what is malformed is said, not dropped."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Function, Message, ToolCall
from rollout.codec.reading import number_calls, parse_text


def test_text_reasoning_and_calls_are_told_apart() -> None:
    """Reasoning, content and each tool call land in their own place."""
    text = '<think>\nhm\n</think>\n\nok\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    message = parse_text(text, in_reasoning=False)
    assert (message.reasoning_content, message.content) == ("hm", "ok")
    assert message.tool_calls[0].parsed_arguments() == {"a": 1}
    assert not message.malformed_tool_calls


def test_reasoning_that_the_prompt_opened_is_reasoning() -> None:
    """A completion that starts inside `<think>` is reasoning up to its close, or to its end."""
    assert parse_text("hm</think>yes", in_reasoning=True).reasoning_content == "hm"
    cut = parse_text("hm and", in_reasoning=True)
    assert (cut.reasoning_content, cut.content) == ("hm and", None)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("<tool_call>{oops}</tool_call>", "invalid_json"),
        ('<tool_call>{"name": "add"', "unclosed_block"),
        ('<tool_call>{"arguments": {}}</tool_call>', "missing_name"),
    ],
)
def test_malformed_calls_keep_their_raw_text(block: str, reason: str) -> None:
    """A malformed call is listed with its reason, and its text stays in the content."""
    message = parse_text(f"well {block}", in_reasoning=False)
    assert [(call.raw, call.reason) for call in message.malformed_tool_calls] == [(block, reason)]
    assert block in message.text
    assert not message.tool_calls


@pytest.mark.parametrize("value", ["[" * 3_000 + "]" * 3_000, "NaN", "9" * 5_000, "-Infinity"])
def test_a_call_that_no_json_reader_takes_is_malformed(value: str) -> None:
    """JSON nested without end, or with numbers that JSON does not have, is a malformed call and never raises."""
    message = parse_text(f'<tool_call>{{"name": "f", "arguments": {{"a": {value}}}}}</tool_call>', in_reasoning=False)
    assert [call.reason for call in message.malformed_tool_calls] == ["invalid_json"]


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_was_sampled_can_be_written(text: str) -> None:
    """Any text, also as a call's argument in JSON's own escapes, gives a message that is written and read back."""
    call = '<tool_call>{"name": "f", "arguments": ' + json.dumps({"a": text}) + "}</tool_call>"
    for sampled in (text, call, f"<think>{text}</think>{text}"):
        message = parse_text(sampled, in_reasoning=False)
        assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message
        for each in message.tool_calls:
            msgspec.json.encode(each.parsed_arguments())


def test_half_an_emoji_in_a_call_is_well_formed() -> None:
    """A lone surrogate that a model spelled in JSON becomes U+FFFD."""
    message = parse_text('<tool_call>{"name": "f", "arguments": {"a": "\\ud83d"}}</tool_call>', in_reasoning=False)
    assert message.tool_calls[0].function.arguments == '{"a": "\ufffd"}'


def test_calls_are_numbered_through_the_conversation() -> None:
    """Calls without an id get one of nine letters and digits that no earlier call has; others keep theirs."""
    calls = (ToolCall(function=Function("a", "{}")), ToolCall(function=Function("b", "{}"), id="own"))
    numbered = number_calls(Message("assistant", tool_calls=calls), 7)
    assert [call.id for call in numbered.tool_calls] == ["call00007", "own"]
