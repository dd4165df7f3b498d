"""Actions from answers, and observations as text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.adapters.actions import action_of, asked_for, last_object, text_field, told, tool_text

WHAT = {"message": {"type": "string", "description": "What to say"}, "metadata": {"type": "object"}}
SAYING = {"properties": WHAT, "required": ["message"]}
MOVING = {"properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["x", "y"]}

SHORT = st.text(max_size=6)

JSON = st.recursive(st.none() | st.integers() | SHORT, lambda inner: st.lists(inner, max_size=3), max_leaves=4)


class Checker:
    """Finds nothing wrong."""

    def iter_errors(self, value: Any) -> list[Any]:
        return []


def test_an_action_that_is_one_text_is_the_whole_answer() -> None:
    """Unless the answer is that action in JSON; JSON of something else is text, too."""
    assert action_of("hello {x}", SAYING, Checker()) == {"message": "hello {x}"}
    assert action_of('{"message": "hi"}', SAYING, Checker()) == {"message": "hi"}
    assert action_of('{"to": "you"}', SAYING, Checker()) == {"message": '{"to": "you"}'}
    assert asked_for(SAYING) == "Your whole answer is taken as the message: What to say."


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        (SAYING, "message"),
        ({"properties": WHAT}, "message"),
        ({"properties": {**WHAT, "loud": {"type": "boolean"}}, "required": ["message"]}, "message"),
        ({"properties": {**WHAT, "loud": {"type": "boolean"}}}, None),
        ({"properties": {"move": {"type": "string", "enum": ["a", "b"]}}, "required": ["move"]}, None),
        (MOVING, None),
        ({}, None),
    ],
)
def test_the_one_text_of_a_schema(schema: dict[str, Any], field: str | None) -> None:
    """The only field that has to be there, if it is free text."""
    assert text_field(schema) == field


def test_the_last_object_counts() -> None:
    """In prose, in a block of code, after braces that begin none."""
    assert action_of('First {"x": 1, "y": 1}, no: ```json\n{"x": 2, "y": 2}\n```', MOVING, Checker()) == {
        "x": 2,
        "y": 2,
    }
    assert last_object("{not} {{ nothing") is None
    assert last_object('{{"x": {"y": 1}} }') == {"x": {"y": 1}}
    with pytest.raises(ValueError, match="one action as a JSON object"):
        action_of("left", MOVING, Checker())


@pytest.mark.slow
@given(st.dictionaries(SHORT, JSON, max_size=4), st.text(st.characters(exclude_characters="{}"), max_size=20))
def test_any_object_is_found_in_any_prose(value: dict[str, Any], prose: str) -> None:
    """Whatever stands around it."""
    assert last_object(f"{prose}{json.dumps(value)}{prose}") == value


@pytest.mark.slow
@given(st.text(alphabet='{}[]":,a1 \n', max_size=300) | st.integers(1, 30_000).map(lambda n: '{"a":' * n))
def test_no_text_breaks_it(text: str) -> None:
    """Braces without end, and objects within objects without end."""
    assert last_object(text) is None or isinstance(last_object(text), dict)


def test_an_observation_is_its_one_text_or_all_of_its_fields() -> None:
    """Empty ones are left out; metadata are told where there is nothing else."""
    assert told({"echo": "hi", "metadata": {"n": 1}, "extra": None}) == "hi"
    assert told({"board": "x", "left": 0, "metadata": {}}) == '{"board": "x", "left": 0}'
    assert told({"metadata": {"message": "ready"}}) == "ready"
    assert told({"numbers": [1]}) == '{"numbers": [1]}'
    assert told({}) == "{}"


def test_what_a_tool_gave_is_its_text() -> None:
    """Of the package's results, of plain values, of errors."""
    blocks = {"content": [{"type": "text", "text": "3"}, {"type": "image"}], "data": 3, "is_error": False}
    assert tool_text({"tool_name": "add", "result": blocks}) == (False, "3\n[image left out]")
    assert tool_text({"tool_name": "add", "result": [1, 2]}) == (False, "[1, 2]")
    assert tool_text({"error": {"error_type": "execution_error", "message": "no"}}) == (True, "error: no")
