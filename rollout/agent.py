"""What an agent is: it is handed a task and the model, asks the model when it likes, and says how it went.

A whole agent:

    class BestOfFour(Agent):
        '''Ask four times, keep the answer that the same model likes best.'''

        async def run(self, task: Task, model: Model) -> Outcome:
            question = [user(task["question"])]
            answers = await asyncio.gather(*(model.chat(question) for _ in range(4)))
            listed = "\\n".join(f"{n}. {answer.text}" for n, answer in enumerate(answers))
            choice = await model.agent("judge").chat([user(f"Which is best?\\n{listed}")], max_tokens=4)
            best = answers[int(choice.text) - 1]
            return Outcome(reward=float(task["answer"] in best.text))

All that it asks lies in one trajectory tree, so a conversation that goes on from another one goes out token-in, whoever
asked, and each sampled token is trained on once. `model.chat` may be awaited any number of times at once.

`run` may be a plain function: it then runs in a thread, and asks the model over HTTP (`model.endpoint`), as programs do
that bring a client of their own. An asynchronous one lives in one task, as an environment does: see `rollout.env`.

`rollout run my_agent.py:MyAgent -a KEY=VALUE` plays it, as does `engine.stream(tasks, agent=MyAgent)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from rollout.chat.messages import Message
from rollout.participant import Participant, Task
from rollout.request import FinishReason

__all__ = ["Agent", "Answer", "Endpoint", "Model", "Outcome", "Task", "Usage"]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """How many of the prompt the server had in its cache; None where it does not say."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the model answered."""

    message: Message
    """The assistant's message: put it into the next conversation as it is."""
    finish_reason: FinishReason
    """ "length" where it was cut off, at its `max_tokens` or at the context's end."""
    usage: Usage
    turn: int
    """Its index in the rollout's turns."""

    @property
    def text(self) -> str:
        """The text of its content."""
        return self.message.text


class Outcome(msgspec.Struct, kw_only=True):
    """How a rollout went, as its agent sees it."""

    reward: float | None = 0.0
    """The rollout's; None where nobody can say: it counts in no mean then, and no advantage is taken of it."""
    metrics: Mapping[str, float] = {}
    """Numbers worth averaging over rollouts."""
    rewards: Mapping[str, float] = {}
    """By the name of the agent that asked (`Model.agent`): a branch takes its own agent's, else the rollout's."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The model over HTTP, for one rollout: OpenAI chat completions and Responses, and Anthropic Messages."""

    base_url: str
    """Without `/v1`: what `ANTHROPIC_BASE_URL` wants. OpenAI's clients want `openai_base_url`."""
    api_key: str
    """Names the rollout. It is worth nothing once the rollout has ended."""
    model: str = ""
    """What the served model is called. An answer says the name that was asked for, whichever that was."""

    @property
    def openai_base_url(self) -> str:
        """What `OPENAI_BASE_URL` wants."""
        return f"{self.base_url}/v1"

    def __repr__(self) -> str:
        return f"Endpoint(base_url={self.base_url!r}, model={self.model!r})"  # a key is never logged


class Model(Protocol):
    """The served model, as one rollout has it."""

    async def chat(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        max_tokens: int | None = None,
        template_args: Mapping[str, Any] | None = None,
        train: bool = True,
        **sampling: Any,
    ) -> Answer:
        """Has the model answer a conversation.

        `messages` are the whole of it, in any form that `Message.of` reads. `max_tokens`, `template_args` and sampling
        parameters that are given win over the run's. What is sampled with `train=False` stays in the record and is not
        trained on.

        Raises LimitReached where the rollout has taken its turns or the prompt does not fit the context, MessageError
        for messages that cannot be read, and TransportError where the server fails. An agent that lets them pass ends
        its rollout as an environment's would: with what was played so far, or as a failure of that kind.
        """
        ...

    def agent(self, name: str) -> Model:
        """The same model, asked by an agent of this name: its turns carry it, and its branches take its reward."""
        ...

    @property
    def limit(self) -> str | None:
        """The limit that the rollout has reached: `max_turns`, or `context_length` until a later turn has succeeded."""
        ...

    @property
    def endpoint(self) -> Endpoint:
        """The same over HTTP, with a key of this rollout's own. Raises ConfigError where nothing can serve it."""
        ...


class Agent(Participant):
    """Base class of agents. Its keyword arguments are what `-a KEY=VALUE` sets."""

    notes: Mapping[str, str] = {}
    """Texts that are kept with the rollout (`Rollout.notes`), however it ends, such as what a program printed. Set it
    at any time."""

    def run(self, task: Any, model: Model) -> Outcome | Awaitable[Outcome]:
        """Plays one rollout. The task is a `Task`, whose form an agent may know better.

        `episode_timeout_s` bounds it. What it raises is its rollout's failure, and no other's.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run")
