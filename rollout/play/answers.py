"""What an environment answered, read and checked: numbers, messages, steps, tools. Raises EnvironmentFault.

Everything here is the environment's: an attribute may be a property that raises, a list may be one in name only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollout.agent import Agent, Outcome
from rollout.chat.messages import Message
from rollout.door import Refused, error_text, named_numbers, number, plain, positive, type_name, well_formed
from rollout.env import Env, Step
from rollout.errors import MessageError
from rollout.participant import Participant
from rollout.play.faults import EnvironmentFault, raised_by
from rollout.process.threads import contained
from rollout.request import FinishReason


class Answer(msgspec.Struct, frozen=True):
    """A step, read."""

    conversation: list[Message] | None
    messages: list[Message]
    done: bool
    reward: float
    metrics: dict[str, float]


class reading:  # used as a function is
    """Whatever reading it raises is the environment's fault. No await may be within: a cancellation would be, too."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, EnvironmentFault):
            return
        if isinstance(error, Refused):
            raise EnvironmentFault(str(error)) from None
        raised = raised_by(error)
        message = f"{self._what} cannot be read: {type_name(raised)}: {error_text(raised)}"
        raise EnvironmentFault(message) from contained(error)


def read_step(step: object) -> Answer:
    """What `step` gave."""
    if not isinstance(step, Step):
        hint = " (a `return` is missing?)" if step is None else ""
        raise EnvironmentFault(f"step must return a Step, not {type_name(step)}{hint}")
    with reading("what step gave"):
        conversation = step.conversation
        return Answer(
            conversation=None if conversation is None else read_messages(conversation, "step"),
            messages=read_messages(step.messages, "step"),
            done=bool(step.done),
            reward=number(step.reward, "step"),
            metrics=named_numbers(step.metrics, "step"),
        )


def read_score(score: object) -> float | None:
    """What `score` gave; None keeps the steps' sum."""
    with reading("what score gave"):
        return None if score is None else number(score, "score")


def read_outcome(outcome: object) -> Outcome:
    """What an agent's `run` gave, as plain data."""
    if not isinstance(outcome, Outcome):
        hint = " (a `return` is missing?)" if outcome is None else ""
        raise EnvironmentFault(f"run must return an Outcome, not {type_name(outcome)}{hint}")
    with reading("what run gave"):
        return Outcome(
            reward=None if outcome.reward is None else number(outcome.reward, "run"),
            metrics=named_numbers(outcome.metrics, "run"),
            rewards=named_numbers(outcome.rewards, "run"),
        )


def read_notes(agent: Agent) -> dict[str, str]:
    """The texts that an agent keeps with its rollout."""
    with reading("agent.notes"):
        found = dict(agent.notes)
        if wrong := [name for name, text in found.items() if not isinstance(text, str) or not isinstance(name, str)]:
            raise EnvironmentFault(f"agent.notes must be texts by name, and {wrong[0]!r:.80} is none")
        return {well_formed(name): well_formed(text) for name, text in found.items()}


def read_messages(messages: object, source: str) -> list[Message]:
    """Messages in any form that `Message.of` reads."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise EnvironmentFault(f"{source} must give a list of messages, not {type_name(messages)}")
    with reading(f"what {source} gave"):
        try:
            return [Message.of(message) for message in messages]
        except MessageError as error:
            raise EnvironmentFault(f"{source} gave a message that cannot be read: {error}") from error


def read_tools(env: Env, before: list[Any]) -> list[Any]:
    """The tools as plain data. `before` is what they were a turn ago, and is given again where they are the same."""
    with reading("env.tools"):
        tools = env.tools
        if tools is None or (not tools and not before):
            return []
        if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
            raise EnvironmentFault(f"env.tools must be a list of tools, not {type_name(tools)}")
        found = list(tools)
        if found == before:
            return before
        for at, tool in enumerate(found):
            if not isinstance(tool, Mapping):
                raise EnvironmentFault(f"env.tools[{at}] must be a mapping, not {type_name(tool)}")
        try:
            return [plain(tool) for tool in found]
        except Refused as refused:
            raise EnvironmentFault(f"env.tools cannot be sent: {refused}") from None


def tell_finish_reason(env: Env, reason: FinishReason) -> None:
    """Tells the environment how the answer ended that it is about to step on; one that takes no attribute is not."""
    with reading("env.finish_reason"), contextlib.suppress(AttributeError):
        env.finish_reason = reason


def read_max_tokens(env: Env) -> int | None:
    """The length that the environment gives the next completion, where it gives one."""
    with reading("env.max_tokens"):
        wanted = env.max_tokens
        return None if wanted is None else positive(wanted, "env.max_tokens")


def read_blocks(env: Env) -> bool:
    """Whether the environment's plain methods may block."""
    with reading("env.blocks"):
        return bool(env.blocks)


def method_of(env: Participant, name: str) -> Any:
    """A method to call."""
    with reading(f"env.{name}"):
        return getattr(env, name)


def own_method(env: Env, name: str) -> Any:
    """A method that the environment has of its own; None for the default, which does nothing."""
    with reading(f"env.{name}"):
        method = getattr(env, name)
        return None if getattr(method, "__func__", method) is getattr(Env, name) else method
