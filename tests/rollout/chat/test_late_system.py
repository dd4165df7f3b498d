"""Late system messages are folded so that a conversation grows as the one that was handed in does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.late_system import folded, late_places, neighbours
from rollout.chat.messages import Message, system, user

ROLES = st.lists(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), max_size=8)


def named(roles: list[str]) -> list[Message]:
    """A message of each role, each with a text of its own."""
    return [Message(role, f"{role} {at}") for at, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "right"),
    [
        (["system", "user", "system"], ["system 0", "user 1\n\nsystem 2"]),
        (["user", "assistant", "system", "user"], ["user 0", "assistant 1", "system 2\n\nuser 3"]),
        (["user", "tool", "system", "developer"], ["user 0", "tool 1", "system 2\n\ndeveloper 3"]),
        (["user", "system", "user"], ["user 0\n\nsystem 1", "user 2"]),
        (["user", "assistant", "system", "assistant"], ["user 0", "assistant 1", "system 2", "assistant 3"]),
    ],
)
def test_a_late_message_goes_to_the_user_beside_it(roles: list[str], right: list[str]) -> None:
    """To the one before, else to the one behind, else it is a user message of its own."""
    messages = named(roles)
    found = folded(messages, late_places(messages))
    assert [message.text for message in found] == right
    assert not late_places(found)


@given(ROLES)
def test_no_text_is_lost_and_none_moves(roles: list[str]) -> None:
    """Every text is there, in its order, and no role is there that was not, but a user's."""
    messages = named(roles)
    found = folded(messages, late_places(messages))
    assert "\n\n".join(message.text for message in found) == "\n\n".join(message.text for message in messages)
    assert {message.role for message in found} <= {*roles, "user"}


@given(ROLES, ROLES)
def test_what_was_sent_is_never_folded_in_another_way(before: list[str], behind: list[str]) -> None:
    """A conversation that goes on behind an answer starts with what it was folded to before."""
    messages = named(["user", *before])
    longer = [*messages, Message("assistant", "said"), *named(behind)]
    found = folded(messages, late_places(messages))
    assert folded(longer, late_places(longer))[: len(found)] == found
    for place in late_places(messages):
        assert neighbours(longer, place) == neighbours(messages, place)


def test_parts_stay_parts() -> None:
    """A text that is folded into a message with an image is a part beside it."""
    picture = {"type": "image_url", "image_url": {"url": "u"}}
    (found,) = folded([Message("user", (picture,)), system("Look.")], [1])
    assert found.content == (picture, {"type": "text", "text": "Look."})
    assert folded([user("a")], []) == [user("a")]
