"""Templates of many habits at once, over any history: a bridge is what the template writes, or there is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Function, Message, ToolCall, system, user
from rollout.codec.local import Lane
from rollout.codec.tokenizer import template_ids
from rollout.codec.types import Bridged, Previous, make_context

MARKERS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>")

#: Each habit is one of these ways to write.
CONTENT = ["{{ m.content }}", "{{ m.content | trim }}", "{{ m.content.replace('(x)', '') }}"]
SYSTEM = ["in place", "in the last user turn", "in the first user turn"]
TOOL = ["role", "as user", "left out", "refused", "under the call's id", "in one turn"]
SWITCH = ["none", "/no_think anywhere", "/no_think in the system text", "the last of /think and /no_think"]
COUNT = ["none", "more than 6 messages", "numbered", "odd"]
LOOK = ["none", "an earlier call", "an earlier reasoning", "a tool's result"]


def template_of(content: str, where: str, tool: str, switch: str, count: str, look: str) -> str:
    """A template with these habits."""
    start, end = "<|im_start|>", "<|im_end|>\n"
    number = "{{ loop.index }} " if count == "numbered" else ""
    put = {
        "in the last user turn": "{% if loop.last and ns.sys %}{{ ns.sys }}\n\n{% endif %}",
        "in the first user turn": "{% if ns.first and ns.sys %}{{ ns.sys }}\n\n{% endif %}{% set ns.first = false %}",
    }.get(where, "")
    tools = {
        "role": f"{start}tool\n{content}{end}",
        "as user": f"{start}user\n[{content}]{end}",
        "left out": "",
        "refused": "{{ raise_exception('no tools') }}",
        "under the call's id": f"{start}tool {{{{ m.tool_call_id }}}}\n{content}{end}",
        "in one turn": "{% if loop.previtem is defined and loop.previtem.role != 'tool' %}"
        + f"{start}user\n"
        + "{% endif %}"
        f"<r>{content}</r>" + "{% if loop.last or loop.nextitem.role != 'tool' %}" + end + "{% endif %}",
    }[tool]
    found = {
        "none": "",
        "/no_think anywhere": "{% if '/no_think' in m.content %}{% set ns.think = false %}{% endif %}",
        "/no_think in the system text": (
            "{% if m.role == 'system' and '/no_think' in m.content %}{% set ns.think = false %}{% endif %}"
        ),
        "the last of /think and /no_think": (
            "{% if m.role in ('user', 'system') %}{% if m.content.endswith('/no_think') %}{% set ns.think = false %}"
            "{% elif m.content.endswith('/think') %}{% set ns.think = true %}{% endif %}{% endif %}"
        ),
    }[switch]
    counted = {"more than 6 messages": "messages | length > 6", "odd": "messages | length is odd"}.get(count, "false")
    seen = {
        "none": "",
        "an earlier call": "{% if m.tool_calls %}{% set ns.seen = true %}{% endif %}",
        "an earlier reasoning": "{% if m.reasoning_content %}{% set ns.seen = true %}{% endif %}",
        "a tool's result": "{% if m.role == 'tool' and 'ERROR' in m.content %}{% set ns.seen = true %}{% endif %}",
    }[look]
    kept = f"{start}system\n{content}{end}" if where == "in place" else "{% set ns.sys = m.content %}"
    return (
        "{% set ns = namespace(think=true, seen=false, first=true, sys='') %}"
        "{% for m in messages %}" + found + seen + "{% endfor %}{% for m in messages %}"
        "{% if m.role == 'system' %}" + kept + "{% elif m.role == 'tool' %}" + tools + "{% else %}"
        + start + number + "{{ m.role }}\n{% if m.role == 'user' %}" + put + "{% endif %}" + content
        + "{% for c in m.tool_calls or [] %}<c>{{ c.function | tojson }}</c>{% endfor %}" + end
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{{ '' if ns.think else '<think>\n\n</think>' }}{{ '!' if ns.seen }}{{ '?' if " + counted + " }}{% endif %}"
    )  # fmt: skip


TEXTS = st.sampled_from(
    [
        "hi",
        " hi ",
        "a\nb\n",
        "/no_think",
        "be brief /no_think",
        "now /think",
        "the (x) word",
        "ERROR 1",
        "Quartz",
        "user",
    ]
)


@st.composite
def turns(draw: Any, at: int) -> list[Message]:
    """What the model said, and what was added behind it."""
    if draw(st.booleans()):
        text = draw(st.sampled_from(["yes", "", "no /no_think"]))
        return [Message("assistant", text or None), user(draw(TEXTS))]
    count = draw(st.integers(1, 2))
    calls = tuple(ToolCall(id=f"c{at}x{i:06d}", function=Function("f", '{"a": 1}')) for i in range(count))
    said = Message("assistant", tool_calls=calls, reasoning_content=draw(st.sampled_from([None, "r"])))
    return [said, *(Message("tool", draw(TEXTS), tool_call_id=call.id, name="f") for call in calls)]


@st.composite
def talks(draw: Any) -> tuple[list[Message], Message, list[Message]]:
    """(history, what the model said, tail)."""
    history = [system(draw(TEXTS))] if draw(st.booleans()) else []
    history.append(user(draw(TEXTS)))
    for at in range(draw(st.integers(0, 4))):
        history += draw(turns(at))
    said, *tail = draw(turns(9))
    return history, said, tail


HABITS = st.tuples(*map(st.sampled_from, (CONTENT, SYSTEM, TOOL, SWITCH, COUNT, LOOK)))


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(habits=HABITS, talked=st.lists(talks(), min_size=1, max_size=3))
def test_a_bridge_is_the_end_of_the_whole_or_there_is_none(
    habits: tuple[str, ...], talked: list[tuple[list[Message], Message, list[Message]]]
) -> None:
    """Over several conversations with one lane, so that what is remembered of one is no other's."""
    tokenizer = small_tokenizer(MARKERS, eos="<|im_end|>", chat_template=template_of(*habits))
    lane, end = Lane(tokenizer, None, "all", [tokenizer.eos_token_id]), tokenizer.eos_token_id
    for history, said, tail in talked:
        turn = Previous(prompt_ids=[1], completion_ids=[end], message=said, history=history)
        found = lane.extend(turn, tail, make_context([], {}))
        if not isinstance(found, Bridged):
            assert habits[2] in ("left out", "refused") or habits[4] in ("numbered", "odd") or "said" in found.reason
            continue
        try:
            whole = template_ids(tokenizer, [*history, said, *tail], [], {}, add_generation_prompt=True)
        except Exception:  # a history that the template refuses, behind which what was sampled stands all the same
            continue
        assert whole[-len(found.ids) :] == found.ids
