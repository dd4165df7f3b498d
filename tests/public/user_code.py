"""What a user writes, with the whole public surface in it: `tests/public/test_public.py` has mypy judge it, strictly.

Environments as people annotate them, a trainer that awaits and one that does not. It is never run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypedDict

from rollout import (
    Agent,
    Answer,
    Engine,
    EngineConfig,
    EngineThread,
    Env,
    FallbackReason,
    Group,
    Message,
    Model,
    Outcome,
    Rollout,
    Step,
    Task,
    TrainingSample,
    system,
    tool,
    tool_spec,
    user,
)
from rollout.engine import differing_rewards
from rollout.observe.stats import Stats
from rollout.tokens.advantages import leave_one_out
from rollout.tokens.batch import Packed, Padded, pack, pad


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class Printed:
    """A logger of one's own."""

    def on_group(self, group: Group, step: int, evaluation: bool) -> None:
        print(step, group.rewards, evaluation)

    def on_stats(self, stats: Stats, step: int) -> None:
        print(step, stats.turns)

    def close(self) -> None: ...


class Plain(Env):
    """Everything is a plain function, and what it takes is as narrow as the environment knows it."""

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self.tools = [tool_spec(add)]

    def tasks(self, n: int, seed: int) -> list[dict[str, int]]:
        return [{"n": number} for number in range(n)]

    def reset(self, task: dict[str, int]) -> list[Message]:
        self.max_tokens = 16
        return [system("Count."), user(str(task["n"]))]

    def step(self, message: Message) -> Step:
        if self.finish_reason == "length" or message.malformed_tool_calls:
            return Step(done=True, reward=0.0, metrics={"cut_off": 1.0})
        if message.tool_calls:
            (call, *_) = message.tool_calls
            return Step(messages=[tool("3", call=call)])
        return Step(done=True, reward=float("3" in message.text))

    def score(self, messages: list[Message]) -> float:
        return float(len(messages))

    def close(self) -> None:
        self.limit = 0


class Listed(Plain):
    """Tools of the class."""

    tools = [tool_spec(add)]


class Annotated(Plain):
    """And as their type is."""

    tools: Sequence[Mapping[str, Any]] = (tool_spec(add),)


class Question(TypedDict):
    """A task."""

    question: str
    answer: str


class Pool:
    """What rollouts share."""

    async def take(self) -> str:
        return "sandbox"


class Asynchronous(Env):
    """Everything is awaited, and a pool is shared."""

    blocks = False
    shared: Pool

    @classmethod
    @asynccontextmanager
    async def setup(cls, image: str) -> AsyncIterator[Pool]:
        yield Pool()

    def __init__(self, image: str) -> None:
        self.image = image

    @staticmethod
    def tasks(n: int, seed: int) -> Iterable[Question]:
        return [{"question": "?", "answer": "!"}] * n

    async def reset(self, task: Question) -> Sequence[Message]:
        self.sandbox = await self.shared.take()
        return [user(task["question"])]

    async def step(self, message: Message) -> Step:
        return Step(conversation=[{"role": "user", "content": "again"}])

    async def score(self, messages: Sequence[Message]) -> float | None:
        return None

    async def close(self) -> None:
        pass


class Loose(Env):
    """Annotated as loosely as can be, with tools that are made when they are asked for."""

    @property
    def tools(self) -> list[dict[str, Any]]:
        return [tool_spec(add)] if self.max_tokens else []

    @classmethod
    def setup(cls) -> AbstractAsyncContextManager[Any]:
        return super().setup()

    def reset(self, task: Mapping[str, Any]) -> list[dict[str, str]]:
        return [{"role": "user", "content": str(task)}]

    def step(self, message: object) -> Step:
        return Step(done=True)


class Tasked(Loose):
    """Tools of the task, over those of a base class."""

    def reset(self, task: Mapping[str, Any]) -> list[dict[str, str]]:
        self.max_tokens = len(self.tools)
        return super().reset(task)


def rewards(group: Group) -> list[float]:
    return [float(len(rollout.messages)) for rollout in group.finished]


async def judged(group: Group) -> Sequence[float]:
    return rewards(group)


