"""Models that `renderers` has a family for, whose own template is another: their answers are the family's."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.kit.families import RendererFamily
from rollout.chat.messages import user
from rollout.codec.families import choose_family
from rollout.codec.local import Lane
from rollout.codec.tokenizer import template_ids
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


def dated(text: str, messages: Any) -> str:
    """Llama 3.2's template writes today's date, the family a fixed one."""
    return text.replace("26 Jul 2024", datetime.date(2031, 5, 17).strftime("%d %b %Y"))


def no_thinking(text: str, messages: Any) -> str:
    """Small Qwen3.5: thinking is off by default."""
    return text + "\n</think>\n\n" if text.endswith("<think>\n") else text


def joins_text(text: str, messages: Any) -> str:
    """DeepSeek-R1's template joins a call's arguments as text."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            "" + call["function"]["arguments"]
    return text


def plain_prompt(text: str, messages: Any) -> str:
    """gpt-oss's own generation prompt opens no channel."""
    return text.removesuffix("<|channel|>analysis<|message|>")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "sampled", "reader"),
    [
        ("llama-3", dated, '{"name": "add", "parameters": {"a": 1}}<|eot_id|>', "llama"),
        (
            "qwen3.5",
            no_thinking,
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call><|im_end|>",
            "qwen-xml",
        ),
        (
            "deepseek-r1",
            joins_text,
            "Well.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n"
            '```json\n{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
            "deepseek",
        ),
        (
            "gpt-oss",
            plain_prompt,
            "<|channel|>analysis<|message|>Well.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
            '<|constrain|>json<|message|>{"a": 1}<|call|>',
            "harmony",
        ),
    ],
)
def test_who_wrote_the_text_is_a_question_of_the_model(
    name: str, change: Callable[[str, Any], str], sampled: str, reader: str
) -> None:
    """Prompts as the template has them, and answers read as the family writes them: a call is a call."""
    family = RendererFamily(name)
    tokenizer = family.tokenizer

    def apply(
        messages: Any, tools: Any = None, add_generation_prompt: bool = False, tokenize: bool = False, **_: Any
    ) -> str:
        ids = family._renderer.render_ids(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        return change(tokenizer.decode(ids), messages)

    tokenizer.chat_template = "the family's own"
    tokenizer.apply_chat_template = apply
    lane = Lane(tokenizer, choose_family(tokenizer, "auto"), "all", family._renderer.get_stop_token_ids())
    prompt = template_ids(tokenizer, [user("1 + 1?")], TOOLS, {}, add_generation_prompt=True)
    message = lane.parse(prompt, tokenizer.encode(sampled, add_special_tokens=False), make_context(TOOLS, {}))
    assert [(call.name, call.parsed_arguments()) for call in message.tool_calls] == [("add", {"a": 1})]
    assert lane.reader is not None
    assert lane.reader.name == reader
