"""Calls as tags: values by their declared types, and attempts that are none."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.chat.messages import Message
from rollout.codec.readers import Reader
from rollout.codec.readers.xml import DSML, GLM, MINIMAX, QWEN_XML, SEED
from tests.rollout.codec.readers.kit import calls_of, read, reasons_of, tool_of


def qwen(value: str) -> str:
    return f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, "None", "None"),
        ({"type": ["string"]}, " true ", " true "),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "integer"]}, "12", 12),
        ({"type": ["string", "integer"]}, "[12]", "[12]"),
        ({"type": "integer"}, "12", 12),
        ({"type": "number"}, "-1.5e3", -1500.0),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "integer", "nullable": True}, "None", None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "array"}]}, "[1]", [1]),
        ({"type": "array"}, "[1, 'a', True, None]", [1, "a", True, None]),
        ({"type": "object"}, "{'k': {'z': None}}", {"k": {"z": None}}),
        ({"type": "OBJECT"}, '{"k": 1}', {"k": 1}),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({}, "12", 12),
        ({}, "True", True),
        ({}, "some words", "some words"),
        ({"$ref": "#/x"}, "[1]", [1]),
        (None, "12", 12),
    ],
)
def test_a_value_is_what_its_tool_declares(schema: Any, text: str, value: Any) -> None:
    """Texts stay texts, other values are read, and what is not declared is what it looks like."""
    tools = [tool_of("f", {"a": schema} if schema is not None else {})]
    assert calls_of(read(QWEN_XML, qwen(text), tools=tools)) == [("f", {"a": value})]


@pytest.mark.parametrize(
    ("kind", "text"), [("integer", "twelve"), ("number", "NaN"), ("array", "[1"), ("boolean", "yes")]
)
def test_a_value_that_cannot_be_what_is_declared_is_malformed(kind: str, text: str) -> None:
    """As inference servers have it."""
    assert reasons_of(read(QWEN_XML, qwen(text), tools=[tool_of("f", {"a": {"type": kind}})])) == ["invalid_json"]


def test_tags_within_a_value_are_its_text() -> None:
    """A file that is edited may hold the format's own tags."""
    tools = [tool_of("f", {"a": {"type": "string"}})]
    value = "<parameter=x>1</parameter> and </function> or </tool_call>\n"
    assert calls_of(read(QWEN_XML, qwen(value), tools=tools)) == [("f", {"a": value})]
    value = "<arg_value>x</arg_value>, </tool_call>"
    text = f"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    assert calls_of(read(GLM, text, tools=tools)) == [("f", {"a": value})]


@pytest.mark.parametrize(
    "text",
    [
        qwen("1").replace("</function>", "<parameter=a>\n2\n</parameter>\n</function>"),
        qwen("1").replace("</function>", "</function>\n<function=g>\n</function>"),
        qwen("1").replace("<function=f>\n", ""),
        qwen("1").replace("</parameter>\n", ""),
        qwen("1").replace("</function>\n", ""),
        "<tool_call>\n</tool_call>",
    ],
)
def test_what_is_no_call_is_malformed(text: str) -> None:
    """One argument twice, two functions in one call, tags left out."""
    message = read(QWEN_XML, text, tools=[tool_of("f")])
    assert reasons_of(message) == ["malformed_structure"]
    assert message.content == text


def test_where_no_tools_were_offered_prose_may_name_the_syntax() -> None:
    """An answer that explains it is an answer."""
    for text in ("Use <function=f> to call it.", qwen("1"), "<tool_call>\n<function=f>\n<parameter=a>"):
        assert read(QWEN_XML, text, tools=()) == Message("assistant", text)


def test_a_call_without_its_tag_is_an_attempt() -> None:
    """Qwen3-Coder forgets `<tool_call>` at times."""
    text = "I edit.\n" + qwen("1").removeprefix("<tool_call>\n")
    message = read(QWEN_XML, f"{text} Done.", tools=[tool_of("f")])
    assert reasons_of(message) == ["malformed_structure"]
    assert message.content == f"{text} Done."


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (MINIMAX, '<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>\n</minimax:tool_call>'),
        (MINIMAX, '<invoke name="f">\n<parameter name="a">1'),
        (DSML, '<｜DSML｜invoke name="f">\n</｜DSML｜invoke>'),
        (SEED, "<function=f>\n</function>"),
    ],
)
def test_so_it_is_in_every_format_whose_calls_are_unmistakable(reader: Reader, text: str) -> None:
    """With its whole text; GLM's begin with a name alone."""
    message = read(reader, f"I edit. {text}", tools=[tool_of("f")])
    assert reasons_of(message) == ["malformed_structure"]
    assert message.malformed_tool_calls[0].raw == text
    assert message.content == f"I edit. {text}"


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (GLM, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'),
        (GLM, "<tool_call>f a b</tool_call>"),
        (QWEN_XML, '<tool_call>\n<function="f">\n</function>\n</tool_call>'),
        (QWEN_XML, "<tool_call>\n<function=f(a=1)>\n</function>\n</tool_call>"),
    ],
)
def test_what_can_be_no_name_is_malformed(reader: Reader, text: str) -> None:
    """Another format's call in these tags, or quotes around the name: no environment has such a tool."""
    message = read(reader, text, tools=[tool_of("f")])
    assert (reasons_of(message), message.content) == (["malformed_structure"], text)
    odd = tool_of("a b")
    assert calls_of(read(GLM, "<tool_call>a b</tool_call>", tools=[odd])) == [("a b", {})]
