"""Messages compare by what they say, in whatever form they come."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import MessageError
from rollout.messages import Message, canonical, tool, with_tool_names

TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(min_size=1, max_size=5),
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": st.text(min_size=1, max_size=5), "arguments": st.dictionaries(TEXT, JSON, max_size=3)}
            ),
        }
    ),
    max_size=2,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.none() | TEXT},
    optional={"reasoning_content": TEXT, "tool_calls": CALLS, "tool_call_id": TEXT, "name": TEXT},
)


class ModelMessage(pydantic.BaseModel):
    role: str
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None


class StructMessage(msgspec.Struct):
    role: str
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


@dataclasses.dataclass
class DataMessage:
    role: str
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


@given(MESSAGES)
def test_every_form_is_the_same_message(message: dict[str, Any]) -> None:
    """A dict, a pydantic model, a struct, a dataclass and our own type have one canonical form."""
    forms = [ModelMessage(**message), StructMessage(**message), DataMessage(**message), Message.of(message)]
    assert {canonical(form) for form in forms} == {canonical(message)}


@given(MESSAGES)
def test_openai_form_reads_back(message: dict[str, Any]) -> None:
    """What is sent to a server is the same message when it comes back."""
    assert canonical(Message.of(message).as_openai()) == canonical(message)


@given(MESSAGES, MESSAGES)
def test_equal_bytes_mean_equal_content(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Two messages with one canonical form have the same text, role, calls, reasoning, name and id."""
    if canonical(a) == canonical(b):
        one, other = Message.of(a), Message.of(b)
        assert (one.role, one.text, one.reasoning_content) == (other.role, other.text, other.reasoning_content)
        assert (one.name, one.tool_call_id) == (other.name, other.tool_call_id)
        assert [call.name for call in one.tool_calls] == [call.name for call in other.tool_calls]


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "x"}'}}


def call_with(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{**CALL, **changes}]}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "content": None}, {"role": "assistant"}),
        ({"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}),
        ({"role": "user", "content": ""}, {"role": "user", "content": []}),
        (
            {"role": "assistant", "content": "x"},
            {
                "role": "assistant",
                "content": "x",
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
                "reasoning_content": None,
                "name": "",
                "thinking_blocks": [],
                "index": 0,
            },
        ),
        ({"role": "assistant", "reasoning": "r"}, {"role": "assistant", "reasoning_content": "r"}),
        (call_with(), call_with(function={"name": "add", "arguments": '{"b":"x","a":1}'})),
        (call_with(), call_with(function={"name": "add", "arguments": {"b": "x", "a": 1.0}})),
        (call_with(), call_with(function={"name": "add", "arguments": '{"a": 10e-1, "b": "\\u0078"}'})),
        (call_with(), call_with(index=3)),
        (
            call_with(function={"name": "f", "arguments": None}),
            call_with(function={"name": "f", "arguments": ""}),
        ),
    ],
)
def test_what_carries_nothing_does_not_count(a: dict[str, Any], b: dict[str, Any]) -> None:
    """The design's equivalences hold."""
    assert canonical(a) == canonical(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"role": "user", "content": "a"}, {"role": "user", "content": "b"}),
        ({"role": "user", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "user", "content": "a"}, {"role": "user", "content": "a", "name": "n"}),
        ({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "a", "reasoning_content": "r"}),
        ({"role": "tool", "content": "a", "tool_call_id": "1"}, {"role": "tool", "content": "a", "tool_call_id": "2"}),
        ({"role": "user", "content": "a "}, {"role": "user", "content": "a"}),
        ({"role": "user", "content": "\ud83d\ude00"}, {"role": "user", "content": "\U0001f600"}),
        (call_with(), call_with(id="c2")),
        (call_with(), call_with(function={"name": "sub", "arguments": '{"a": 1, "b": "x"}'})),
        (call_with(), call_with(function={"name": "add", "arguments": '{"a": "1", "b": "x"}'})),
        (call_with(), call_with(function={"name": "add", "arguments": '{"a": 1, "b": "x", "c": null}'})),
        (
            call_with(function={"name": "f", "arguments": '{"n": 100000000000000000000000000000000000001}'}),
            call_with(function={"name": "f", "arguments": '{"n": 100000000000000000000000000000000000002}'}),
        ),
        ({"role": "user", "content": "a"}, {"role": "user", "content": "a", "cache_control": {"type": "ephemeral"}}),
    ],
)
def test_what_counts_counts(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Another text, role, name, reasoning, id, tool or argument is another message."""
    assert canonical(a) != canonical(b)


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
