"""Echo: conversations of a known length."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from envs.echo import Echo, filler
from rollout.chat.messages import Message
from rollout.env import Step


def played(env: Echo, task: dict[str, int]) -> tuple[list[str], float]:
    """What the environment says until it is done, and the reward."""
    opening = env.reset(task)
    assert isinstance(opening, Sequence)
    texts, reward = [Message.of(message).text for message in opening], 0.0
    while True:
        step: Step = env.step(Message("assistant", "Go on."))
        texts += [Message.of(message).text for message in step.messages]
        reward += step.reward
        if step.done:
            return texts, reward


@pytest.mark.parametrize("chars", [0, 1, 5, 44, 400, 1234])
def test_filler_has_exactly_the_length_asked_for(chars: int) -> None:
    """Every length gives exactly that many characters, none of them a space at the end."""
    assert len(filler(chars)) == chars
    assert filler(chars) == filler(chars).rstrip()


def test_a_conversation_has_its_turns_and_then_its_reward() -> None:
    """Each turn is numbered and as long as asked; playing all of them earns 1."""
    texts, reward = played(Echo(turns=3, chars=50), {"index": 4})
    assert [text.partition(":")[0] for text in texts] == ["turn 1", "turn 2", "turn 3"]
    assert all(len(text.partition(": ")[2]) == 50 for text in texts)
    assert reward == 1.0


def test_the_same_task_says_the_same() -> None:
    """A task's index decides the filler."""
    assert played(Echo(), {"index": 1}) == played(Echo(), {"index": 1})
    assert played(Echo(), {"index": 1}) != played(Echo(), {"index": 2})


def test_impossible_arguments_are_refused() -> None:
    """No turn at all is a wrong call."""
    with pytest.raises(ValueError, match="turns >= 1"):
        Echo(turns=0)
