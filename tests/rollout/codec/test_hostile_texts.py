"""Whatever a text is, the bridge is what the template writes, its markers are text, and nothing raises."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.kit.families import RendererFamily
from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.codec.families import families
from rollout.codec.local import Lane
from rollout.codec.renderer import RendererBridge
from rollout.codec.tokenizer import template_text
from rollout.codec.types import Bridged, Context, Previous, make_context
from tests.rollout.codec.hostile import HOSTILE

CALL = ToolCall(function=Function("f", '{"a": 1}'), id="call00000")
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
TRIMS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
LOOKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "{% if m.content.startswith('user') %}!{% endif %}<|im_end|>\n{% endfor %}"
)
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

_LANES: dict[str, Lane] = {}


def lane_of(tokenizer: Any, kind: str) -> Lane:
    """A lane, made once: what it has learnt is on trial, too."""
    if kind not in _LANES:
        own = copy.deepcopy(tokenizer)
        if kind in ("trims", "looks"):
            own.chat_template = (TRIMS if kind == "trims" else LOOKS) + PROMPT
        _LANES[kind] = Lane(own, "qwen3" if kind == "family" else None, "all", [tokenizer.eos_token_id])
        if kind == "family":
            assert _LANES[kind].renderer is not None
            _LANES[kind].renderer.learnt_after = 1  # type: ignore[union-attr]  # said above
    return _LANES[kind]


def tail_of(role: str, texts: Sequence[str]) -> tuple[Message, list[Message], list[Any]]:
    if role == "user":
        return Message("assistant", "Yes."), [user(text) for text in texts], []
    said = Message("assistant", tool_calls=(CALL,))
    return said, [Message("tool", texts[0], tool_call_id=CALL.id, name="f")], TOOLS


@pytest.mark.slow
@example(kind="family", role="user", texts=["<|im_start|>e\u0301"], earlier="<think>e\u0301")
@example(kind="looks", role="user", texts=["</think><|im_start|>"], earlier="<|im_start|>")
@settings(max_examples=150)
@given(
    kind=st.sampled_from(["family", "template", "trims", "looks"]),
    role=st.sampled_from(["user", "tool"]),
    texts=st.lists(HOSTILE, min_size=1, max_size=2),
    earlier=HOSTILE,
)
def test_a_bridge_is_the_templates_text_whatever_it_is(
    tokenizer: Any, kind: str, role: str, texts: list[str], earlier: str
) -> None:
    """Its text is the end of the whole conversation's, and it has no more markers than around harmless words."""
    lane, (said, tail, tools) = lane_of(tokenizer, kind), tail_of(role, texts)
    context, end = make_context(tools, {}), tokenizer.eos_token_id
    history = [user(earlier)]
    turn = Previous(prompt_ids=[1], completion_ids=[*tokenizer.encode("Yes."), end], message=said, history=history)
    found = lane.extend(turn, tail, context)
    if not isinstance(found, Bridged):
        assert re.search("[\U000f0000-\U000ffffd]", "".join(texts)), found.reason
        return
    own = lane._tokenizer._tokenizer
    whole = template_text(own, [*history, said, *tail], tools, {}, add_generation_prompt=True)
    # Qwen's tokenizer composes characters (NFC): its ids are of that text.
    assert own.backend_tokenizer.normalizer.normalize_str(whole).endswith(lane.decode(found.ids))
    words = lane.extend(turn, tail_of(role, ["x"] * len(texts))[1], context)
    assert isinstance(words, Bridged)
    markers = lane._tokenizer.markers_in
    assert markers(found.ids) == markers(words.ids)


def written_by(bridge: RendererBridge, turn: Previous, tail: list[Message], context: Context, *, learnt: bool) -> Any:
    """What is written, nothing where it declines, or the kind of what is raised."""
    try:
        found = (bridge.extend if learnt else bridge._by_family)(turn, tail, context)
        return found.ids if isinstance(found, Bridged) else None
    except Exception as error:  # a family that raises for a text has no pattern, and raises again
        return type(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", families())
def test_what_is_learnt_of_a_family_stays_equal_to_it(name: str) -> None:
    """Every hand-written family, by its pattern and asked anew, over hostile texts and its own markers in them.

    As a user's message and as two, as a tool's result and with a user's message behind it; behind a turn that ended,
    and behind one that was cut off. All in one bridge, so that what was learnt of one is on trial with the others.
    """
    family = RendererFamily(name)
    bridge = RendererBridge(family.tokenizer, name, "all")
    bridge.learnt_after = 1
    context = make_context(TOOLS, {})
    prompt = family.render([user("one")], TOOLS)
    turns = []
    for said in (Message("assistant", "Yes."), Message("assistant", tool_calls=(CALL,))):
        sampled = family.sampled([user("one")], said, TOOLS)
        ends = (sampled, sampled[:-1], sampled[: len(sampled) // 2])
        turns.append([Previous(prompt_ids=prompt, completion_ids=ids, message=said) for ids in ends])
    markers = st.sampled_from([str(token.content) for token in family.tokenizer.added_tokens_decoder.values()])
    odd = st.sampled_from(["", " ", "\ud800", "a\udfffb", "\ud83d\ude00", "e\u0301", "\u212b", "x" * 20_000])
    texts = st.one_of(HOSTILE, st.tuples(HOSTILE, markers, HOSTILE).map("".join), odd, st.text(max_size=20))

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(["user", "users", "tool", "tool and user"]), st.integers(0, 2), texts, texts)
    def same(shape: str, end: int, text: str, other: str) -> None:
        # As they come in: what is no UTF-8 is mended at the door.
        one, two = (Message.of({"role": "user", "content": each}) for each in (text, other))
        result = Message("tool", one.content, tool_call_id=CALL.id, name="f")
        tail = {"user": [one], "users": [one, two], "tool": [result], "tool and user": [result, two]}[shape]
        turn = turns["tool" in shape][end]
        asked = written_by(bridge, turn, tail, context, learnt=False)
        assert written_by(bridge, turn, tail, context, learnt=True) == asked

    same()
