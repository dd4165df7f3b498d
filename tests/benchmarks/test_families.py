"""What renderers read of a prompt is its end: shown that alone, every family does as it does with all of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from benchmarks.kit.families import make_family
from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.codec.families import families
from rollout.codec.renderer import PROMPT_END, RendererBridge
from rollout.codec.stand_in import NotExtendable
from rollout.codec.types import Previous, make_context

TOOLS = [{"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}]
CALL = ToolCall(id="call00001", function=Function("add", '{"a": 1}'))
RESULT = Message("tool", "2", tool_call_id="call00001", name="add")


def bridged(bridge: RendererBridge, prompt: Sequence[int], sampled: list[int], tail: list[Message]) -> list[int] | str:
    try:
        return bridge._bridge(prompt, sampled, tail, make_context(TOOLS, {}))
    except NotExtendable as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", families())
def test_the_end_of_a_prompt_is_enough(name: str) -> None:
    """After text, reasoning, a call, and a turn cut off, with users' and tools' tails."""
    family = make_family(name)
    bridge = family.lane().renderer
    assert bridge is not None
    history = [user("Begin.")]
    for number in range(60):
        history += [Message("assistant", f"Answer {number}."), user(f"And {number}, with some words more?")]
    prompt = family.render(history, TOOLS)
    assert len(prompt) > 4 * PROMPT_END
    for message, tail in (
        (Message("assistant", "Fine."), [user("Go on.")]),
        (Message("assistant", "Fine.", reasoning_content="Let me think."), [user("Go on."), user("Now.")]),
        (Message("assistant", tool_calls=(CALL,)), [RESULT]),
        (Message("assistant", "I add.", reasoning_content="Sum.", tool_calls=(CALL,)), [RESULT, user("Thanks.")]),
    ):
        whole = family.sampled(history, message, TOOLS)
        for sampled in (whole, whole[: len(whole) // 2]):
            end = prompt[-PROMPT_END:]
            assert bridged(bridge, end, sampled, tail) == bridged(bridge, prompt, sampled, tail)


@pytest.mark.slow
@pytest.mark.parametrize("name", families())
def test_patterns_write_what_the_family_does(name: str) -> None:
    """For texts of every kind, after text, reasoning and a call, ended or cut off: learnt or not, it is the same."""
    family = make_family(name)
    bridge = family.lane().renderer
    assert bridge is not None
    bridge.learnt_after = 1
    context, chance = make_context(TOOLS, {}), random.Random(name)
    alphabet = "ab Z09.,:;!?'\"\\/*#|[]{}()_-+=\n\t éß世👋\u200b"
    texts = ["x", " x", "x ", "\n", "{}", '"a"', "-1e5", "/think", "[INST]"]
    texts += ["".join(chance.choices(alphabet, k=chance.randrange(1, 40))) for _ in range(25)]
    history = [user("Begin.")]
    prompt = family.render(history, TOOLS)
    for message, tail in (
        (Message("assistant", "Fine."), [user("Go on.")]),
        (Message("assistant", "Fine.", reasoning_content="Let me think."), [user("Go on."), user("Now.")]),
        (Message("assistant", tool_calls=(CALL,)), [RESULT]),
        (Message("assistant", "I add.", tool_calls=(CALL,)), [RESULT, user("Thanks.")]),
    ):
        whole = family.sampled(history, message, TOOLS)
        x = family.tokenizer.encode("x", add_special_tokens=False)
        cuts = [whole[:end] for end in range(1, len(whole))]
        for sampled in (whole, [*x, *whole], *cuts, *([*x, *cut] for cut in cuts)):
            previous = Previous(prompt_ids=prompt, completion_ids=sampled, message=message)
            for text in ["first", "second", *(texts if sampled is whole else chance.sample(texts, 2))]:
                new = [msgspec.structs.replace(one, content=text[at:] or "y") for at, one in enumerate(tail)]
                assert bridge.extend(previous, new, context) == bridge._by_family(previous, new, context)
