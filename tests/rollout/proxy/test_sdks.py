"""The official SDKs against a rollout's endpoint: their own loops, streams, retries and errors."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openai
import pytest

from rollout.chat.messages import Function, Message, ToolCall
from rollout.codec.types import Context
from rollout.errors import ServerBusy
from rollout.records import Route
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.samples import samples_of_tree
from tests.rollout.play.test_session import ByteCodec
from tests.rollout.proxy.kit import Proxied, proxied
from transports.scripted import Fault, Stalled, reply

#: Any: whoever checks types needs no second SDK for it.
anthropic: Any = importlib.import_module("anthropic")

TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


class CallsCodec(ByteCodec):
    """The scripted format, in which a text that begins with `!` is a thought and a call."""

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message:
        said = await super().parse(prompt_ids, completion_ids, context)
        if not said.text.startswith("!"):
            return said
        call = ToolCall(function=Function("add", json.dumps({"a": said.text[1:]})), id="call00000")
        return Message("assistant", "I add.", f"about {said.text[1:]}", (call,))


@contextlib.asynccontextmanager
async def calling(*entries: Any, **config: Any) -> AsyncIterator[Proxied]:
    """A rollout whose model thinks and calls a tool on each turn."""
    async with proxied(*(entries or [reply(f"!{n}") for n in range(9)]), **config) as served:
        served.asking.session._model.codec = CallsCodec()
        yield served


def all_token_in(served: Proxied, turns: int) -> None:
    """Each turn but the first is what was sampled and a bridge, and each token is trained on once."""
    session = served.asking.session
    assert [turn.route for turn in session.turns] == [Route.MESSAGE_IN] + [Route.TOKEN_IN] * (turns - 1)
    (sample,) = samples_of_tree(session.trajectory)
    assert sum(sample.loss_mask) == sum(turn.completion_tokens for turn in session.turns)


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_chat_loop_goes_token_in(stream: bool) -> None:
    """Its messages come back as its SDK writes them, without the reasoning, with our ids of calls."""
    async with calling() as served:
        client = openai.AsyncOpenAI(base_url=served.endpoint.openai_base_url, api_key=served.endpoint.api_key)
        asked: dict[str, Any] = {"model": "m", "tools": [{"type": "function", "function": TOOL}]}
        messages: list[Any] = [{"role": "user", "content": "begin"}]
        for _ in range(4):
            if stream:
                async with client.chat.completions.stream(messages=messages, **asked) as events:
                    message = (await events.get_final_completion()).choices[0].message
            else:
                message = (await client.chat.completions.create(messages=messages, **asked)).choices[0].message
            assert message.tool_calls
            sent = message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})
            for call in sent["tool_calls"]:
                call.pop("index", None)
                call["function"].pop("parsed_arguments", None)
            messages += [sent, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "4"}]
        all_token_in(served, 4)
        await client.close()


async def test_anthropics_loop_goes_token_in() -> None:
    """Thinking and tool uses come back verbatim."""
    async with calling() as served:
        client = anthropic.AsyncAnthropic(base_url=served.endpoint.base_url, api_key=served.endpoint.api_key)
        tool: Any = {"name": "add", "input_schema": TOOL["parameters"]}
        messages: list[Any] = [{"role": "user", "content": "begin"}]
        for at in range(4):
            async with client.messages.stream(model="m", max_tokens=99, tools=[tool], messages=messages) as events:
                said = await events.get_final_message()
            assert [block.type for block in said.content] == ["thinking", "text", "tool_use"]
            use = said.content[-1].to_dict()
            assert use["input"] == {"a": str(at)}
            result = {"type": "tool_result", "tool_use_id": use["id"], "content": "4"}
            content = [block.to_dict() for block in said.content]
            messages += [{"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
        all_token_in(served, 4)
        counted = await client.messages.count_tokens(model="m", tools=[tool], messages=messages)
        assert counted.input_tokens > said.usage.input_tokens
        await client.close()


@pytest.mark.slow
@pytest.mark.parametrize("by_id", [False, True])
async def test_openais_responses_loop_goes_token_in(by_id: bool) -> None:
    """With the whole history each time, as Codex sends it, and with `previous_response_id`."""
    async with calling() as served:
        client = openai.AsyncOpenAI(base_url=served.endpoint.openai_base_url, api_key=served.endpoint.api_key)
        asked: dict[str, Any] = {"model": "m", "tools": [{"type": "function", **TOOL}]}
        items: list[Any] = [{"role": "user", "content": "begin"}]
        new, last = list(items), None
        for _ in range(4):
            given = {"input": new, "previous_response_id": last} if by_id else {"input": items}
            async with client.responses.stream(**asked, **given) as events:
                answer = await events.get_final_response()
            call = answer.output[-1].to_dict()
            assert call["type"] == "function_call"
            new = [{"type": "function_call_output", "call_id": call["call_id"], "output": "4"}]
            items += [item.to_dict() for item in answer.output] + new
            last = answer.id
            for item in items:
                item.pop("parsed_arguments", None)
        all_token_in(served, 4)
        await client.close()


async def test_an_sdk_tries_again_by_itself_and_the_turn_is_one() -> None:
    """A server that fails for a moment costs no rollout: the SDK's own retry succeeds."""
    async with proxied(Fault(ServerBusy("full", status=503)), reply("4")) as served:
        client = anthropic.AsyncAnthropic(base_url=served.endpoint.base_url, api_key=served.endpoint.api_key)
        said = await client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hello"}])
        assert said.content[0].to_dict()["text"] == "4"
        assert len(served.asking.session.turns) == 1
        assert not served.asking.faults
        await client.close()


