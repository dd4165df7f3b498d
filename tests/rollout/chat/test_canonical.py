"""The canonical form as a law: equal for what says the same, different for everything that counts."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage

from rollout.chat.canonical import Match, canonical, digest
from rollout.chat.messages import Message

TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ONE_CALL = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=5),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.text(min_size=1, max_size=5), "arguments": st.dictionaries(TEXT, JSON, max_size=3)}
        ),
    }
)
CALLS = st.lists(ONE_CALL, max_size=2)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.none() | TEXT},
    optional={"reasoning_content": TEXT, "tool_calls": CALLS, "tool_call_id": TEXT, "name": TEXT},
)


#: With one call at least.
CALLING = st.builds(
    lambda message, calls: {**message, "tool_calls": calls}, MESSAGES, st.lists(ONE_CALL, min_size=1, max_size=2)
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


@pytest.mark.slow
@given(MESSAGES)
def test_dump_and_load_change_nothing(message: dict[str, Any]) -> None:
    """Through JSON text, msgspec, pydantic and our own type a message stays the same."""
    ours = Message.of(message)
    loaded: list[object] = [
        json.loads(json.dumps(message)),
        msgspec.json.decode(msgspec.json.encode(message)),
        msgspec.json.decode(msgspec.json.encode(ours), type=Message),
        msgspec.json.decode(msgspec.json.encode(ours)),
        ModelMessage.model_validate_json(ModelMessage(**message).model_dump_json()),
        ModelMessage(**message).model_dump(),
        ours.as_openai(),
        json.loads(json.dumps(ours.as_openai())),
    ]
    assert {canonical(form) for form in loaded} == {canonical(message)}


@given(MESSAGES)
def test_the_openai_clients_types_are_the_same_message(message: dict[str, Any]) -> None:
    """What OpenAI's client makes of an assistant's answer, and dumps again, is that answer."""
    message = {**message, "role": "assistant", "content": message["content"] or None}
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    answer = ChatCompletionMessage.model_validate({**message, "tool_calls": calls or None})
    for form in (answer, answer.model_dump(), answer.model_dump(exclude_none=True), json.loads(answer.to_json())):
        assert canonical(form) == canonical(message)


@given(MESSAGES)
def test_canonical_is_idempotent(message: dict[str, Any]) -> None:
    """Reading what was read changes nothing, however often."""
    once = Message.of(message)
    twice = Message.of(once.as_openai())
    assert canonical(message) == canonical(once) == canonical(twice) == canonical(Message.of(twice.as_openai()))


def _longer(key: str) -> Callable[[dict[str, Any]], None]:
    def change(message: dict[str, Any]) -> None:
        message[key] = (message.get(key) or "") + "x"

    return change


def _other_role(message: dict[str, Any]) -> None:
    message["role"] = {"user": "system"}.get(message["role"], "user")


def _other_call(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(message: dict[str, Any]) -> None:
        place = message["tool_calls"][0]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] += "x"

    return change


def _other_argument(message: dict[str, Any]) -> None:
    arguments = message["tool_calls"][0]["function"]["arguments"]
    arguments["new"] = [arguments.get("new")]


def _fewer_calls(message: dict[str, Any]) -> None:
    message["tool_calls"].pop()


#: Each changes one thing that counts; the last column says which matches see it.
CHANGES: list[tuple[str, Callable[[dict[str, Any]], None], set[Match]]] = [
    ("text", _longer("content"), {"strict", "loose_tool_call", "role_content"}),
    ("role", _other_role, {"strict", "loose_tool_call", "role_content"}),
    ("reasoning", _longer("reasoning_content"), {"strict", "loose_tool_call"}),
    ("name", _longer("name"), {"strict", "loose_tool_call"}),
    ("tool_call_id", _longer("tool_call_id"), {"strict"}),
    ("call id", _other_call("id"), {"strict"}),
    ("call name", _other_call("function", "name"), {"strict", "loose_tool_call"}),
    ("argument", _other_argument, {"strict"}),
    ("fewer calls", _fewer_calls, {"strict", "loose_tool_call"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "seen"), [pytest.param(c, s, id=name) for name, c, s in CHANGES])
@given(message=CALLING)
def test_any_change_that_counts_is_seen(
    change: Callable[[dict[str, Any]], None], seen: set[Match], message: dict[str, Any]
) -> None:
    """One thing changed is another message, under the matches that look at it and under no other."""
    changed = copy.deepcopy(message)
    change(changed)
    for match in ("strict", "loose_tool_call", "role_content"):
        assert (canonical(message, match) != canonical(changed, match)) == (match in seen)


@given(names=st.lists(st.text(min_size=1, max_size=3), min_size=2, max_size=4, unique=True))
def test_the_order_of_calls_counts(names: list[str]) -> None:
    """Different calls the other way round are another message."""
    calls = [{"id": "c", "function": {"name": name}} for name in names]
    forward, backward = ({"role": "assistant", "tool_calls": order} for order in (calls, calls[::-1]))
    assert canonical(forward) != canonical(backward)


@pytest.mark.slow
@given(MESSAGES, MESSAGES)
def test_equal_bytes_mean_equal_content(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Two messages with one canonical form have the same text, role, calls, reasoning, name and id."""
    if canonical(a) == canonical(b):
        one, other = Message.of(a), Message.of(b)
        assert (one.role, one.text, one.reasoning_content) == (other.role, other.text, other.reasoning_content)
        assert (one.name, one.tool_call_id) == (other.name, other.tool_call_id)
        assert [call.name for call in one.tool_calls] == [call.name for call in other.tool_calls]