async def seen(rollout: Rollout) -> None:
    print(rollout.id, rollout.ok, rollout.stop, rollout.failure, rollout.turns)


def learn(group: Group) -> tuple[Padded, list[Packed]]:
    samples: list[TrainingSample] = group.samples(leave_one_out) + group.samples()
    for rollout in group.rollouts:
        samples += rollout.samples()
        if rollout.fallbacks[FallbackReason.NO_MATCH]:
            print(rollout.trajectory)
    for sample in samples:
        print(sample.token_ids, sample.loss_mask, sample.logprobs, sample.weight_versions, sample.advantage)
    return pad(samples, pad_id=0), list(pack(samples, max_tokens=4096))


async def endless() -> AsyncIterator[Task]:
    while True:
        yield {"n": 1}


def environment(level: int) -> Callable[[], Env]:
    return lambda: Plain(limit=level)


async def train(config: EngineConfig) -> None:
    async with Engine(config, Plain) as engine:
        print(engine.server.model, engine.codec, engine.open, engine.config.concurrency)
        async for group in engine.stream(
            endless(),
            rollouts_per_task=8,
            skip={(0, 1)},
            on_rollout=seen,
            keep=differing_rewards,
            group_reward=judged,
            share=0.5,
            ahead=4,
        ):
            learn(group)
            await engine.pause("wait")
            await engine.resume()
            await engine.update_weights(1, "/weights/1", in_flight="abort")
        async for group in engine.stream(
            [{"question": "?"}], env=lambda: Asynchronous("image"), evaluation=True, group_reward=rewards
        ):
            print(group.rewards, group.rewarded, group.task_id, group.task_index, group.task["question"])
        submission = await engine.submit({"n": 1}, env=environment(3), rollouts=2)
        if not submission.done:
            submission.cancel()
        print(submission.task_index, (await submission.result()).rewards)
        groups: list[Group] = await engine.collect(2) + engine.take_untaken() + engine.untaken
        engine.cancel()
        engine.stop_admitting()
        engine.log_to(Printed())
        print(groups, engine.stats().reward_mean, engine.weight_version, await engine.first_tokens())


class Asks(Agent):
    """An agent, as narrow about its task as it likes."""

    def __init__(self, best_of: int = 4) -> None:
        self.best_of = best_of

    async def run(self, task: dict[str, int], model: Model) -> Outcome:
        asked = [user(str(task["n"]))]
        answers: list[Answer] = [await model.chat(asked, temperature=1.0) for _ in range(self.best_of)]
        judge = model.agent("judge")
        judged = await judge.chat([*asked, answers[0].message, user("Right?")], tools=[tool_spec(add)], train=False)
        print(judged.usage.prompt_tokens, judged.finish_reason, judged.turn, model.endpoint.openai_base_url)
        return Outcome(reward=float("yes" in judged.text), metrics={"asked": 1.0}, rewards={"judge": 1.0})


class AsksInAThread(Agent):
    """One with a client of its own."""

    def run(self, task: Task, model: Model) -> Outcome:
        return Outcome(reward=float(bool(model.endpoint.api_key)))


def train_in_a_thread(config: EngineConfig) -> None:
    with EngineThread(config, Loose) as engine:
        print(engine.server.model, engine.codec, engine.open, engine.config.sampling)
        with engine.stream(Plain().tasks(3, seed=0), rollouts_per_task=2, keep=differing_rewards) as stream:
            for group in stream:
                learn(group)
        engine.pause()
        engine.resume()
        engine.update_weights("v2")
        submission = engine.submit({"n": 1}, agent=Asks)
        if not submission.done:
            submission.cancel()
        print(submission.task_index, submission.result().rewards)
        groups: list[Group] = engine.collect(1) + engine.take_untaken() + engine.untaken
        engine.cancel()
        engine.stop_admitting()
        engine.log_to(Printed(), Printed())
        print(groups, engine.stats(), engine.weight_version, engine.first_tokens())


CONFIG = EngineConfig(
    base_url=["http://gpu-7:8000", "http://gpu-8:8000"],
    sampling={"temperature": 1.0},
    concurrency="auto",
    max_staleness=2,
    processes=4,
    launch="local",
)
