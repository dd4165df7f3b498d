"""A run whose logprobs a trainer would take for what they are not is told so, once, with the server's flag."""

from __future__ import annotations

from typing import Any

import pytest

from envs.echo import Echo
from rollout import Engine
from rollout.chat.messages import user
from rollout.config import EngineConfig
from rollout.play.logprobs import doubt
from rollout.play.served import ServedModel
from rollout.play.session import Ask, Session
from rollout.request import Sampling
from rollout.transport import ServerInfo
from tests.log_kit import capture_logs
from transports.scripted import ScriptedTransport, reply

FILTERED = Sampling(top_p=0.95)


@pytest.mark.parametrize(
    ("mode", "defaults", "sampling", "event"),
    [
        ("raw_logprobs", Sampling(), {}, None),
        ("raw_logprobs", Sampling(), {"temperature": 0.0}, None),
        ("raw_logprobs", Sampling(), {"temperature": 0.7}, "logprobs_before_sampling"),
        ("raw_logprobs", FILTERED, {}, "logprobs_before_sampling"),
        ("raw_logprobs", FILTERED, {"top_p": 1.0}, None),
        ("raw_logprobs", None, {"temperature": 1.0, "top_p": 1.0, "top_k": -1}, None),
        ("raw_logprobs", None, {"temperature": 1.0}, "sampling_unknown"),
        ("processed_logprobs", None, {}, "sampling_unknown"),
        ("processed_logprobs", Sampling(), {"temperature": 0.7}, None),
        ("processed_logprobs", FILTERED, {"temperature": 0.7}, "logprobs_after_filters"),
        (None, Sampling(), {"temperature": 0.7}, "logprobs_meaning_unknown"),
        (None, Sampling(), {}, None),
    ],
)
def test_what_may_mislead_is_named(mode: Any, defaults: Any, sampling: dict[str, Any], event: str | None) -> None:
    """Where tokens are drawn as the logprobs say, nothing is; the server's own defaults count as the caller's do."""
    info = ServerInfo(dialect="vllm", model="m", logprobs_mode=mode, sampling_defaults=defaults)
    found = doubt(info, EngineConfig(sampling=sampling))
    assert (found.event if found else None) == event
    if event in ("logprobs_before_sampling", "logprobs_meaning_unknown"):
        assert found is not None
        assert found.remedy.startswith("start vLLM with --logprobs-mode processed_logprobs, or sample at temperature 1")


def test_what_is_not_known_is_asked_for() -> None:
    """By the very flags that settle it."""
    info = ServerInfo(dialect="dynamo", model="m", logprobs_mode="raw_logprobs")
    found = doubt(info, EngineConfig(sampling={"temperature": 0.8}))
    assert found is not None
    assert found.remedy == "give them: -s top_p=1 -s top_k=-1"


def test_sglangs_logprobs_leave_filters_out() -> None:
    """They are of after temperature and penalties, so a filter alone makes them another distribution's."""
    info = ServerInfo(dialect="sglang", model="m", logprobs_mode="processed_logprobs", sampling_defaults=Sampling())
    assert doubt(info, EngineConfig(sampling={"temperature": 0.7})) is None
    found = doubt(info, EngineConfig(sampling={"temperature": 0.7, "top_p": 0.9}))
    assert found is not None
    assert (found.event, found.remedy) == ("logprobs_before_filters", "sample without them")


async def test_an_engine_says_it_once() -> None:
    """However many rollouts are played, and each turn says what its logprobs are of."""
    transport = ScriptedTransport([reply("x")] * 3)
    config = EngineConfig(sampling={"temperature": 0.5, "top_k": 4})
    with capture_logs() as events:
        async with Engine(config, lambda: Echo(turns=1), transport=transport) as engine:
            groups = [group async for group in engine.stream(Echo(turns=1).tasks(3, 0))]
    (event,) = (event for event in events if event["event"] == "logprobs_before_sampling")
    assert "temperature 0.5, top_k 4" in event["why"]
    turns = [turn for group in groups for rollout in group.rollouts for turn in rollout.turns]
    assert {turn.logprobs_mode for turn in turns} == {"raw_logprobs"}
    assert [turn.sampling for turn in turns] == [Sampling(temperature=0.5, top_k=4)] * 3


async def test_what_a_caller_asks_for_itself_is_said_once_too() -> None:
    """Programs send a temperature of their own: not that of the run, and not where nobody trains on it."""
    asked: list[dict[str, Any]] = [{"temperature": 0.25}, {"temperature": 0.5}, {"temperature": 0.0}, {}]
    info = ServerInfo(dialect="vllm", model="m", logprobs_mode="raw_logprobs", sampling_defaults=Sampling())

    async def said(*, train: bool, **config: Any) -> list[str]:
        transport = ScriptedTransport([reply("x")] * len(asked))
        model = ServedModel(transport=transport, info=info, codec=None, config=EngineConfig(**config))
        with capture_logs() as events:
            for at, sampling in enumerate(asked):
                await Session(model, f"s{at}").ask(Ask(messages=[user("hi")], sampling=sampling, train=train))
        return [event["event"] for event in events if event["event"].startswith("logprobs")]

    assert await said(train=True) == ["logprobs_before_sampling"]
    assert await said(train=False) == []
    assert await said(train=True, sampling={"temperature": 0.7}) == []  # of that the engine has spoken
