"""Values of calls in the XML style: whitespace, and Qwen3.5's own booleans."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from benchmarks.kit.families import Family, make_family
from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.codec.local import Lane
from rollout.codec.types import make_context

SCHEMA = {
    "type": "object",
    "properties": {
        "s": {"type": "string"},
        "b": {"type": "boolean"},
        "n": {"type": ["integer", "null"]},
        "o": {"type": "object"},
    },
}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}]


@functools.cache
def made(name: str) -> tuple[Family, Lane]:
    family = make_family(name)
    return family, family.lane()


@pytest.mark.parametrize("name", ["qwen3.5", "qwen3.6", "glm-4.5", "glm-5", "minimax-m2", "nemotron-3", "laguna-xs.2"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"s": "    if x:\n        return 1\n"},
        {"s": "  x  "},
        {"s": "\n\n"},
        {"s": ""},
        {"s": "True"},
        {"s": "12"},
        {"b": True},
        {"b": False},
        {"n": None},
        {"n": 2**80},
        {"o": {"a": [True, None, "  é\n"], "b": {"c": 1.5}}},
    ],
)
def test_values_come_back_as_they_were_written(name: str, arguments: dict[str, Any]) -> None:
    """What a family's own rendering writes is read back, to the last space."""
    family, lane = made(name)
    call = ToolCall(function=Function("f", json.dumps(arguments)))
    said = Message("assistant", reasoning_content="Well.", tool_calls=(call,))
    ids = family.sampled([user("hi")], said, TOOLS)
    read = lane.parse(family.render([user("hi")], TOOLS), ids, make_context(TOOLS, {}))
    assert [each.parsed_arguments() for each in read.tool_calls] == [arguments]
