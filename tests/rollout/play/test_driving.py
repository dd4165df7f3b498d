"""Agents: handed a model, they ask it when they like, and all of it lies in one tree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rollout import Agent, Answer, Model, Outcome, Rollout, Task, user
from rollout.config import EngineConfig
from rollout.errors import (
    AuthenticationFailed,
    ConfigError,
    LimitReached,
    MessageError,
    ModelNotFound,
    RequestRefused,
    ServerBusy,
    TransportError,
)
from rollout.play.episode import Episode
from rollout.play.host import Hosts
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.process.threads import Threads
from rollout.records import FailureKind, Group, Job, Route, StopReason
from rollout.tokens.prefix import FallbackReason
from tests.log_kit import capture_logs
from tests.rollout.play.test_session import ByteCodec
from transports.scripted import Fault, Held, ScriptedTransport, Stalled, reply

Run = Callable[[Task, Model], Awaitable[Any]]


class Does(Agent):
    """An agent that does what it is given."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.closed = 0

    async def run(self, task: Task, model: Model) -> Outcome:
        outcome: Outcome = await self._run(task, model)
        return outcome

    def close(self) -> None:
        self.closed += 1


def episode(
    agent: Agent, *entries: Any, stopping: Callable[[], bool] = lambda: False, member: int = 0, **config: Any
) -> Episode:
    settings = EngineConfig(verify=True, **config)
    transport = ScriptedTransport(entries or [reply(f"{i}") for i in range(9)])
    model = ServedModel(transport=transport, info=transport._info, codec=ByteCodec(), config=settings)
    job = Job(task_index=0, task_id="0-x", task={"a": 1}, member=member)
    return Episode(job, lambda: agent, Session(model, "s"), settings, hosts=Hosts(Threads(4)), stopping=stopping)


async def play(run: Run, *entries: Any, **options: Any) -> Rollout:
    agent = Does(run)
    rollout = await episode(agent, *entries, **options).play()
    assert agent.closed == 1
    assert (rollout.stop is None) != (rollout.failure is None)
    return rollout


def failed(rollout: Rollout) -> FailureKind:
    assert rollout.failure is not None
    return rollout.failure.kind


async def test_an_agent_asks_and_says_how_it_went() -> None:
    """Its second turn goes on from the first token-in, and its outcome is the rollout's."""

    async def run(task: Task, model: Model) -> Outcome:
        first = await model.chat([user("hello")])
        second = await model.chat([user("hello"), first.message, user("go on")])
        assert (first.turn, second.turn, second.text) == (0, 1, "1")
        assert second.usage.prompt_tokens > first.usage.prompt_tokens > 0
        return Outcome(reward=0.5, metrics={"asked": 2})

    rollout = await play(run)
    assert (rollout.stop, rollout.reward, rollout.score, rollout.step_reward) == (StopReason.DONE, 0.5, 0.5, None)
    assert rollout.metrics == {"asked": 2.0}
    assert [turn.route for turn in rollout.turns] == [Route.MESSAGE_IN, Route.TOKEN_IN]
    assert [message.text for message in rollout.messages] == ["hello", "0", "go on", "1"]
    assert len(rollout.samples()) == 1


async def test_many_turns_at_once_lie_in_one_tree_and_each_token_trains_once() -> None:
    """Best of n, sub-agents and a judge: each conversation has a first turn, and later ones extend their own."""

    async def sub(model: Model, name: str) -> None:
        first = await model.agent(name).chat([user(f"I am {name}")])
        await model.agent(name).chat([user(f"I am {name}"), first.message, user("go on")])

    async def run(task: Task, model: Model) -> Outcome:
        await asyncio.gather(*(model.chat([user("hello")]) for _ in range(3)), sub(model, "one"), sub(model, "two"))
        return Outcome(reward=1.0, rewards={"one": 2.0})

    rollout = await play(run)
    assert len(rollout.turns) == 7
    fallbacks = {turn.fallback for turn in rollout.turns if turn.route is Route.MESSAGE_IN}
    assert fallbacks == {FallbackReason.FIRST_TURN}
    assert sum(turn.route is Route.TOKEN_IN for turn in rollout.turns) >= 2
    samples = rollout.samples()
    assert sum(sum(sample.loss_mask) for sample in samples) == sum(turn.completion_tokens for turn in rollout.turns)
    assert {sample.agent: sample.reward for sample in samples} == {"": 1.0, "one": 2.0, "two": 1.0}


async def test_what_its_caller_leaves_out_is_kept_and_not_trained_on() -> None:
    """The count of what was left out is told."""

    async def run(task: Task, model: Model) -> Outcome:
        first = await model.chat([user("hello")])
        await model.chat([user("hello"), first.message, user("a title, please")], train=False)
        return Outcome()

    rollout = await play(run)
    (sample,) = rollout.samples()
    assert sum(sample.loss_mask) == rollout.turns[0].completion_tokens
    assert sample.left_out == rollout.turns[1].completion_tokens > 0


