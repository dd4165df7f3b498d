"""gpt-oss behind a server's prompt, which ends at `assistant`, and behind the family's, which opens a channel."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from benchmarks.kit.families import Family, make_family
from rollout.chat.messages import user
from rollout.codec.types import make_context

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'


@functools.cache
def gpt_oss() -> Family:
    return make_family("gpt-oss")


@pytest.mark.slow
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize(
    ("sampled", "calls", "text"),
    [
        (f"Well.<|end|><|start|>assistant{CALL}", [("add", {"a": 1})], None),
        (
            'Well.<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>',
            [("add", {"a": 1})],
            None,
        ),
        ("Well.<|end|><|start|>assistant<|channel|>final<|message|>It is 2.<|return|>", [], "It is 2."),
    ],
)
def test_harmony_is_read_behind_either_prompt(opened: bool, sampled: str, calls: list[Any], text: str | None) -> None:
    """Reasoning from the analysis channel, text from the final one, calls from commentary."""
    family = gpt_oss()
    channel = family.tokenizer.encode("<|channel|>analysis<|message|>")
    prompt = family.render([user("1 + 1?")], TOOLS)
    assert prompt[-len(channel) :] == channel
    ids = family.tokenizer.encode(sampled)
    prompt, ids = (prompt, ids) if opened else (prompt[: -len(channel)], channel + ids)
    message = family.lane().parse(prompt, ids, make_context(TOOLS, {}))
    assert [(call.name, call.parsed_arguments()) for call in message.tool_calls] == calls
    assert (message.reasoning_content, message.content) == ("Well.", text)
