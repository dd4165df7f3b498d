"""Calculator: tool calls, right and wrong."""

from __future__ import annotations

import json

import pytest

from envs.calculator import Calculator, evaluate
from rollout.chat.messages import Function, MalformedToolCall, Message, ToolCall
from rollout.env import Step
from rollout.errors import MessageError


def call(name: str, call_id: str = "call_0", **arguments: object) -> ToolCall:
    """A well-formed call."""
    return ToolCall(function=Function(name, json.dumps(arguments)), id=call_id)


def asked(answers: list[int], **arguments: int) -> Calculator:
    """A question that waits for its first answer."""
    env = Calculator(**arguments)
    env.reset({"question": "?", "answers": answers})
    return env


def replies(step: Step) -> list[Message]:
    """The step's messages."""
    return [Message.of(message) for message in step.messages]


def test_each_call_of_a_turn_gets_its_own_result() -> None:
    """Two calls in one turn are answered by two tool messages that name their calls."""
    calls = (call("add", "a", a=2, b=3), call("multiply", "b", a=4, b=5))
    first, second = replies(asked([5]).step(Message("assistant", tool_calls=calls)))
    assert (first.role, first.text, first.tool_call_id) == ("tool", "5", "a")
    assert (second.role, second.text, second.tool_call_id) == ("tool", "20", "b")


@pytest.mark.parametrize(
    ("text", "answers", "reward"),
    [
        ("The answer is 5.", [5], 1.0),
        ("2 and 3 make 5", [5], 1.0),
        ("The answer is 6.", [5], 0.0),
        ("", [5], 0.0),
        ("The answers are 5 and 6.", [5, 6], 1.0),
        ("The answers are 6 and 5.", [5, 6], 0.0),
    ],
)
def test_the_last_numbers_of_the_final_text_are_the_answer(text: str, answers: list[int], reward: float) -> None:
    """A turn without calls ends the rollout; its last numbers decide."""
    step = asked(answers).step(Message("assistant", text))
    assert (step.done, step.reward) == (True, reward)


@pytest.mark.parametrize(
    ("wrong", "reply"),
    [
        (call("divide", a=1, b=2), "error: no tool named 'divide'; there are add, subtract, multiply"),
        (call("add", a=1), "error: add needs the numbers a and b"),
        (call("add", a="1", b=2), "error: add needs the numbers a and b"),
        (call("add", a=True, b=2), "error: add needs the numbers a and b"),
        (call("multiply", a=1e300, b=2), "error: multiply takes numbers up to 1000000000000"),
        (call("multiply", a=float("nan"), b=2), "error: multiply takes numbers up to 1000000000000"),
    ],
)
def test_a_wrong_call_is_answered_with_an_error(wrong: ToolCall, reply: str) -> None:
    """The model is told what was wrong, and the rollout goes on."""
    step = asked([1]).step(Message("assistant", tool_calls=(wrong,)))
    assert [message.text for message in replies(step)] == [reply]
    assert not step.done
    assert step.metrics["tool_errors"] == 1.0


def test_a_call_that_cannot_be_read_is_answered_by_a_user_message() -> None:
    """A malformed call has no id to answer to: a user message after the tool results says so."""
    broken = (MalformedToolCall("<tool_call>{", "invalid_json"),)
    message = Message("assistant", "x", tool_calls=(call("add", a=1, b=1),), malformed_tool_calls=broken)
    result, complaint = replies(asked([2]).step(message))
    assert (result.role, complaint.role) == ("tool", "user")
    assert "invalid_json" in complaint.text


def test_endless_calling_ends() -> None:
    """After the last turn the rollout is done without a reward."""
    env = asked([2], turns=2)
    message = Message("assistant", tool_calls=(call("add", a=1, b=1),))
    assert not env.step(message).done
    assert (env.step(message).done, env.step(message).reward) == (True, 0.0)


def test_every_task_is_solved_by_its_plan() -> None:
    """Playing a task's planned calls and saying their results earns the reward."""
    env = Calculator()
    for task in env.tasks(200, seed=3):
        env.reset(task)
        results: list[str] = []
        for turn in task["plan"]:
            calls = tuple(call(name, f"call_{n}", a=a, b=b) for n, (name, a, b) in enumerate(turn))
            results = [message.text for message in replies(env.step(Message("assistant", tool_calls=calls)))]
        assert env.step(Message("assistant", " and ".join(results))).reward == 1.0


def test_tasks_follow_the_seed() -> None:
    """The same seed gives the same questions."""
    env = Calculator()
    assert list(env.tasks(20, seed=1)) == list(env.tasks(20, seed=1)) != list(env.tasks(20, seed=2))


def test_fractions_are_numbers_too() -> None:
    """Floating-point operands are computed and written short."""
    assert evaluate("add", {"a": 1.5, "b": 2}) == "3.5"
    with pytest.raises(MessageError):
        evaluate("add", {})
