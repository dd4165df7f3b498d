"""Case tokens/family_by_three_samples: a fine-tune whose template differs where a family's choice does not look."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.codec.families import choose_family
from rollout.codec.local import Lane
from rollout.codec.tokenizer import load_tokenizer, template_ids
from rollout.codec.types import Bridged, Previous, make_context
from transports.embedded import MODEL_DIR

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
USER_LINE = "'<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n'"
OPENED = """        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
"""
CLOSED = """        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
"""
NO_THINKING = """    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
"""
RESULT = "{{- content }}\n        {{- '\\n</tool_response>' }}"
SAID = Message("assistant", "x")
OFF = {"enable_thinking": False}


def called(count: int) -> Message:
    calls = (ToolCall(function=Function("f", '{"a": 1}'), id=f"call{i:05d}") for i in range(count))
    return Message("assistant", tool_calls=tuple(calls))


def results(*texts: str) -> list[Message]:
    return [Message("tool", text, tool_call_id=f"call{i:05d}", name="f") for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("changed", "said", "tail", "args"),
    [
        pytest.param(
            lambda t: t.replace(OPENED, "        {{- '<|im_start|>user' }}\n").replace(
                CLOSED, "        {{- '<|im_end|>\\n' }}\n"
            ),
            called(2), results("r1", "r2"), {}, id="a turn for each result",
        ),
        pytest.param(
            lambda t: t.replace(RESULT, RESULT.replace("content", "content | trim")),
            called(1), results("  r1\n"), {}, id="results trimmed",
        ),
        pytest.param(
            lambda t: t.replace(RESULT, RESULT.replace("content", "content | trim")),
            called(1), results("r1"), {}, id="a result that nothing is trimmed of",
        ),
        pytest.param(
            lambda t: t.replace(USER_LINE, USER_LINE.replace("content", "content | trim")),
            SAID, [user("  why?\n")], {}, id="users trimmed",
        ),
        pytest.param(
            lambda t: t.replace("{{- '<think>\\n\\n</think>\\n\\n' }}", "{{- '<think></think>' }}"),
            SAID, [user("why?")], OFF, id="another empty block",
        ),
        pytest.param(lambda t: t.replace(NO_THINKING, ""), SAID, [user("why?")], OFF, id="an unknown argument"),
        pytest.param(
            lambda t: t.replace(USER_LINE, USER_LINE.replace("content", "content.replace('(secret)', '')")),
            SAID, [user("the (secret) word")], {}, id="a word left out",
        ),
    ],
)  # fmt: skip
def test_where_family_and_template_differ_the_template_wins(
    changed: Callable[[str], str], said: Message, tail: list[Message], args: dict[str, Any]
) -> None:
    """The bridge is the template's own text, by whichever bridge, from the first turn to the fiftieth."""
    tokenizer = copy.deepcopy(load_tokenizer(str(MODEL_DIR)))
    template = changed(tokenizer.chat_template)
    assert template != tokenizer.chat_template
    tokenizer.chat_template = template
    lane = Lane(tokenizer, choose_family(tokenizer, "auto"), "all", [tokenizer.eos_token_id])
    tools = TOOLS if said.tool_calls else []
    prompt = template_ids(tokenizer, [user("hi")], tools, args, add_generation_prompt=True)
    whole = template_ids(tokenizer, [user("hi"), said, *tail], tools, args, add_generation_prompt=True)
    sampled = [*tokenizer.encode("x"), tokenizer.eos_token_id]
    turn = Previous(prompt_ids=prompt, completion_ids=sampled, message=said, history=[user("hi")])
    for _ in range(50):
        found = lane.extend(turn, tail, make_context(tools, args))
        assert isinstance(found, Bridged)
        assert whole[-len(found.ids) :] == found.ids
