"""Whatever is posted is answered, and never by a fault of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.config import EngineConfig
from rollout.proxy.app import PATHS, create_app
from rollout.proxy.guard import Guard
from rollout.proxy.sessions import Keys, Served
from tests.rollout.proxy.kit import asking_of
from transports.scripted import ScriptedTransport, reply

NAMES = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "tool_calls",
        "id",
        "function",
        "name",
        "arguments",
        "tool_call_id",
        "call_id",
        "output",
        "input",
        "summary",
        "thinking",
        "signature",
        "source",
        "tool_use_id",
        "image_url",
        "encrypted_content",
        "schema",
        "parameters",
        "input_schema",
    ]
)
WORDS = st.sampled_from(
    [
        "user",
        "assistant",
        "system",
        "tool",
        "text",
        "tool_use",
        "tool_result",
        "thinking",
        "image",
        "function",
        "function_call",
        "function_call_output",
        "message",
        "reasoning",
        "custom",
        "auto",
        "required",
    ]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    WORDS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "tools",
        "tool_choice",
        "system",
        "stop",
        "stream",
        "stream_options",
        "response_format",
        "max_tokens",
        "n",
        "temperature",
        "metadata",
        "reasoning",
        "instructions",
        "previous_response_id",
        "include",
        "thinking",
        "text",
        "output_config",
    ]
)
ITEMS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4) | st.just({"role": "user", "content": "hello"}), max_size=5)


async def posted(path: str, body: dict[str, Any]) -> httpx.Response:
    config = EngineConfig(verify=True)
    asking = asking_of(ScriptedTransport([reply("4")]), config)
    tasks = list[asyncio.Task[None]]()

    def start(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        tasks.append(asyncio.ensure_future(function()))

    keys = Keys()
    headers = {"x-api-key": keys.add(Served(asking, config, start=start))}
    transport = httpx.ASGITransport(app=create_app(keys, Guard(), 2**20))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        return await client.post(path, json=body)


@pytest.mark.slow
@pytest.mark.parametrize("path", [*PATHS, "/v1/messages/count_tokens"])
@settings(max_examples=60)
@given(ITEMS, st.dictionaries(FIELDS, VALUES, max_size=3))
def test_any_request_is_answered_or_refused(path: str, items: list[Any], fields: dict[str, Any]) -> None:
    """By an answer, or by what is wrong with it, in JSON or as a stream."""
    body = {"model": "m", "max_tokens": 9, "messages": items, "input": items, **fields}
    answer = asyncio.run(posted(path, body))
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