@given(value=JSON, other=JSON)
def test_argument_values_compare_as_json(value: Any, other: Any) -> None:
    """Arguments are one message exactly where they are one JSON value; true is not 1, and "1" is not 1."""

    def form(value: Any) -> bytes:
        function = {"name": "f", "arguments": {"a": value}}
        return canonical({"role": "assistant", "tool_calls": [{"id": "c", "function": function}]})

    assert (form(value) == form(other)) == _same_json(value, other)
    assert form(value) == form(json.loads(json.dumps(value)))


def _same_json(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None or isinstance(a, str):
        return type(a) is type(b) and bool(a == b)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same_json, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same_json(a[key], b[key]) for key in a)
    return isinstance(b, int | float) and not isinstance(b, bool) and a == b


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
        ({"role": "user", "content": "a"}, {"role": "user", "content": "a", "cache_control": {"type": "ephemeral"}}),
        ({"role": "user", "content": "a\nb"}, {"role": "user", "content": ["a", {"type": "text", "text": "b"}]}),
        ({"role": "user", "content": "a"}, {"type": "human", "content": "a", "id": "run-1", "example": False}),
        (
            {"role": "assistant", "content": "a"},
            {
                "type": "ai",
                "content": "a",
                "id": "run-2",
                "additional_kwargs": {"refusal": None},
                "response_metadata": {"token_usage": {"completion_tokens": 3}, "model_name": "m"},
                "usage_metadata": {"input_tokens": 1},
                "invalid_tool_calls": [],
                "tool_calls": [],
            },
        ),
        (
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": "a", "function_call": None, "provider_specific_fields": {"refusal": None}},
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
        ({"role": "user", "content": "a"}, {"role": "user", "content": "a", "channel": "final"}),
        ({"role": "user", "content": ["a", "b"]}, {"role": "user", "content": ["b", "a"]}),
    ],
)
def test_what_counts_counts(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Another text, role, name, reasoning, id, tool or argument is another message."""
    assert canonical(a) != canonical(b)


@pytest.mark.slow
@given(a=MESSAGES, b=MESSAGES)
def test_digests_compare_as_the_bytes_do(a: dict[str, Any], b: dict[str, Any]) -> None:
    """The tree's 16 bytes are equal for equal canonical bytes, and only then."""
    assert (digest(a) == digest(b)) == (canonical(a) == canonical(b))


def test_the_canonical_form_of_a_deep_call_does_not_depend_on_who_asks() -> None:
    """Arguments nested deeper than the door allows compare as text, however deep Python's stack is."""
    shallow, deep = call_with(), call_with(function={"name": "f", "arguments": "[" * 200 + "]" * 200})
    assert b'"text"' in canonical(deep)
    assert b'"text"' not in canonical(shallow)
    wide = call_with(function={"name": "f", "arguments": "[" + "[1]," * 300 + "[1.0]]"})
    assert canonical(wide) == canonical(call_with(function={"name": "f", "arguments": "[" + "[1], " * 300 + "[1]]"}))


NOTHING = st.recursive(st.none() | st.just(""), lambda inner: st.dictionaries(TEXT, inner, max_size=2), max_leaves=3)
MARKS = st.fixed_dictionaries(
    {},
    optional={
        "cache_control": st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}]),
        "provider_specific_fields": st.dictionaries(TEXT, JSON, max_size=2),
        "annotations": st.lists(JSON, max_size=1),
        "refusal": st.none(),
    },
)
PARTS = st.lists(TEXT.filter(bool), min_size=1, max_size=3)


@pytest.mark.slow
@given(message=MESSAGES, marks=MARKS, nothing=NOTHING, inner=MARKS, where=st.sampled_from(["metadata", "more"]))
def test_marks_and_empty_keys_carry_nothing_at_any_depth(
    message: dict[str, Any], marks: dict[str, Any], nothing: Any, inner: dict[str, Any], where: str
) -> None:
    """Whatever agents' libraries add to a message, or take away again the turn after, it is the same message."""
    assert canonical({**message, **marks, where: {"a": nothing, "b": [], "c": inner}}) == canonical(message)


@pytest.mark.slow
@given(
    texts=PARTS, marks=st.lists(MARKS, min_size=3, max_size=3), as_text=st.lists(st.booleans(), min_size=3, max_size=3)
)
def test_text_parts_are_their_lines_wherever_the_marks_stand(
    texts: list[str], marks: list[dict[str, Any]], as_text: list[bool]
) -> None:
    """Several parts, marked or not, plain strings among them: the text that servers make of them."""
    parts = [
        text if plain else {"type": "text", "text": text, **mark}
        for text, mark, plain in zip(texts, marks, as_text, strict=False)
    ]
    message = {"role": "user", "content": parts}
    assert canonical(message) == canonical({"role": "user", "content": "\n".join(texts)})
    assert Message.of(message).text == "\n".join(texts)


@pytest.mark.slow
@given(messages=st.lists(MESSAGES, min_size=1, max_size=4), place=st.integers(0, 3))
def test_a_cache_mark_that_moves_rewrites_no_history(messages: list[dict[str, Any]], place: int) -> None:
    """Anthropic's clients mark the last message of each turn, and unmark it the turn after."""
    marked = [
        {**message, "cache_control": {"type": "ephemeral"}} if at == place % len(messages) else message
        for at, message in enumerate(messages)
    ]
    assert [canonical(message) for message in marked] == [canonical(message) for message in messages]
