"""Word questions answered with tools: calls, several in one turn, chained over turns."""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from envs.adapters.common import unread
from rollout.chat.messages import Message, ToolCall, tool, user
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import MessageError

_INTEGER = re.compile(r"-?\d+")
_NAMES = ("Ada", "Ben", "Eve", "Kim", "Leo", "Mia", "Sam", "Tom")
_THINGS = ("apples", "books", "coins", "eggs", "pens", "stones")

#: Larger operands are refused: a model that loops on `multiply` would otherwise fill the memory.
_LARGEST_OPERAND = 10**12

_OPERATIONS: Mapping[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
}


def _specification(name: str, description: str) -> dict[str, Any]:
    number = {"type": "number"}
    parameters = {"type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


class Calculator(Env):
    """Answer an arithmetic word question with the tools add, subtract and multiply; reward 1 when right."""

    blocks = False
    tools = (
        _specification("add", "a plus b"),
        _specification("subtract", "a minus b"),
        _specification("multiply", "a times b"),
    )

    def __init__(self, largest: int = 30, turns: int = 6) -> None:
        if largest < 2 or turns < 1:
            raise ValueError(f"calculator needs largest >= 2 and turns >= 1, not largest={largest} turns={turns}")
        self.largest = largest
        self.turns = turns
        self._answers: list[int] = []
        self._turn = 0
        self._calls = 0
        self._errors = 0

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` questions of one operation, of two chained ones, or of two independent ones."""
        draw = random.Random(seed)
        return (question(draw, self.largest) for _ in range(n))

    def reset(self, task: Task) -> Sequence[MessageLike]:
        """Asks the task's question."""
        text, answers = task.get("question"), task.get("answers")
        if not isinstance(text, str) or not isinstance(answers, Sequence) or not answers:
            raise ValueError(f"a calculator task needs a question and its answers, not {dict(task)!r}")
        self._answers = [int(answer) for answer in answers]
        self._turn = self._calls = self._errors = 0
        return [user(text)]

    def step(self, message: Message) -> Step:
        """Runs the calls of one turn, or checks the final answer where there are none."""
        self._turn += 1
        if not message.tool_calls and not message.malformed_tool_calls:
            return Step(done=True, reward=float(self._right(message.text)), metrics=self._metrics())
        replies = [tool(self._call(call), call=call) for call in message.tool_calls]
        if message.malformed_tool_calls:
            self._errors += len(message.malformed_tool_calls)
            replies.append(user(unread(message)))
        done = self._turn >= self.turns
        return Step(messages=() if done else replies, done=done, metrics=self._metrics())

    def _call(self, call: ToolCall) -> str:
        self._calls += 1
        try:
            return evaluate(call.name, call.parsed_arguments())
        except MessageError as error:
            self._errors += 1
            return f"error: {error}"

    def _right(self, text: str) -> bool:
        numbers = _INTEGER.findall(text)[-len(self._answers) :]
        return numbers == [str(answer) for answer in self._answers]

    def _metrics(self) -> dict[str, float]:
        return {"tool_calls": float(self._calls), "tool_errors": float(self._errors)}


def evaluate(name: str, arguments: Mapping[str, Any]) -> str:
    """The result of one call as text. Raises MessageError, saying what the tool needs."""
    operation = _OPERATIONS.get(name)
    if operation is None:
        raise MessageError(f"no tool named {name[:40]!r}; there are {', '.join(_OPERATIONS)}")
    a, b = arguments.get("a"), arguments.get("b")
    if not _is_number(a) or not _is_number(b):
        raise MessageError(f"{name} needs the numbers a and b")
    if not (abs(a) <= _LARGEST_OPERAND and abs(b) <= _LARGEST_OPERAND):  # also false for NaN
        raise MessageError(f"{name} takes numbers up to {_LARGEST_OPERAND}")
    result = operation(a, b)
    return f"{result:g}" if isinstance(result, float) else str(result)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def question(draw: random.Random, largest: int) -> dict[str, Any]:
    """A question, its answers, and a plan: for each turn, the calls `[tool, a, b]` that lead there."""
    kind = draw.choice((_single, _chained, _independent))
    return kind(draw, largest)


def _single(draw: random.Random, largest: int) -> dict[str, Any]:
    name, a, b, text, answer = _operation(draw, largest)
    return {"question": f"{text} How many now?", "plan": [[[name, a, b]]], "answers": [answer]}


def _chained(draw: random.Random, largest: int) -> dict[str, Any]:
    first, a, b, text, middle = _operation(draw, largest)
    if draw.random() < 0.5:
        c = draw.randint(1, largest)
        second, answer, more = "add", middle + c, f"Then {c} more come."
    else:
        c = draw.randint(0, min(middle, largest))
        second, answer, more = "subtract", middle - c, f"Then {c} get lost."
    plan = [[[first, a, b]], [[second, middle, c]]]
    return {"question": f"{text} {more} How many now?", "plan": plan, "answers": [answer]}


def _independent(draw: random.Random, largest: int) -> dict[str, Any]:
    first, a, b, text, one = _operation(draw, largest)
    second, c, d, other, two = _operation(draw, largest)
    return {
        "question": f"{text} {other} How many has each?",
        "plan": [[[first, a, b], [second, c, d]]],
        "answers": [one, two],
    }


def _operation(draw: random.Random, largest: int) -> tuple[str, int, int, str, int]:
    """(tool, a, b, sentence, result) of one operation that gives no negative number."""
    name, things = draw.choice(_NAMES), draw.choice(_THINGS)
    a, b = draw.randint(1, largest), draw.randint(1, largest)
    match draw.choice(tuple(_OPERATIONS)):
        case "add":
            return "add", a, b, f"{name} has {a} {things} and gets {b} more.", a + b
        case "subtract":
            a, b = max(a, b), min(a, b)
            return "subtract", a, b, f"{name} has {a} {things} and gives {b} away.", a - b
        case _:
            return "multiply", a, b, f"{name} has {a} boxes of {b} {things}.", a * b