async def test_what_is_asked_for_wins_over_the_run() -> None:
    """Sampling, its own length, and its tools: each turn records what it was sampled with."""

    async def run(task: Task, model: Model) -> Outcome:
        await model.chat([user("hello")], temperature=0.2, max_tokens=7)
        await model.chat([user("hello")])
        return Outcome()

    rollout = await play(run, sampling={"temperature": 0.9})
    temperatures = [turn.sampling.temperature for turn in rollout.turns if turn.sampling is not None]
    assert temperatures == [0.2, 0.9]


async def test_a_limit_ends_a_rollout_with_what_was_played() -> None:
    """An agent may let it pass, catch it, or make an exception of its own of it."""

    async def greedy(task: Task, model: Model) -> Outcome:
        while True:
            await model.chat([user("hello")])

    async def careful(task: Task, model: Model) -> Outcome:
        try:
            return await greedy(task, model)
        except LimitReached:
            return Outcome(reward=0.25)

    async def clumsy(task: Task, model: Model) -> Outcome:
        try:
            return await greedy(task, model)
        except LimitReached:
            raise RuntimeError("400") from None

    for run, reward in ((greedy, 0.0), (careful, 0.25), (clumsy, 0.0)):
        rollout = await play(run, max_turns=2)
        assert (rollout.stop, len(rollout.turns), rollout.reward) == (StopReason.MAX_TURNS, 2, reward)


async def test_turns_under_way_count_towards_the_limit() -> None:
    """Ten at once are no way around it."""

    async def run(task: Task, model: Model) -> Outcome:
        answers = await asyncio.gather(*(model.chat([user("hello")]) for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(answer, Answer) for answer in answers) == 3
        return Outcome()

    assert len((await play(run, max_turns=3)).turns) == 3


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_server_that_fails_is_a_failure_whatever_the_agent_makes_of_it(swallows: bool) -> None:
    """Never a reward of 0: unless the same agent has asked again with success."""

    async def run(task: Task, model: Model) -> Outcome:
        try:
            await model.chat([user("hello")])
        except ServerBusy:
            if not swallows:
                raise
        return Outcome(reward=0.0)

    rollout = await play(run, Fault(ServerBusy("503")))
    assert failed(rollout) is FailureKind.TRANSPORT

    async def again(task: Task, model: Model) -> Outcome:
        await run(task, model) if swallows else None
        await model.chat([user("hello")])
        return Outcome(reward=1.0)

    healed = await play(again, *([Fault(ServerBusy("503"))] if swallows else []), reply("a"))
    assert (healed.stop, healed.reward) == (StopReason.DONE, 1.0)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (AuthenticationFailed("401: key revoked"), FailureKind.TRANSPORT),
        (ModelNotFound("it serves it no more"), FailureKind.TRANSPORT),
        (RequestRefused("400: temperature"), StopReason.DONE),
    ],
)
async def test_a_server_that_refuses_the_run_is_a_failure_though_the_agent_swallows_it(
    error: TransportError, ends: FailureKind | StopReason
) -> None:
    """A key that was revoked would otherwise be a reward of 0; a request of the agent's own is its own affair."""

    async def run(task: Task, model: Model) -> Outcome:
        with contextlib.suppress(TransportError):
            await model.chat([user("hello")])
        return Outcome(reward=0.0)

    rollout = await play(run, Fault(error))
    assert (rollout.failure.kind if rollout.failure is not None else rollout.stop) is ends


async def test_a_turn_asked_for_earlier_takes_back_no_fault_that_came_later() -> None:
    """Two at once: the second fails, and the first ends well thereafter."""
    held = Held(reply("late"))

    async def run(task: Task, model: Model) -> Outcome:
        first = asyncio.ensure_future(model.chat([user("a")]))
        await asyncio.sleep(0)
        with pytest.raises(ServerBusy):
            await model.chat([user("b")])
        held.release()
        await first
        return Outcome(reward=0.0)

    assert failed(await play(run, held, Fault(ServerBusy("503")))) is FailureKind.TRANSPORT


@pytest.mark.parametrize("named", ["max_turns", "context_length"])
async def test_a_turn_asked_for_earlier_takes_back_no_limit(named: str) -> None:
    """The agent was told of it, and ends by an error of its own: that is the limit's doing still."""
    held = Held(reply("late"))
    limits: dict[str, Any] = {"max_turns": 1} if named == "max_turns" else {"max_model_len": 64}

    async def run(task: Task, model: Model) -> Outcome:
        first = asyncio.ensure_future(model.agent("sub").chat([user("a")]))
        await asyncio.sleep(0)
        with pytest.raises(LimitReached):
            await model.chat([user("b" * 99)])
        held.release()
        await first
        assert model.limit == named
        raise RuntimeError("my own client's: 400")

    assert (await play(run, held, reply("x"), **limits)).stop == StopReason(named)


