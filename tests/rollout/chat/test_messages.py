"""Messages come in every form, are read once, and what cannot be read is named."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.canonical import canonical
from rollout.chat.messages import Function, MalformedToolCall, Message, ToolCall, tool, user, with_tool_names
from rollout.errors import MessageError

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


class Odd(str):
    """A text of a type of its own, as numpy's are."""


@pytest.mark.parametrize(
    ("came_in", "right"),
    [
        (user("caf\udce9"), user("caf\ufffd")),
        ({"role": "user", "content": "\ud83d"}, user("\ufffd")),
        (Message("assistant", reasoning_content="\ud83d"), Message("assistant", reasoning_content="\ufffd")),
        (tool("\udce9", call="\udce9"), tool("\ufffd", call="\ufffd")),
        (Message("user", Odd("x")), user("x")),
        (Message("user", "x", name="\udce9"), Message("user", "x", name="\ufffd")),
        (
            Message("assistant", tool_calls=(ToolCall(id="c", function=Function("f", '{"a": "\ud83d"}')),)),
            Message("assistant", tool_calls=(ToolCall(id="c", function=Function("f", '{"a": "\ufffd"}')),)),
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "\udce9"}}]},
            Message("user", ({"type": "image_url", "image_url": {"url": "\ufffd"}},)),
        ),
        (
            Message("user", ({"type": "text", "text": "\udce9"}, {"type": "text", "text": "b"})),
            Message("user", ({"type": "text", "text": "\ufffd"}, {"type": "text", "text": "b"})),
        ),
        ({"role": "user", "score": np.float32(0.5)}, Message("user", extra={"score": 0.5})),
        (Message("user", extra={"n": np.int64(7)}), Message("user", extra={"n": 7})),
    ],
)
def test_a_message_that_came_in_can_be_written(came_in: Any, right: Message) -> None:
    """However a message was made, each text in it can be encoded and each number written; it is read back equal."""
    found = Message.of(came_in)
    assert found == right
    assert msgspec.json.decode(msgspec.json.encode(found), type=Message) == found
    assert Message.of(found) is found


def test_what_the_parser_could_not_read_survives_the_door() -> None:
    """A message that is made anew keeps its malformed calls."""
    malformed = (MalformedToolCall("{oops", "invalid_json"),)
    assert Message.of(Message("assistant", "\udce9", malformed_tool_calls=malformed)).malformed_tool_calls == malformed


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = [value]
    return value


WITHIN_ITSELF: dict[str, Any] = {"role": "user", "content": "x"}
WITHIN_ITSELF["again"] = WITHIN_ITSELF


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"role": "user", "content": "x", "deep": nested(5_000)}, r"deep\[0\].* is nested deeper"),
        (WITHIN_ITSELF, r"again\.again.* is nested deeper"),
        (Message("user", extra={"loss": math.nan}), "extra.loss is nan"),
        (Message("user", extra={"tags": {1}}), "extra.tags is of type set"),
        (call_with(function={"name": "f", "arguments": nested(5_000)}), "is nested deeper"),
        (call_with(id=7), "'id' must be text"),
        (call_with(type=7), "'type' must be text"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "text part's text must be text, not int"),
        ({"role": "assistant", "tool_calls": 5}, "'tool_calls' must be a list"),
        (Message("user", 7), "content must be text"),  # type: ignore[arg-type]
        (Message("user", {1, 2}), "content is of type set"),  # type: ignore[arg-type]
        (Message("tool", "x", tool_call_id=7), "'tool_call_id' must be text"),  # type: ignore[arg-type]
        (Message(None, "x"), "needs a role"),  # type: ignore[arg-type]
    ],
)
def test_a_message_that_cannot_be_written_is_refused_by_its_place(bad: Any, named: str) -> None:
    """Sets, NaN, nesting without end and fields of another type are named, also where a Message was made of them."""
    with pytest.raises(MessageError, match=named):
        Message.of(bad)


@pytest.mark.parametrize("arguments", ["[" * 3_000 + "]" * 3_000, '{"a": ' + "9" * 5_000 + "}", "[1]", "{"])
def test_arguments_that_are_no_object_are_an_error_of_their_own(arguments: str) -> None:
    """Whatever a model wrote as arguments is an object of plain data, or a MessageError; its message still compares."""
    call = ToolCall(function=Function("f", arguments))
    with pytest.raises(MessageError, match="tool call 'f'"):
        call.parsed_arguments()
    message = Message("assistant", tool_calls=(call,))
    assert canonical(message) == canonical(message)


def test_an_escaped_surrogate_in_arguments_is_well_formed_text() -> None:
    """JSON can spell half an emoji in ASCII: what is read of it can be encoded."""
    call = ToolCall(function=Function("f", '{"a": "\\ud83d", "b": "\\ud83d\\ude00"}'))
    assert call.parsed_arguments() == {"a": "\ufffd", "b": "😀"}


@pytest.mark.slow
@given(st.recursive(st.text(st.characters(exclude_categories=())) | st.integers() | st.floats(), st.lists))
def test_any_value_makes_a_message_or_a_message_error(value: Any) -> None:
    """Whatever stands in a message's place is read, or is a MessageError."""
    for each in (
        value,
        {"role": "user", "content": value},
        {"role": value, "content": "x"},
        {"role": "user", "x": value},
    ):
        try:
            found = Message.of(each)
        except MessageError:
            continue
        assert msgspec.json.decode(msgspec.json.encode(found), type=Message) == found


def test_a_text_part_whose_text_has_another_name_is_refused() -> None:
    """It would be taken for a text that is empty; without any key of its own it is one."""
    for part in ({"type": "text", "txt": "hi"}, {"type": "input_text", "content": "hi"}):
        with pytest.raises(MessageError, match="a text part has no text; its other keys are"):
            Message.of({"role": "user", "content": [part]})
    assert Message.of({"role": "user", "content": [{"type": "text", "cache_control": {}}]}).text == ""


@pytest.mark.parametrize("made", [list, tuple])
def test_a_part_that_does_not_say_what_it_is_is_refused(made: Any) -> None:
    """An image without a type would be taken for a text that is empty, and be lost; a text alone may have none."""
    for part in ({"image_url": {"url": "https://x/y.png"}}, {"x": 1}, {"type": None, "image": "y"}):
        with pytest.raises(MessageError, match="a content part needs a type; its keys are"):
            Message.of(Message("user", made([{"type": "text", "text": "hi"}, part])))
    assert Message.of(Message("user", made([{"text": "hi"}, {"type": None, "text": "you"}]))).text == "hi\nyou"