async def test_an_sdk_is_told_a_limit_once() -> None:
    """As its own exception, without retries."""
    async with proxied(max_turns=0 + 1) as served:
        client = openai.AsyncOpenAI(base_url=served.endpoint.openai_base_url, api_key=served.endpoint.api_key)
        messages: list[Any] = [{"role": "user", "content": "hello"}]
        await client.chat.completions.create(model="m", messages=messages)
        with pytest.raises(openai.BadRequestError, match="max_turns"):
            await client.chat.completions.create(model="m", messages=messages)
        served.endpoints.close(served.model)
        with pytest.raises(openai.ConflictError, match="has ended"):
            await client.chat.completions.create(model="m", messages=messages)
        await client.close()


async def test_a_client_that_times_out_and_tries_again_has_one_turn() -> None:
    """Its own retry joins the turn that is under way."""
    async with proxied(Stalled(), client_gone_s=60) as served:
        at = served.endpoint
        client = openai.AsyncOpenAI(base_url=at.openai_base_url, api_key=at.api_key, timeout=0.2, max_retries=1)
        messages: list[Any] = [{"role": "user", "content": "hello"}]
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="m", messages=messages)
        assert len(served.transport.requests) == 1
        await client.close()


async def test_sub_agents_at_once_lie_in_one_tree() -> None:
    """Three of them beside the main loop, by the headers of their program: each goes on token-in from its own."""
    async with proxied(*[reply(f"answer {n}") for n in range(12)]) as served:
        at = served.endpoint

        async def loop(name: str) -> None:
            headers = {"x-claude-code-agent-id": name} if name else {}
            client = anthropic.AsyncAnthropic(base_url=at.base_url, api_key=at.api_key, default_headers=headers)
            messages: list[Any] = [{"role": "user", "content": f"I am {name}"}]
            for _ in range(3):
                said = await client.messages.create(model="m", max_tokens=99, messages=messages)
                content = [block.to_dict() for block in said.content]
                messages += [{"role": "assistant", "content": content}, {"role": "user", "content": "go on"}]
            await client.close()

        await asyncio.gather(*map(loop, ("", "one", "two", "three")))
        session = served.asking.session
        first = [turn for turn in session.turns if turn.route is Route.MESSAGE_IN]
        assert [turn.fallback for turn in first] == [FallbackReason.FIRST_TURN] * 4
        assert sorted(turn.agent for turn in first) == ["", "one", "three", "two"]
        samples = samples_of_tree(session.trajectory)
        assert len(samples) == 4
        assert sum(sum(each.loss_mask) for each in samples) == sum(turn.completion_tokens for turn in session.turns)
