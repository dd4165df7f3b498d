"""What an environment is: reset with a task, step on the assistant's message. It never sees a token.

A whole environment:

    class Doubling(Env):
        '''Ask for the double of a number.'''

        def __init__(self, limit: int = 100) -> None:
            self.limit = limit

        def tasks(self, n: int, seed: int) -> Iterable[Task]:
            numbers = random.Random(seed)
            return ({"number": numbers.randint(1, self.limit)} for _ in range(n))

        def reset(self, task: Task) -> Sequence[Message]:
            self.number = task["number"]
            return [user(f"What is {self.number} doubled?")]

        def step(self, message: Message) -> Step:
            return Step(done=True, reward=float(str(self.number * 2) in message.text))

One object plays one rollout. `reset`, `step`, `score` and `close` may each be `async def`; where
they are plain functions the engine calls them in a worker thread, so they may block (see `Env.blocks`).

What is asynchronous lives in one task from its first call to its last: a class with an asynchronous method is made
there, too, so that its constructor has an event loop, and a context (a task group, a session with a server of tools)
may be entered in `reset` and left in `close`. Tasks that it starts are its own: what runs after `close` is cancelled.
Whatever any of it raises, SystemExit included, is its rollout's failure and no other's.

What all rollouts of a process share is made by `setup`, and reaches each object as `self.shared`:

    @classmethod
    @asynccontextmanager
    async def setup(cls, image: str = "python:3.12") -> AsyncIterator[Pool]:
        async with Pool(image) as pool:
            yield pool

    def __init__(self, image: str = "python:3.12") -> None: ...

    async def reset(self, task: Task) -> Sequence[Message]:
        self.sandbox = await self.shared.take()
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.participant import Participant, Task, made_sharing
from rollout.request import FinishReason

__all__ = ["Env", "MessageLike", "Step", "Task", "made_sharing"]

#: A message in any form that `Message.of` reads.
MessageLike = Any

#: `Sequence[Mapping[str, Any]]`; but a type checker that is told so lets no subclass have a property in its place.
Tools = Any


class Step(msgspec.Struct, kw_only=True):
    """What the environment answers to one assistant message."""

    messages: Sequence[MessageLike] = ()
    """New messages (tool results, then at most one user message; or user messages)."""
    conversation: Sequence[MessageLike] | None = None
    """The whole conversation to go on with, in place of the one so far, for environments that rewrite it: a retry
    (without the last answer), a history compacted into a summary, sub-agents that take turns. `messages` follow it.
    Whatever of it the trajectory has is extended token-in; see `Trajectory` for what becomes of the branches."""
    done: bool = False
    reward: float = 0.0
    """Of this turn, and added to the rollout's reward: `Turn.reward` keeps it, also where `score` or a stream's group
    reward decides over the rollout's."""
    metrics: dict[str, float] = {}
    """Numbers worth averaging over rollouts; a later step's value replaces an earlier one's. The turn keeps its own."""


class Env(Participant):
    """Base class of environments. Its keyword arguments are what `-a KEY=VALUE` sets."""

    tools: Tools = ()
    """Tools that the model may call, as OpenAI function specifications; `rollout.tool_spec` makes one of a function.

    They may be the class's, an object's (set in `__init__`, or in `reset` where they are the task's), or a property.
    They are read before each turn, and stand in every prompt: a change in the middle of a rollout sends the next turn
    message-in (`tools_changed`)."""

    blocks: bool = True
    """Whether plain methods may block: they then run in threads. Where this is False they are called on the event loop,
    which spares 0.1 ms of CPU a call: for an environment that only computes for a moment. No deadline interrupts it."""

    finish_reason: FinishReason | None = None
    """How the answer ended that `step` is about to see: "stop" by itself, "length" where it was cut off at its
    `max_tokens` or at the context's end. Set before each call of `step`; None before the first."""

    max_tokens: int | None = None
    """Length of the next completion at most, where the environment knows it better than the run; `reset` and `step`
    may change it."""

    def reset(self, task: Any) -> Sequence[MessageLike] | Awaitable[Sequence[MessageLike]]:
        """The messages that open the conversation. The task is a `Task`, whose form an environment may know better."""
        raise NotImplementedError(f"{type(self).__name__} has no reset")

    def step(self, message: Message) -> Step | Awaitable[Step]:
        """Answers the assistant's message; `self.finish_reason` says whether it was cut off.

        `message.tool_calls` are the calls that could be read; `message.malformed_tool_calls` those
        that could not, with their raw text.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def score(self, messages: list[Message]) -> float | Awaitable[float | None] | None:
        """The whole conversation's reward, once, after the last step; None keeps the steps' sum.

        A rollout's reward is the stream's `group_reward` where it has one, else this, else the sum of the steps'. The
        record has all three, and each turn's own: see `rollout.records.Rollout`.
        """
        return None
