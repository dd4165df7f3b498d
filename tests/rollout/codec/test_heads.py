"""Short conversations that stand for long ones are conversations themselves."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message, system, user
from rollout.codec.heads import SHORT, behind, rough, short_head, shortened
from rollout.codec.walked import Walked

ROLES = st.sampled_from(["system", "user", "tool"])


@given(ROLES, st.booleans())
def test_a_message_stands_in_a_conversation_that_goes_on_with_the_assistant(role: str, first: bool) -> None:
    """The last message is a user's or a tool's, and a tool's has a call before it."""
    made = behind(Message(role, "x"), first)
    assert made[-1].role in ("user", "tool")
    for before, message in itertools.pairwise(made):
        if message.role == "tool":
            assert [call.id for call in before.tool_calls] == [message.tool_call_id]


def test_what_is_seen_is_a_head_where_it_can_stand_alone() -> None:
    """Users' messages have an answer between them; a result of a tool, or a late system message, needs its history."""
    history = [system("S"), user("a"), Message("assistant", "b"), user("c"), system("late"), Message("tool", "d")]
    assert short_head(history, [history[0]]) == [history[0], user(".")]
    assert short_head(history, [history[1], history[3]]) == [history[1], Message("assistant", "."), history[3]]
    assert short_head(history, [history[4]]) is None
    assert short_head(history, [history[5]]) is None


def test_long_texts_are_left_out_and_long_histories_are_counted_by_doubles() -> None:
    """What is short stays as it is."""
    short = Message("assistant", "x", reasoning_content="y")
    assert shortened(short) is short
    long = shortened(Message("assistant", "x" * SHORT, reasoning_content="y"))
    assert (long.content, long.reasoning_content) == (".", ".")
    assert shortened(Message("assistant", None, reasoning_content="y" * 99)).content is None
    assert [rough(Walked([user("x")] * size))[0] for size in (3, 16, 17, 31, 32)] == [3, 16, -5, -5, -6]
    assert [rough(Walked(calls=calls))[1] for calls in (0, 1, 8, 9, 15, 16)] == [0, 1, 8, -4, -4, -5]
