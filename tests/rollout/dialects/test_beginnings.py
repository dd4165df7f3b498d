"""What a conversation begins with is known by one digest, and what it comes to is the same as without."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.kit.agents import ClaudeCode
from rollout.dialects.anthropic import Anthropic
from rollout.dialects.beginnings import Beginnings, settled_items
from rollout.dialects.chat import Chat
from rollout.dialects.dialect import Dialect
from rollout.dialects.memory import Memory
from rollout.dialects.responses import Responses

DIALECTS: dict[str, tuple[Dialect, str]] = {
    "chat": (Chat(), "messages"),
    "anthropic": (Anthropic(), "messages"),
    "responses": (Responses(), "input"),
}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Of few words, so that one goes on from another, leaves it in the middle, or says it again."""
    length = draw(st.integers(1, 14))
    words = st.sampled_from(["a", "b", "é\n", ""])
    ends = draw(st.integers(0, length))
    said = [{"role": ("user", "assistant")[at % 2], "content": "a"} for at in range(ends)]
    said += [
        {"role": draw(st.sampled_from(["user", "assistant"])), "content": draw(words)} for _ in range(ends, length)
    ]
    return [*said, {"role": "user", "content": "end"}]


@pytest.mark.slow
@pytest.mark.parametrize("name", DIALECTS)
@given(st.lists(conversations(), min_size=2, max_size=6), st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", ":")]))
def test_a_conversation_comes_to_the_same_with_and_without_a_beginning(
    name: str, asked: list[list[dict[str, Any]]], separators: tuple[str, str]
) -> None:
    """Whatever was read before: messages, marks and what was restored."""
    dialect, field = DIALECTS[name]
    memory = Memory()
    for messages in asked:
        body = json.dumps({"model": "m", "max_tokens": 9, field: messages}, separators=separators).encode()
        call, fresh = dialect.read(body, memory), dialect.read(body, Memory())
        assert call.messages == fresh.messages
        assert (call.mark, call.restored) == (fresh.mark, fresh.restored)


def test_a_turn_cuts_only_its_end_into_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the conversation is; and its messages are the very objects of the turn before."""
    agent, memory, dialect = ClaudeCode(), Memory(), Anthropic()
    seen, item = list[Any](), Memory.item

    def seen_item(self: Memory, raw: Any, *rest: Any) -> Any:
        seen.append(raw)
        return item(self, raw, *rest)

    monkeypatch.setattr(Memory, "item", seen_item)
    before = dialect.read(agent.body(), memory).messages
    for _ in range(40):
        agent.answered([{"type": "text", "text": "I look."}])
        seen.clear()
        messages = dialect.read(agent.body(), memory).messages
        assert len(seen) < 10
        assert all(one is other for one, other in zip(before, messages, strict=False))
        before = messages


def test_beginnings_are_bounded() -> None:
    """Those of the latest conversations are kept."""
    memory, dialect = Memory(), Chat()
    for at in range(100):
        messages = [{"role": "user", "content": f"{at} {n}"} for n in range(8)]
        dialect.read(json.dumps({"model": "m", "messages": messages}).encode(), memory)
    assert repr(memory._beginnings) == "<Beginnings of 16 conversations>"
    assert repr(Beginnings()) == "<Beginnings of 0 conversations>"


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ([], 0),
        ([False] * 4, 0),
        ([False] * 5, 1),
        ([False, True] * 4, 3),
        ([True] * 9, 0),
        ([False] * 3 + [True] * 9, 3),
    ],
)
def test_what_settles_ends_at_a_message_that_is_not_the_models(said: list[bool], count: int) -> None:
    """A run of the model's is read as one, and the last items may change their bytes."""
    assert settled_items(said) == count
