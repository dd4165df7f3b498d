"""Guess the number: user feedback over several turns."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from envs.guess_number import GuessNumber
from rollout.chat.messages import Message
from rollout.env import Step


def started(target: int, **arguments: int) -> GuessNumber:
    """A game that waits for its first guess."""
    env = GuessNumber(**arguments)
    env.reset({"target": target})
    return env


def said(step: Step) -> str:
    """The text of the one message of a step."""
    (message,) = step.messages
    return Message.of(message).text


def guess(env: GuessNumber, text: str) -> Step:
    """One assistant message."""
    return env.step(Message("assistant", text))


def test_feedback_points_to_the_number() -> None:
    """Too low is told higher, too high is told lower, and each costs one guess."""
    env = started(40)
    assert said(guess(env, "32")) == "Higher than 32. 6 guesses left."
    assert said(guess(env, "I say 48!")) == "Lower than 48. 5 guesses left."


def test_finding_the_number_earns_the_reward() -> None:
    """The right guess ends the game with reward 1, also on the last guess."""
    env = started(7, guesses=2)
    assert said(guess(env, "6")) == "Higher than 6. 1 guess left."
    step = guess(env, "7")
    assert (step.done, step.reward, step.metrics) == (True, 1.0, {"guesses": 2.0, "malformed": 0.0, "found": 1.0})


def test_running_out_of_guesses_earns_nothing() -> None:
    """The last wrong guess ends the game without a message."""
    step = guess(started(7, guesses=1), "8")
    assert (step.done, step.reward, list(step.messages)) == (True, 0.0, [])


@pytest.mark.parametrize("text", ["", "no idea", "0", "65", "-5", "9" * 5000])
def test_an_answer_without_a_number_in_range_costs_a_guess(text: str) -> None:
    """What is no guess gets a reply, is counted, and does not raise."""
    step = guess(started(5), text)
    assert said(step) == "Please answer with a number from 1 to 64. 6 guesses left."
    assert step.metrics["malformed"] == 1.0


def test_reasoning_is_not_an_answer() -> None:
    """Numbers in the reasoning do not count as the guess."""
    step = started(5).step(Message("assistant", None, "over 4, under 6: 5"))
    assert step.reward == 0.0


def test_halving_always_wins_within_seven() -> None:
    """The default game can be won every time: there is something to learn."""
    for target in range(1, 65):
        env, over, under, step = started(target), 0, 65, Step()
        while not step.done:
            middle = (over + under) // 2
            step = guess(env, str(middle))
            over, under = (middle, under) if target > middle else (over, middle)
        assert step.reward == 1.0


def test_tasks_follow_the_seed() -> None:
    """The same seed gives the same numbers, all in range."""
    env = GuessNumber(low=3, high=9)
    tasks = list(env.tasks(50, seed=1))
    assert tasks == list(env.tasks(50, seed=1)) != list(env.tasks(50, seed=2))
    assert {task["target"] for task in tasks} == set(range(3, 10))


def test_a_task_out_of_range_is_refused() -> None:
    """A task file with an impossible number is told so at reset."""
    with pytest.raises(ValueError, match="from 1 to 64"):
        GuessNumber().reset({"target": 99})
    assert isinstance(GuessNumber().reset({"target": 9}), Sequence)
