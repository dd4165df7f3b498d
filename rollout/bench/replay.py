"""The environment's side of a recorded run, played again: the same messages, whatever the model says now.

What the model said is not used, only how long it was: both modes sample completions of the recorded lengths. Results
of tools go out as a user's message, since the calls that they answered are not in the conversation any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from rollout.chat.messages import Message, user
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import UsageError
from rollout.participant import Participant
from rollout.records import Rollout
from rollout.store.folder import read_rollouts


class Script(msgspec.Struct, frozen=True):
    """What the environment and the model's lengths were, in one recorded rollout."""

    opening: Sequence[Message]
    tools: Sequence[Mapping[str, Any]]
    answers: Sequence[Sequence[Message]]
    """What the environment said after each turn but the last."""
    lengths: Sequence[int]
    """Tokens of each turn's completion."""


class Replay(Env):
    """Plays scripts by the task's `index`."""

    blocks = False

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts = scripts
        self._turn = 0

    def reset(self, task: Task) -> Sequence[MessageLike]:
        """Opens as the recorded rollout did."""
        self._script = self._scripts[task["index"] % len(self._scripts)]
        self.tools = self._script.tools
        self.max_tokens = self._script.lengths[0]
        return list(self._script.opening)

    def step(self, message: Message) -> Step:
        """Says what the environment said then; ends after the recorded number of turns."""
        self._turn += 1
        if self._turn == len(self._script.lengths):
            return Step(done=True)
        self.max_tokens = self._script.lengths[self._turn]
        return Step(messages=self._script.answers[self._turn - 1])


def read_scripts(folder: str) -> list[Script]:
    """The scripts of a run's finished rollouts. Raises UsageError where there are none."""
    found = [script_of(rollout) for rollout in read_rollouts(Path(folder)) if rollout.ok and rollout.turns]
    scripts = [script for script in found if script is not None]
    if not scripts:
        raise UsageError(f"{folder!r} has no finished rollout to replay: give --replay another run's folder")
    return scripts


def script_of(rollout: Rollout) -> Script | None:
    """One rollout's script; None where nothing of its conversation was sampled.

    Of a conversation that was rewritten on the way, it is the one that it ended with.
    """
    messages = rollout.messages
    answered = [at for at, message in enumerate(messages) if message.role == "assistant"][-len(rollout.turns) :]
    if not answered:
        return None
    lengths = [max(1, turn.completion_tokens) for turn in rollout.turns[-len(answered) :]]
    answers = [as_said(messages[here + 1 : there]) for here, there in pairwise(answered)]
    opening = messages[: answered[0]]
    tools = rollout.roots[0].tools if rollout.roots else ()
    return Script(opening, tools, answers, lengths)


def as_said(messages: Sequence[Message]) -> list[Message]:
    """What the environment said in one turn, without results of calls that were never made; texts in one message.

    Never nothing: the model needs something to answer.
    """
    said: list[Message] = []
    for message in messages:
        if message.role not in ("tool", "user") or message.is_multimodal:
            said.append(message)
        elif said and said[-1].role == "user" and not said[-1].is_multimodal:
            said[-1] = user(f"{said[-1].text}\n{message.text}")
        else:
            said.append(user(message.text))
    return said or [user("")]


def replayed(scripts: Sequence[Script]) -> Callable[[], Participant]:
    """The environments of a replay."""
    return partial(Replay, scripts)
