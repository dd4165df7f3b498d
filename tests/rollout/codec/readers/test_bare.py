"""Calls without a marker: what is a call, what an answer in JSON, and what an attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message
from rollout.codec.readers.bare import LLAMA, XLAM
from rollout.codec.readers.pythonic import GEMMA, LLAMA4
from tests.rollout.codec.readers.kit import calls_of, read, reasons_of, tool_of

CALL = '{"name": "add", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (CALL, 1),
        (f"\n{CALL}\n", 1),
        (f"{CALL}; {CALL}", 2),
        (f"{CALL}\n{CALL}", 2),
        (f"{CALL}, {CALL}", 2),
        (f"[{CALL}]", 1),
        (f"[{CALL}, {CALL}]", 2),
        (f"\n[\n  {CALL},\n  {CALL}\n]\n", 2),
        (f"[{CALL}]\n[{CALL}, {CALL}]", 3),
        (f"<|python_tag|>[{CALL}, {CALL}]", 2),
        (f"<|python_tag|>{CALL}; {CALL}", 2),
        ('{"type": "function", "name": "add", "parameters": {"a": 1}}', 1),
        ("<|python_tag|>add.call(a=1)", 1),
    ],
)
def test_llamas_calls(text: str, calls: int) -> None:
    """One, several, in lists, behind the tag, and of the built-in kind: what only held calls is no content."""
    for reader in (LLAMA, LLAMA4):
        message = read(reader, text)
        assert (calls_of(message), message.content) == ([("add", {"a": 1})] * calls, None)


@given(st.integers(1, 5), *[st.sampled_from(["", " ", "\n", "\n\n  "])] * 3)
def test_a_list_of_calls_leaves_nothing_in_the_content(count: int, before: str, inside: str, behind: str) -> None:
    """However many they are, and whatever whitespace stands between them."""
    listed = f"{before}[{inside}{f'{behind},{inside}'.join([CALL] * count)}{behind}]{behind}"
    for reader in (LLAMA, LLAMA4, GEMMA):
        message = read(reader, listed)
        assert (calls_of(message), message.content) == ([("add", {"a": 1})] * count, None)


def test_a_list_of_calls_may_have_text_around_it() -> None:
    """Which is content, without the list's brackets. One that names other tools is an answer, as a whole."""
    message = read(LLAMA, f"I add.\n[{CALL}, {CALL}] Done.")
    assert (calls_of(message), message.content) == ([("add", {"a": 1})] * 2, "I add. Done.")
    for text in (f"[{CALL.replace('add', 'sub')}]", f"So: [{CALL}, {CALL.replace('add', 'sub')}]"):
        assert read(LLAMA, text) == Message("assistant", text)


def test_a_list_of_calls_that_was_cut_off_is_malformed() -> None:
    """As a whole: none of it was meant to be done alone."""
    text = f"[{CALL}, {CALL[:20]}"
    message = read(LLAMA, text)
    assert (reasons_of(message), message.content, message.tool_calls) == (["invalid_json"], text, ())


def test_text_before_a_call_of_an_offered_tool_is_content() -> None:
    """Only where the tool is there: else it is JSON that the answer shows."""
    assert calls_of(read(LLAMA, f"I add.\n{CALL}")) == [("add", {"a": 1})]
    assert read(LLAMA, f"I add.\n{CALL}").content == "I add."
    other = CALL.replace("add", "sub")
    assert read(LLAMA, f"Write:\n{other}").content == f"Write:\n{other}"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Oslo", "population": 7}',
        '{"type": "Point", "coordinates": [1, 2]}',
        '[{"name": "Oslo", "population": 7}]',
        '{"name": "Oslo"}',
        '{"a": 1}',
        '{"answer": {"name": "x"}}',
        "{x}",
        'So {"name": oops',
        "[1]",
    ],
)
def test_an_answer_in_json_is_an_answer(text: str) -> None:
    """Nothing tells that a call was meant."""
    for reader in (LLAMA, XLAM, LLAMA4, GEMMA):
        message = read(reader, text)
        assert (message.content, message.tool_calls, message.malformed_tool_calls) == (text, (), ())


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "parameters": [1]}',
        '{"name": "add", "parameters": {"a": 1',
        "<|python_tag|>print(1)",
        '{"name": "add", "a": 1}',
        '{"name": "sub", "parameters": {}, "a": 1}',
    ],
)
def test_what_starts_as_a_call_and_is_none_is_malformed(text: str) -> None:
    """With its whole text."""
    message = read(LLAMA, text)
    assert len(message.malformed_tool_calls) == 1
    assert (message.content, message.tool_calls) == (text, ())


