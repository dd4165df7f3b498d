"""What a proof is remembered by tells apart histories that a template may treat otherwise, and no others."""

from __future__ import annotations

import pytest

from rollout.chat.messages import Function, Message, ToolCall, system, user
from rollout.codec.walked import and_found, kind_of

ANSWER, RESULT = Message("assistant", "words"), Message("tool", "words", tool_call_id="c0", name="f")


def test_answers_are_of_one_kind_by_what_a_template_finds_in_them() -> None:
    """Whatever their words; where it may be anything, each is a kind of its own."""
    other = Message("assistant", "others")
    assert kind_of(ANSWER, False) == kind_of(other, False) == kind_of(other, None)
    assert kind_of(ANSWER, ("</think>",)) != kind_of(ANSWER, False)
    assert kind_of(ANSWER, True) != kind_of(other, True)


@pytest.mark.parametrize("message", [user("words"), system("words"), RESULT])
def test_of_other_messages_their_role_is_the_kind(message: Message) -> None:
    """What is found in them is told one after another, not here."""
    assert kind_of(message, True) == kind_of(message, False) == kind_of(message, None)


def test_what_is_found_is_told_in_its_order() -> None:
    """Two switches are another history the other way round; what the model said, and what holds nothing, adds none."""
    on, off = (user("/think"), ("/think",)), (user("/no_think"), ("/no_think",))
    there = and_found(and_found(b"", *on), *off)
    back = and_found(and_found(b"", *off), *on)
    assert len({there, back, and_found(b"", *on), b""}) == 4
    assert and_found(there, user("hi"), False) == there
    assert and_found(there, ANSWER, ("/think",)) == there


def test_where_nobody_can_know_each_text_that_was_typed_is_another() -> None:
    """A tool's result is told by its being there: each would cost a rendering of its own."""
    assert and_found(b"", user("a"), None) != and_found(b"", user("b"), None)
    assert and_found(b"", RESULT, None) == b""
    assert and_found(b"", RESULT, True) != b""


def test_what_a_template_may_see_of_an_answer_is_in_its_kind() -> None:
    """Whether it has a text, how many calls, whether it reasoned, and whose it is: Cohere's count the calls."""
    one, two = (ToolCall(id=f"c{at}", function=Function("f", "{}")) for at in range(2))
    answers = [
        ANSWER,
        Message("assistant"),
        Message("assistant", tool_calls=(one,)),
        Message("assistant", tool_calls=(one, two)),
        Message("assistant", "words", tool_calls=(one,)),
        Message("assistant", "words", reasoning_content="so"),
        Message("assistant", "words", name="ann"),
    ]
    assert len({kind_of(answer, False) for answer in answers}) == len(answers)
