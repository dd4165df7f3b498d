"""A rollout whose agent its caller runs: a trainer that starts agents itself, wherever and however it likes.

    async with engine.endpoint(task) as held:
        answer = await my_agent(held.endpoint.base_url, held.endpoint.api_key)
        held.finish(reward=float(answer == task["answer"]))
    samples = held.rollout.samples()

It is played as any agent's: by an agent of ours, whose `run` lasts as long as the block does. So deadlines, staleness,
limits and failures are those of every rollout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import anyio

from rollout.agent import Agent, Endpoint, Model, Outcome
from rollout.errors import RolloutError
from rollout.play.episode import Episode
from rollout.records import Rollout


class Held:
    """An asynchronous context manager: within it the model can be asked, and at its end there is a rollout."""

    def __init__(
        self, begin: Callable[[Callable[[], Agent]], Episode], on_over: Callable[[Held], None] = lambda held: None
    ) -> None:
        """`begin` gives the episode that such an agent plays; `on_over` is told its end."""
        self._begin = begin
        self._on_over = on_over
        self._agent = _Held()
        self._episode: Episode | None = None
        self._playing: asyncio.Task[Rollout] | None = None

    def __repr__(self) -> str:
        state = "new" if self._playing is None else "over" if self._playing.done() else "open"
        return f"<Held {state}, {self._episode!r}>"

    @property
    def model(self) -> Model:
        """The model, for an agent in this process. Raises RuntimeError before the block is entered."""
        if self._agent.model is None:
            raise RuntimeError("enter it first: async with engine.endpoint(task) as held")
        return self._agent.model

    @property
    def endpoint(self) -> Endpoint:
        """The model over HTTP, with a key of this rollout's own. Raises ConfigError where nothing can serve it."""
        return self.model.endpoint

    @property
    def rollout(self) -> Rollout:
        """What was played: whole once the block is left, and a failure where it was left by an exception."""
        if self._episode is None:
            raise RuntimeError("enter it first: async with engine.endpoint(task) as held")
        return self._episode.rollout

    def finish(
        self, reward: float | None = 0.0, *, metrics: Mapping[str, float] = {}, rewards: Mapping[str, float] = {}
    ) -> None:
        """Says how it went, as an `Outcome` does; the last word counts. Without any its reward is not known."""
        self._agent.outcome = Outcome(reward=reward, metrics=metrics, rewards=rewards)

    async def __aenter__(self) -> Self:
        """Raises RolloutError where it cannot begin."""
        if self._playing is not None:
            raise RuntimeError("it was entered before: ask the engine for another")
        self._episode = self._begin(lambda: self._agent)
        self._playing = asyncio.create_task(self._episode.play(), name="rollout held")
        self._playing.add_done_callback(lambda _: self._on_over(self))
        began = asyncio.ensure_future(self._agent.began.wait())
        try:
            await asyncio.wait((began, self._playing), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self.cancel()
            raise
        finally:
            began.cancel()
        if not self._agent.began.is_set():
            failure = self.rollout.failure
            raise RolloutError(f"it could not begin: {failure.message if failure is not None else 'it was cancelled'}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until it is whole. What the block raised is the rollout's failure, and goes on to the caller."""
        assert self._playing is not None, "entered before"
        if error is not None and not isinstance(error, Exception):
            await self.cancel()
            return
        self._agent.error = error
        self._agent.over.set()
        try:
            await asyncio.wait([self._playing])
        except BaseException:
            await self.cancel()
            raise

    async def cancel(self) -> None:
        """Ends it, as cancelled; what was played is in `rollout`."""
        if self._playing is not None:
            self._playing.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._playing])


class _Held(Agent):
    """Hands out the model, and waits."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.began, self.over = asyncio.Event(), asyncio.Event()
        self.outcome = Outcome(reward=None)
        self.error: Exception | None = None

    async def run(self, task: Any, model: Model) -> Outcome:
        self.model = model
        self.began.set()
        await self.over.wait()
        if self.error is not None:
            raise self.error
        return self.outcome