async def test_what_an_agent_raises_is_its_rollouts_failure_with_its_traceback() -> None:
    """As an environment's; what was sampled before is kept."""

    async def run(task: Task, model: Model) -> Outcome:
        await model.chat([user("hello")])
        raise ValueError("my own fault")

    with capture_logs() as logs:
        rollout = await play(run)
    assert rollout.failure is not None
    assert (rollout.failure.kind, rollout.failure.error) == (FailureKind.ENVIRONMENT, "ValueError")
    assert len(rollout.turns) == 1
    assert any(log["event"] == "environment_raised" for log in logs)


#: A metric that is no number.
_WORDS: Any = {"a": "b"}


@pytest.mark.parametrize("outcome", [None, 1.0, Outcome(reward=float("nan")), Outcome(metrics=_WORDS)])
async def test_an_outcome_that_cannot_be_used_is_the_agents_fault(outcome: Any) -> None:
    """It is named, and costs its own rollout only."""

    async def run(task: Task, model: Model) -> Any:
        return outcome

    rollout = await play(run)
    assert failed(rollout) is FailureKind.ENVIRONMENT
    assert rollout.failure is not None
    assert "run must" in rollout.failure.message or "gave" in rollout.failure.message


async def test_an_agent_that_swallows_the_end_of_the_run_is_ended_all_the_same() -> None:
    """It asks again and again: it is cancelled instead."""
    stopping = False

    async def run(task: Task, model: Model) -> Outcome:
        nonlocal stopping
        await model.chat([user("hello")])
        stopping = True
        while True:
            try:
                await model.chat([user("hello")])
            except Exception:
                await asyncio.sleep(0)

    rollout = await play(run, stopping=lambda: stopping)
    assert failed(rollout) is FailureKind.CANCELLED
    assert len(rollout.turns) == 1


async def test_a_deadline_ends_an_agent_in_the_middle_of_a_turn() -> None:
    """`episode_timeout_s` bounds it."""

    async def run(task: Task, model: Model) -> Outcome:
        await model.chat([user("hello")])
        return Outcome()

    rollout = await play(run, Stalled(), episode_timeout_s=0.05)
    assert failed(rollout) is FailureKind.TIMEOUT


async def test_what_it_left_under_way_is_not_kept() -> None:
    """A rollout ends with its `run`: a task that still asks is cancelled, and adds no turn."""

    async def run(task: Task, model: Model) -> Outcome:
        await model.chat([user("hello")])
        asyncio.create_task(model.chat([user("later")]))  # type: ignore[arg-type, unused-ignore]  # noqa: RUF006
        await asyncio.sleep(0)
        return Outcome(reward=1.0)

    rollout = await play(run, reply("a"), Stalled())
    assert (rollout.stop, len(rollout.turns)) == (StopReason.DONE, 1)


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": "hello"},
        {"messages": []},
        {"messages": [3]},
        {"messages": [user("a")], "tools": {"a": 1}},
        {"messages": [user("a")], "max_tokens": 0},
        {"messages": [user("a")], "temperature": float("nan")},
        {"messages": [user("a")], "n": 4},
        {"messages": [user("a")], "max_completion_tokens": 4},
        {"messages": [user("a")], "stop_token_ids": [[1]]},
        {"messages": [user("a")], "stop_token_ids": "12"},
        {"messages": [user("a")], "stream": True},
        {"messages": [user("a")], "train": "no"},
    ],
)
async def test_what_cannot_be_asked_is_refused_by_name(asked: dict[str, Any]) -> None:
    """Nothing is sent."""

    async def run(task: Task, model: Model) -> Outcome:
        with pytest.raises(MessageError):
            await model.chat(**asked)
        return Outcome()

    assert (await play(run)).turns == []


async def test_a_plain_run_is_called_in_a_thread() -> None:
    """It asks over HTTP, where something serves the model; else it is told what is missing."""

    class Plain(Agent):
        def run(self, task: Task, model: Model) -> Outcome:
            with pytest.raises(ConfigError, match="engine"):
                _ = model.endpoint
            return Outcome(reward=1.0)

    rollout = await episode(Plain()).play()
    assert rollout.reward == 1.0


async def test_advantages_are_taken_over_the_members_of_one_task_and_agent() -> None:
    """A branch of an agent with rewards of its own is compared with the same agent's elsewhere."""

    def scored(member: int, reward: float, judge: float | None) -> Run:
        async def run(task: Task, model: Model) -> Outcome:
            await model.chat([user("hello")])
            await model.agent("judge").chat([user("judge")])
            return Outcome(reward=reward, rewards={} if judge is None else {"judge": judge})

        return run

    members = [(0.0, 5.0), (1.0, 5.0), (2.0, 5.0), (3.0, None)]
    rollouts = [
        await episode(Does(scored(at, reward, judge)), member=at).play() for at, (reward, judge) in enumerate(members)
    ]
    group = Group(task_id="0-x", task_index=0, task={}, rollouts=rollouts)
    found = {(sample.rollout_id, sample.agent): sample.advantage for sample in group.samples()}
    for at in range(3):
        assert found[f"0-x-{at}", "judge"] == 0.0
    assert found["0-x-3", "judge"] == found["0-x-3", ""] != 0.0
