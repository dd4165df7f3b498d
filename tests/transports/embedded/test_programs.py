"""The embedded server as programs ask it: by the official SDKs, in three dialects, streamed and not."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from starlette.applications import Starlette

from envs.calculator import Calculator
from tests.transports.embedded.conftest import client_of
from transports.embedded.app import create_app
from transports.embedded.engine import Engine
from transports.embedded.model import Model

MODEL = "rollout-tiny"
QUESTION = [{"role": "user", "content": "Ada has 12 coins. Ben gives Ada 7 coins. How many coins does Ada have?"}]
TOOLS: Any = list(Calculator.tools)
ANTHROPIC_TOOLS = [
    {"name": tool["function"]["name"], "description": "", "input_schema": tool["function"]["parameters"]}
    for tool in TOOLS
]


@pytest.fixture
async def app(model: Model) -> AsyncIterator[Starlette]:
    """A server in this process."""
    app = create_app(engine=Engine(model))
    async with client_of(app):
        yield app


def client_in_process(sdk: Any, kind: str, app: Starlette, **options: Any) -> Any:
    """An SDK's own client over an app in this process."""
    default = sdk.DefaultAsyncHttpxClient
    named = (base.__module__.partition(".")[0] for base in default.__mro__ if base.__name__ == "AsyncClient")
    httpx = importlib.import_module(next(named))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return getattr(sdk, kind)(max_retries=0, http_client=default(transport=transport), **{"api_key": "k", **options})


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_in_process(openai, "AsyncOpenAI", app, base_url="http://embedded/v1") as client:
        yield client


@pytest.fixture
async def claude(app: Starlette) -> AsyncIterator[Any]:
    sdk: Any = importlib.import_module("anthropic")
    async with client_in_process(sdk, "AsyncAnthropic", app, base_url="http://embedded") as client:
        yield client


async def test_a_call_is_parsed_streamed_or_not(client: openai.AsyncOpenAI) -> None:
    """The model calls a tool that it was trained on, and the SDK gives the call, whole or in pieces."""
    asked: Any = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "temperature": 0}
    choice = (await client.chat.completions.create(**asked)).choices[0]
    assert choice.finish_reason == "tool_calls"
    whole = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, counts = [chunk async for chunk in await client.chat.completions.create(**asked, **options)]
    names, pieces = dict[int, str](), dict[int, str]()
    for call in (call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()):
        names[call.index] = names.get(call.index) or call.function.name
        pieces[call.index] = pieces.get(call.index, "") + (call.function.arguments or "")
    assert [(names[at], pieces[at]) for at in names] == whole
    assert whole[0][0] in {tool["function"]["name"] for tool in TOOLS}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert counts.usage is not None


async def test_calls_are_left_in_the_text_where_tools_are_not_to_be_called(client: openai.AsyncOpenAI) -> None:
    """`tool_choice: none` is how our own transport asks, which reads ids itself."""
    asked: Any = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "temperature": 0, "tool_choice": "none"}
    message = (await client.chat.completions.create(**asked)).choices[0].message
    assert not message.tool_calls
    assert "<tool_call>" in (message.content or "")


async def test_several_answers_are_streamed(client: openai.AsyncOpenAI) -> None:
    """Each under its own index."""
    asked: Any = {"model": MODEL, "messages": QUESTION, "n": 3, "max_tokens": 5, "stream": True}
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked)]
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1, 2}
    assert len([1 for chunk in chunks for choice in chunk.choices if choice.finish_reason]) == 3


async def test_a_conversation_in_responses(client: openai.AsyncOpenAI) -> None:
    """A call, its output by the earlier response's id, and an answer, streamed."""
    tools: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
    asked: Any = {"model": MODEL, "tools": tools, "temperature": 0}
    first = await client.responses.create(input=QUESTION[0]["content"], **asked)
    call = next(item for item in first.output if item.type == "function_call")
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "19"}]
    async with client.responses.stream(input=output, previous_response_id=first.id, **asked) as events:
        async for _ in events:
            pass
        second = await events.get_final_response()
    assert second.status == "completed"
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens


async def test_a_conversation_in_messages(claude: Any) -> None:
    """A call, its result, and tokens that are counted as they are taken."""
    asked: Any = {"model": MODEL, "max_tokens": 9_000, "tools": ANTHROPIC_TOOLS, "messages": [*QUESTION]}
    asked["extra_body"] = {"temperature": 0}
    counted = await claude.messages.count_tokens(**{key: asked[key] for key in ("model", "tools", "messages")})
    async with claude.messages.stream(**asked) as events:
        message = await events.get_final_message()
    assert message.stop_reason == "tool_use"
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == counted.input_tokens
    result = {"type": "tool_result", "tool_use_id": message.content[-1].id, "content": "19"}
    asked["messages"] += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert (await claude.messages.create(**asked)).usage.cache_read_input_tokens > 0


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"model": "x"}, 404, "does not exist"),
        ({"tool_choice": {"type": "any"}}, 400, "cannot force a call"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, 400, "response_format"),
        ({"messages": [{"role": "user", "content": "long " * 20_000}]}, 400, "prompt is too long"),
        ({"extra_body": {"temperature": -1}}, 400, "temperature"),
    ],
)
async def test_what_it_cannot_do_is_refused(claude: Any, fields: dict[str, Any], status: int, named: str) -> None:
    """By name, in the dialect's own form."""
    asked = {"model": MODEL, "max_tokens": 5, "tools": ANTHROPIC_TOOLS, "messages": QUESTION, **fields}
    with pytest.raises(Exception, match=named) as refused:
        await claude.messages.create(**asked)
    assert getattr(refused.value, "status_code", None) == status


async def test_a_key_is_asked_for(model: Model) -> None:
    """Whoever does not send it is let into the health check only; both clients' ways of sending it are taken."""
    app = create_app(engine=Engine(model), api_key="s3cret")
    async with client_of(app) as http:
        assert (await http.get("/health")).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert (await http.get(path)).status_code == 401
        assert (await http.post("/v1/messages", json={})).json()["error"]["type"] == "authentication_error"
        for headers in ({"authorization": "Bearer s3cret"}, {"x-api-key": "s3cret"}):
            assert (await http.get("/v1/models", headers=headers)).status_code == 200
        assert (await http.get("/v1/models", headers={b"authorization": b"Bearer s3cr\xe9t"})).status_code == 401
        assert "s3cret" not in (await http.get("/v1/models")).text
