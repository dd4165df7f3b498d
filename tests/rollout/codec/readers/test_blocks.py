"""Calls between tags: what the model wrote is kept, and what is malformed is said."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message
from rollout.codec.readers.blocks import GRANITE, HERMES
from tests.rollout.codec.readers.kit import calls_of, read, reasons_of


def test_text_reasoning_and_calls_are_told_apart() -> None:
    """Reasoning, content and each tool call land in their own place."""
    text = '<think>\nhm\n</think>\n\nok\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    message = read(HERMES, text)
    assert (message.reasoning_content, message.content) == ("hm", "ok")
    assert calls_of(message) == [("add", {"a": 1})]
    assert not message.malformed_tool_calls


def test_reasoning_that_the_prompt_opened_is_reasoning() -> None:
    """A completion that starts inside `<think>` is reasoning up to its close, or to its end."""
    assert read(HERMES, "hm</think>yes", prompt_end="<|im_start|>assistant\n<think>\n").reasoning_content == "hm"
    cut = read(HERMES, "hm and", prompt_end="assistant\n<think>\n", ended=False)
    assert (cut.reasoning_content, cut.content) == ("hm and", None)


def test_reasoning_that_no_tag_closes_ends_at_a_call() -> None:
    """A model that forgets `</think>` before its call has made the call."""
    message = read(HERMES, '<think>\nhm\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>')
    assert (message.reasoning_content, calls_of(message)) == ("hm", [("add", {})])


def test_a_call_in_reasoning_is_a_draft() -> None:
    """Reasoning that is closed may hold the syntax of calls."""
    draft = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    message = read(HERMES, f"<think>\n{draft}?\n</think>\n\nNo.")
    assert (message.reasoning_content, message.content, message.tool_calls) == (f"{draft}?", "No.", ())


@pytest.mark.parametrize("text", ["    return x\n", "\n\nx", " ", "\n", "a\n\n\n"])
def test_an_answers_whitespace_is_its_own(text: str) -> None:
    """Indentation and last newlines reach the environment, behind reasoning, too."""
    assert read(HERMES, text).content == text
    behind = read(HERMES, f"<think>\n  hm\n\n</think>\n\n{text}")
    assert (behind.reasoning_content, behind.content) == ("  hm\n", text)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("<tool_call>{oops}</tool_call>", "invalid_json"),
        ('<tool_call>{"name": "add"', "unclosed_block"),
        ('<tool_call>{"arguments": {}}</tool_call>', "missing_name"),
        ('<tool_call>{"name": 2, "arguments": {}}</tool_call>', "missing_name"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "malformed_structure"),
        ('<tool_call>{"name": "add", "arguments": "Oslo"}</tool_call>', "malformed_structure"),
        ('<tool_call>{"name": "add", "arguments": 5}</tool_call>', "malformed_structure"),
        ('<tool_call>{"name": "add", "arguments": {}, "why": "x"}</tool_call>', "malformed_structure"),
        ('<tool_call>{"name": "add", "arguments": {}, "parameters": {}}</tool_call>', "malformed_structure"),
        ('<tool_call>{"name": "add", "name": "sub", "arguments": {}}</tool_call>', "malformed_structure"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1, "a": 2}}</tool_call>', "malformed_structure"),
        ('<tool_call>{"name": "add", "arguments": {}} or so</tool_call>', "invalid_json"),
        ('<tool_call>{"name": "add", "arguments": {}}\n{"name": "add", "arguments": {}}</tool_call>', "invalid_json"),
        ("<tool_call></tool_call>", "invalid_json"),
        ("<tool_call>[]</tool_call>", "invalid_json"),
    ],
)
def test_malformed_calls_keep_their_raw_text(block: str, reason: str) -> None:
    """A malformed call is listed with its reason, and its text stays in the content."""
    message = read(HERMES, f"well {block}")
    assert [(call.raw, call.reason) for call in message.malformed_tool_calls] == [(block, reason)]
    assert message.text == f"well {block}"
    assert not message.tool_calls


def test_an_unclosed_call_costs_the_next_one_nothing() -> None:
    """An opener begins another attempt."""
    good = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    message = read(HERMES, f'<tool_call>\n{{"name": "add"}}\n{good}\n<tool_call>{good}')
    assert reasons_of(message) == ["unclosed_block", "unclosed_block"]
    assert calls_of(message) == [("add", {"a": 1})] * 2


def test_parameters_is_another_word_for_arguments() -> None:
    """Arguments under Llama's key are arguments; without any there are none."""
    assert calls_of(read(HERMES, '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>')) == [("f", {"a": 1})]
    assert calls_of(read(HERMES, '<tool_call>{"name": "f"}</tool_call>')) == [("f", {})]


