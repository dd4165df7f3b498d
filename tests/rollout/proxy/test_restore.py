"""A session after a crash: it is what it was, and its clients are known."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rollout.chat.messages import Function, Message, ToolCall
from rollout.records import Route
from rollout.store.folder import read_rollouts
from tests.rollout.play.test_session import ByteCodec
from tests.rollout.proxy.kit import text_of
from tests.rollout.proxy.recorder_kit import Recorded, recorded
from transports.scripted import reply


class Thinks(ByteCodec):
    """Reads a line of reasoning, what is said, and calls: `think|say|name:arguments`."""

    async def parse(self, prompt_ids: Any, completion_ids: Any, context: Any) -> Message:
        text = bytes(i for i in completion_ids if i < 256).decode()
        thought, said, *calls = text.split("|")
        made = [call.partition(":") for call in calls]
        return Message(
            "assistant",
            said or None,
            thought or None,
            tuple(ToolCall(function=Function(name, arguments)) for name, _, arguments in made),
        )


def turns_of(one: Recorded) -> list[Any]:
    """Those of the only session."""
    (live,) = one.recorder._live.values()
    return live.session.turns


async def test_a_crash_loses_no_turn_and_the_conversation_goes_on_token_in(tmp_path: Path) -> None:
    """The same key is accepted, and an answer that comes back without its reasoning is still known."""
    entries = [reply(f"thought {n}|said {n}") for n in range(9)]
    async with recorded(tmp_path / "run", *entries, codec=Thinks()) as one:
        assert text_of(await one.chat("k1", "hello")) == "said 0"
        assert text_of(await one.chat("k1", "hello", "said 0", "more")) == "said 1"
        before = turns_of(one)
    async with recorded(tmp_path / "run", *entries, codec=Thinks()) as one:
        assert turns_of(one) == before
        text_of(await one.chat("k1", "hello", "said 0", "more", "said 1", "and more"))
        after = turns_of(one)
        assert [turn.route for turn in after] == [Route.MESSAGE_IN, Route.TOKEN_IN, Route.TOKEN_IN]
        (live,) = one.recorder._live.values()
        session = live.opened.session
        await one.post(f"/sessions/{session}/end", {"reward": 1})
    (rollout,) = read_rollouts(tmp_path / "run")
    (sample,) = rollout.samples()
    assert sum(sample.loss_mask) == sum(turn.completion_tokens for turn in after)


async def test_calls_of_anthropics_clients_are_known_after_a_crash(tmp_path: Path) -> None:
    """They come back by the ids that were handed out before it, without the thinking."""
    tools = [{"name": "run", "input_schema": {"type": "object"}}]
    asked: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    body = {"model": "m", "max_tokens": 64, "tools": tools, "messages": asked}
    headers = {"x-api-key": "k1"}
    async with recorded(tmp_path / "run", reply("hm|look|run:{}"), codec=Thinks()) as one:
        answer = (await one.client.post("/v1/messages", json=body, headers=headers)).json()
    text, call = answer["content"][1:]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "ok"}
    asked += [{"role": "assistant", "content": [text, call]}, {"role": "user", "content": [result]}]
    async with recorded(tmp_path / "run", reply("|done"), codec=Thinks()) as one:
        assert (await one.client.post("/v1/messages", json=body, headers=headers)).status_code == 200
        assert [turn.route for turn in turns_of(one)] == [Route.MESSAGE_IN, Route.TOKEN_IN]


async def test_responses_are_known_after_a_crash(tmp_path: Path) -> None:
    """`previous_response_id` names one, and what goes on from that one names it in turn."""
    entries = [reply(f"hm|said {n}") for n in range(9)]
    headers = {"authorization": "Bearer k1"}
    previous = None
    for n in range(4):
        async with recorded(tmp_path / "run", *entries[n:], codec=Thinks()) as one:
            body = {"model": "m", "input": f"ask {n}", "previous_response_id": previous}
            answer = await one.client.post("/v1/responses", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            previous = answer.json()["id"]
            assert [turn.route for turn in turns_of(one)][1:] == [Route.TOKEN_IN] * n


async def test_a_marked_retry_is_answered_once_over_a_crash(tmp_path: Path) -> None:
    """A client that never saw its answer gets that answer, not another; an unmarked one is a new turn."""
    named = {"idempotency-key": "i-1"}
    async with recorded(tmp_path / "run") as one:
        first = await one.chat("k1", "hello", headers=named)
    async with recorded(tmp_path / "run", reply("another")) as one:
        for headers in ({"x-stainless-retry-count": "1"}, named):
            again = await one.chat("k1", "hello", headers=headers)
            assert again.json() == first.json()
        assert len(turns_of(one)) == 1
        assert text_of(await one.chat("k1", "hello")) == "another"


async def test_turns_at_once_are_all_kept(tmp_path: Path) -> None:
    """Sub-agents ask in parallel, and their names and branches are there after a crash."""
    async with recorded(tmp_path / "run") as one:
        first = text_of(await one.chat("k1", "hello"))
        asks = [one.chat("k1", "hello", first, f"go {n}", headers={"x-rollout-agent": f"a{n}"}) for n in range(12)]
        assert len({text_of(answer) for answer in await asyncio.gather(*asks)}) == 12
        (live,) = one.recorder._live.values()
        before = live.rollout()
    async with recorded(tmp_path / "run") as one:
        (live,) = one.recorder._live.values()
        after = live.rollout()
        assert (after.nodes, after.turns, after.leaves) == (before.nodes, before.turns, before.leaves)
        assert {turn.agent for turn in after.turns} == {"", *(f"a{n}" for n in range(12))}
        assert after.samples() == before.samples()


@pytest.mark.parametrize("thought", ["thought|", "|"])
async def test_what_a_stop_text_cut_off_is_known_before_and_after_a_crash(tmp_path: Path, thought: str) -> None:
    """Each dialect shows what came before it and Messages names it; the tokens stay as they were sampled, and what
    comes back without it goes on token-in."""
    entries = [reply(f"{thought}said {n} STOP", completion_ids=[*f"{thought}said {n} STOP".encode()]) for n in range(9)]
    asked: dict[str, Any] = {"model": "m", "max_tokens": 99}
    async with recorded(tmp_path / "run", *entries, codec=Thinks()) as one:
        assert text_of(await one.chat("k1", "hello", stop=["STOP"])) == "said 0 "
        body = {**asked, "messages": [{"role": "user", "content": "hello"}], "stop_sequences": ["x", "STOP"]}
        said = (await one.client.post("/v1/messages", json=body, headers={"x-api-key": "k2"})).json()
        assert (said["stop_reason"], said["stop_sequence"]) == ("stop_sequence", "STOP")
        assert said["content"][-1]["text"] == "said 1 "
        answer = (
            await one.client.post(
                "/v1/responses", json={"model": "m", "input": "hello", "stop": "STOP"}, headers={"x-api-key": "k3"}
            )
        ).json()
        assert answer["output"][-1]["content"][0]["text"] == "said 2 "
        assert text_of(await one.chat("k1", "hello", "said 0", "more", stop=["STOP"])) == "said 3 "
    async with recorded(tmp_path / "run", *entries, codec=Thinks()) as one:
        text_of(await one.chat("k1", "hello", "said 0", "more", "said 3 ", "and more"))
        messages = [*body["messages"], {"role": "assistant", "content": said["content"]}]
        body = {**asked, "messages": [*messages, {"role": "user", "content": "more"}]}
        assert (await one.client.post("/v1/messages", json=body, headers={"x-api-key": "k2"})).status_code == 200
        body = {"model": "m", "input": "more", "previous_response_id": answer["id"]}
        assert (await one.client.post("/v1/responses", json=body, headers={"x-api-key": "k3"})).status_code == 200
        for live in one.recorder._live.values():
            session = live.session
            assert {turn.route for turn in session.turns[1:]} == {Route.TOKEN_IN}
            first = session.trajectory.nodes[session.turns[0].node]
            assert bytes(one for one in first.ids if one < 256).endswith(b" STOP")