@pytest.mark.parametrize(
    "text",
    [
        f'{{"plan": [{CALL}, {CALL}]}}',
        f'Here it is:\n{{"step": {CALL}}}\nDone.',
        f'{{"type": "object", "then": {CALL}}}',
        f"[1, {CALL}]",
        f'{{"a": {{"b": [{CALL}]}}}} and {{"c": {CALL}}}',
    ],
)
def test_what_stands_inside_an_answer_in_json_is_no_call(text: str) -> None:
    """A plan that names tools, a schema, an example: the answer is about calls, and is none."""
    for reader in (LLAMA, XLAM, LLAMA4, GEMMA):
        message = read(reader, text)
        assert (message.content, message.tool_calls, message.malformed_tool_calls) == (text, (), ())


def test_a_call_behind_an_answer_in_json_is_one() -> None:
    """What is inside of something else ends where that does."""
    message = read(LLAMA, f'{{"step": {CALL}}}\n{CALL}')
    assert (calls_of(message), message.content) == ([("add", {"a": 1})], f'{{"step": {CALL}}}')


def test_many_brackets_before_a_call_cost_little() -> None:
    """A model may sample brackets without end: what stands around a call is looked for a few times."""
    text = "[{" * 50_000 + CALL
    assert read(LLAMA, text).text == text or calls_of(read(LLAMA, text))


def test_openais_own_form_of_a_call_is_an_attempt() -> None:
    """The function in an object of its own: no template of these models writes that."""
    text = f'{{"type": "function", "function": {CALL}}}'
    for reader in (LLAMA, XLAM):
        message = read(reader, text)
        assert (reasons_of(message), message.content, message.tool_calls) == (["malformed_structure"], text, ())


@pytest.mark.parametrize(
    ("before", "behind"), [("Sure.\n", ""), ("```json\n", "\n```"), ("<tool_call>", "</tool_call>"), ("", " Done.")]
)
def test_xlams_array_may_have_text_around_it(before: str, behind: str) -> None:
    """Where it names offered tools; else it is JSON that the answer shows."""
    array = '[{"name": "add", "arguments": {"a": 1}}]'
    message = read(XLAM, f"{before}{array}{behind}")
    assert calls_of(message) == [("add", {"a": 1})]
    assert message.text.split() == f"{before}{behind}".split()
    if before:
        other = f"{before}{array.replace('add', 'sub')}{behind}"
        assert read(XLAM, other).content == other


def test_tools_with_dashes_in_their_names_are_called_in_python_too() -> None:
    """As those of MCP servers have."""
    tools = [tool_of("get-weather"), tool_of("add")]
    for text in (
        '[get-weather(the-city="Oslo"), add(a=1)]',
        '<|python_start|>[get-weather(the-city="Oslo"), add(a=1)]<|python_end|>',
    ):
        found = calls_of(read(LLAMA4, text, tools=tools))
        assert found == [("get-weather", {"the-city": "Oslo"}), ("add", {"a": 1})]


def test_several_calls_in_one_list() -> None:
    """As xLAM and Llama 4 write parallel calls."""
    both = [("add", {"a": 1}), ("add", {})]
    assert calls_of(read(XLAM, '[{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {}}]')) == both
    assert calls_of(read(LLAMA4, "[add(a=1), add()]")) == both
    assert calls_of(read(LLAMA4, "<|python_start|>[add(a=1), add()]<|python_end|>")) == both
    assert reasons_of(read(LLAMA4, "[add(1)]")) == ["malformed_structure"]
    assert reasons_of(read(LLAMA4, "[add(a=b)]")) == ["invalid_json"]
