"""Dialogues to imitate: a fallible expert plays the bundled environments, and the chat format writes it down."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from envs.calculator import Calculator
from envs.echo import Echo
from envs.guess_number import GuessNumber
from rollout.chat.messages import Function, MalformedToolCall, Message, ToolCall
from rollout.env import Env, Step, Task

#: How earlier turns look: with their thinking (token-in), without it (message-in through Qwen3's
#: template), or with thinking switched off (an empty block before each answer).
Style = Literal["kept", "stripped", "off"]

#: How far from the middle of what is left the expert guesses, in widths of it: what makes it lose
#: about a quarter of its games, so that training by reward has something to gain.
_GUESS_SPREAD = 0.27


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt or an answer."""

    text: str
    sampled: bool = False
    """Whether the model is to learn to say it."""


@dataclass(frozen=True)
class Answer:
    """One assistant turn of the expert's."""

    text: str
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    malformed: tuple[MalformedToolCall, ...] = ()
    learn: bool = True
    """False for a mistake put in on purpose: the model learns what to do after it, not to make it."""

    def message(self) -> Message:
        return Message(
            "assistant", self.text, self.thinking or None, tool_calls=self.calls, malformed_tool_calls=self.malformed
        )

    def body(self) -> str:
        """What the model says between the thinking and the end of its turn."""
        blocks = [f"<tool_call>\n{_call_json(call)}\n</tool_call>" for call in self.calls]
        return "\n".join([*([self.text] if self.text else []), *blocks])


@dataclass(frozen=True)
class Dialogue:
    """A played conversation: the opening, then answers and what the environment said to each."""

    tools: Sequence[Any]
    opening: Sequence[Message]
    answers: list[Answer] = field(default_factory=list)
    replies: list[Sequence[Message]] = field(default_factory=list)

    def segments(self, style: Style, last: int | None = None) -> Iterator[Segment]:
        """The conversation as text. With `last`, only up to that answer, and only it is learned."""
        yield Segment(tools_header(self.tools) + tail(self.opening))
        turns = self.answers if last is None else self.answers[: last + 1]
        for index, answer in enumerate(turns):
            if style == "off":
                yield Segment("<think>\n\n</think>\n\n")
            shown = style == "kept" or (style == "stripped" and index == last)
            thinking = f"<think>\n{answer.thinking}\n</think>\n\n" if answer.thinking and shown else ""
            learned = answer.learn and last in (None, index)
            yield Segment(f"{thinking}{answer.body()}<|im_end|>", learned)
            if index + 1 < len(turns):
                yield Segment("\n" + tail(self.replies[index]))


def tools_header(tools: Sequence[Any]) -> str:
    """The system turn that Qwen3's template writes for tools; "" without tools."""
    if not tools:
        return ""
    lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n"
    )


def tail(messages: Sequence[Message]) -> str:
    """User and tool messages in the chat format, then the start of the assistant's turn."""
    out = ""
    for index, message in enumerate(messages):
        if message.role != "tool":
            out += f"<|im_start|>{message.role}\n{message.text}<|im_end|>\n"
            continue
        first = index == 0 or messages[index - 1].role != "tool"
        last = index + 1 == len(messages) or messages[index + 1].role != "tool"
        out += "<|im_start|>user" if first else ""
        out += f"\n<tool_response>\n{message.text}\n</tool_response>"
        out += "<|im_end|>\n" if last else ""
    return out + "<|im_start|>assistant\n"


def play(env: Env, task: Task, expert: Callable[[Sequence[Message]], Answer]) -> Dialogue:
    """Plays one task to its end."""
    opening = [Message.of(message) for message in _now(env.reset(task))]
    dialogue = Dialogue(env.tools, opening)
    replies: Sequence[Message] = opening
    while True:
        answer = expert(replies)
        step: Step = _now(env.step(answer.message()))
        replies = [Message.of(message) for message in step.messages]
        dialogue.answers.append(answer)
        dialogue.replies.append(replies)
        if step.done:
            return dialogue