def test_arguments_come_back_as_they_were_written() -> None:
    """Key order, numbers of any size, escapes and tags within a text are the model's own."""
    written = '{"b":  1.10, "a": 123456789012345678901234567890, "c": "\\u00e9</tool_call><tool_call>", "d": 1E3}'
    message = read(HERMES, f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>')
    assert [call.function.arguments for call in message.tool_calls] == [written]


@pytest.mark.parametrize(
    "value", ["[" * 3_000 + "]" * 3_000, "[" * 200 + "]" * 200, "NaN", "9" * 5_000, "-Infinity", "1e999"]
)
def test_a_call_that_no_json_reader_takes_is_malformed(value: str) -> None:
    """JSON nested without end, or with numbers that JSON does not have, is a malformed call and never raises."""
    message = read(HERMES, f'<tool_call>{{"name": "f", "arguments": {{"a": {value}}}}}</tool_call>')
    assert reasons_of(message) == ["invalid_json"]


@pytest.mark.parametrize("close", ["", "</tool_call>", "\n</tool_call>"])
@pytest.mark.parametrize("call", ['{"name": "add", "arguments": {"a": 1}}', '[{"name": "add", "arguments": {"a": 1}}]'])
def test_granites_calls_may_be_closed(call: str, close: str) -> None:
    """Its template leaves the closing tag out; where a model writes it, it is no content."""
    message = read(GRANITE, f"I add.\n<tool_call>\n{call}{close}")
    assert (calls_of(message), message.content) == ([("add", {"a": 1})], "I add.")
    twice = read(GRANITE, f"<tool_call>{call}{close}<tool_call>{call}{close} Done.")
    assert (calls_of(twice), twice.content) == ([("add", {"a": 1})] * 2, " Done.")
    broken = read(GRANITE, f"<tool_call>{{oops}}{close}")
    assert [(each.raw, each.reason) for each in broken.malformed_tool_calls] == [
        (f"<tool_call>{{oops}}{close}", "invalid_json")
    ]


@pytest.mark.parametrize("deep", ["[" * 3_000, '{"a":' * 200, "(" * 129, "[" * 3_000 + "]" * 3_000])
def test_what_is_nested_without_end_is_malformed_where_no_tools_were_offered_too(deep: str) -> None:
    """It is no text that explains a call, but a policy that degenerates."""
    text = f'<tool_call>\n{{"name": "f", "arguments": {deep}}}\n</tool_call>'
    message = read(HERMES, text, tools=())
    assert (reasons_of(message), message.content, message.tool_calls) == (["invalid_json"], text, ())
    wide = f'<tool_call>\n{{"name": "f", "arguments": {"[]" * 3_000}}}\n</tool_call>'
    assert read(HERMES, wide, tools=()) == Message("assistant", wide)


def test_where_no_tools_were_offered_text_is_text() -> None:
    """The syntax of a call is content then, whole, also of one that cannot be read."""
    for text in ("<tool_call>oops", "<tool_call>{bad}</tool_call>\nx", "Use <tool_call>."):
        assert read(HERMES, text, tools=()) == Message("assistant", text)
    text = 'Write\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\nlike that.\n'
    assert read(HERMES, text, tools=()) == Message("assistant", text)


def test_text_around_calls_is_content() -> None:
    """Text before, between and behind calls stays; the newlines that the format writes around calls do not."""
    call = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    assert read(HERMES, f"one\n{call}\n{call}\n").content == "one"
    assert read(HERMES, f"  one\n\n{call} two {call}\nthree\n").content == "  one\n two \nthree\n"


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_was_sampled_can_be_written(text: str) -> None:
    """Any text, also as a call's argument in JSON's own escapes, gives a message that is written and read back."""
    call = '<tool_call>{"name": "f", "arguments": ' + json.dumps({"a": text}) + "}</tool_call>"
    for sampled in (text, call, f"<think>{text}</think>{text}"):
        message = read(HERMES, sampled)
        assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message
        for each in message.tool_calls:
            msgspec.json.encode(each.parsed_arguments())


def test_half_an_emoji_in_a_call_is_well_formed() -> None:
    """A lone surrogate that a model spelled in JSON becomes U+FFFD."""
    message = read(HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\\ud83d"}}</tool_call>')
    assert message.tool_calls[0].function.arguments == '{"a": "\ufffd"}'
