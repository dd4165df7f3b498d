"""Prompts are encoded once and extended: whatever was encoded before, the bytes are those of the whole prompt."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from rollout.messages import Message, user
from rollout.transport import MessagePrompt, TokenPrompt

TURNS = st.lists(st.tuples(st.lists(st.integers(0, 2**31 - 1), max_size=4), st.booleans()), max_size=6)


def on_wire(prompt: TokenPrompt | MessagePrompt) -> bytes:
    return msgspec.json.encode({"prompt": prompt.json()})


@given(st.lists(st.integers(0, 2**31 - 1), max_size=4), TURNS)
def test_an_extended_prompt_is_encoded_as_a_whole_one(first: list[int], turns: list[tuple[list[int], bool]]) -> None:
    """However many extensions, empty ones too, and whichever of them were sent; those before stay as they were."""
    ids, prompt, made = list(first), TokenPrompt(first), []
    for new, sent in turns:
        made.append((list(ids), prompt))
        if sent:
            prompt.json()
        ids, prompt = [*ids, *new], prompt.extended(new)
    for expected, one in [*made, (ids, prompt)]:
        assert one.ids.tolist() == expected
        assert on_wire(one) == msgspec.json.encode({"prompt": expected})


def test_what_was_encoded_is_not_encoded_again() -> None:
    """The next prompt's bytes start with this one's."""
    prompt = TokenPrompt(range(1_000))
    known = bytes(memoryview(prompt.json()))
    later = prompt.extended([7])
    assert later._before == (known, 1_000)
    assert bytes(memoryview(later.json())) == known[:-1] + b",7]"


@given(st.lists(st.text(max_size=5), min_size=1, max_size=6), st.integers(0, 6), st.booleans(), st.booleans())
def test_messages_are_encoded_once(texts: list[str], known: int, sent: bool, other: bool) -> None:
    """An earlier prompt helps where this one starts with its very messages, and changes nothing where not."""
    messages: list[Message] = [user(text) for text in texts]
    earlier = MessagePrompt([user("other")] if other else messages[:known])
    if sent:
        earlier.json()
    prompt = MessagePrompt(messages, before=earlier)
    assert on_wire(prompt) == msgspec.json.encode({"prompt": [message.as_openai() for message in messages]})