def guess_number(draw: random.Random) -> Dialogue:
    """A game with the default range, or sometimes another."""
    env = GuessNumber()
    if draw.random() < 0.2:
        low = draw.randint(0, 40)
        env = GuessNumber(low, low + draw.randint(1, 98 - low), draw.randint(4, 9))
    bounds = [env.low - 1, env.high + 1]
    guesses = [0]

    def expert(replies: Sequence[Message]) -> Answer:
        if replies[-1].text.startswith("Higher"):
            bounds[0] = max(bounds[0], guesses[-1])
        elif replies[-1].text.startswith("Lower"):
            bounds[1] = min(bounds[1], guesses[-1])
        slip = draw.random()
        if slip < 0.01:
            return Answer(draw.choice(("I do not know.", str(env.high + draw.randint(1, 30)))), learn=False)
        if slip < 0.04:
            guesses.append(draw.randint(env.low, env.high))
            return Answer(str(guesses[-1]), f"over {bounds[0]}, under {bounds[1]}", learn=False)
        guesses.append(_noisy_middle(draw, *bounds))
        return Answer(str(guesses[-1]), f"over {bounds[0]}, under {bounds[1]}")

    return play(env, {"target": draw.randint(env.low, env.high)}, expert)


def calculator(draw: random.Random) -> Dialogue:
    """A question answered by its plan, sometimes after a call that fails."""
    env = Calculator()
    (task,) = env.tasks(1, draw.randrange(2**32))
    plan = [tuple(_call(f"call_{n}", *call) for n, call in enumerate(calls)) for calls in task["plan"]]
    spoil = draw.random()

    def expert(replies: Sequence[Message]) -> Answer:
        nonlocal spoil
        slip, spoil = spoil, 1.0
        if slip < 0.02:
            return Answer("", calls=(_call("call_0", "divide", 4, 2),), learn=False)
        if slip < 0.03:
            raw = '<tool_call>\n{"name": "add", "arguments": {"a": 1\n</tool_call>'
            return Answer(raw, malformed=(MalformedToolCall(raw, "invalid_json"),), learn=False)
        if plan:
            return Answer("", calls=plan.pop(0))
        values = [str(answer) for answer in task["answers"]]
        return Answer(f"The answer is {values[0]}." if len(values) == 1 else f"The answers are {' and '.join(values)}.")

    return play(env, task, expert)


def echo(draw: random.Random) -> Dialogue:
    """A short answer to each turn, whatever it says."""
    env = Echo(turns=draw.choice((1, 2, 3, 4, 6, 8, 10)), chars=draw.choice((0, 20, 60, 60, 120, 400)))

    def expert(replies: Sequence[Message]) -> Answer:
        turn = re.findall(r"^turn (\d+)", replies[-1].text)
        return Answer(draw.choice(("Go on.", "I see.", "And then?", "Tell me more.", "I hear you.")), f"turn {turn[0]}")

    return play(env, {"index": draw.randrange(100)}, expert)


def samples(seed: int) -> Iterator[list[Segment]]:
    """Endless training samples: the environments in fixed shares, in the three styles."""
    draw = random.Random(seed)
    while True:
        game = draw.choices((guess_number, calculator, echo), (0.66, 0.26, 0.08))[0]
        dialogue = game(draw)
        style: Style = draw.choices(("kept", "stripped", "off"), (0.75, 0.13, 0.12))[0]
        last = draw.randrange(len(dialogue.answers)) if style == "stripped" else None
        yield list(dialogue.segments(style, last))


def _noisy_middle(draw: random.Random, over: int, under: int) -> int:
    if under - over < 2:
        return max(over, 0)
    guess = round(draw.gauss((over + under) / 2, _GUESS_SPREAD * (under - over - 1)))
    return min(max(guess, over + 1), under - 1)


def _call(call_id: str, name: str, a: int, b: int) -> ToolCall:
    return ToolCall(function=Function(name, json.dumps({"a": a, "b": b})), id=call_id)


def _call_json(call: ToolCall) -> str:
    return f'{{"name": "{call.name}", "arguments": {call.function.arguments}}}'


def _now(value: Any) -> Any:
    """The bundled environments are synchronous; one that is not would be a mistake here."""
    if hasattr(value, "__await__"):
        raise TypeError("dialogues are made with synchronous environments")
    return value
