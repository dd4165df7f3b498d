"""An answer on its way: streams, keepalives, errors in their middle."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.rollout.proxy.kit import chat_body, proxied
from transports.scripted import Held, Stalled, reply

PATHS = {
    "/v1/chat/completions": (chat_body("hello", stream=True), "[DONE]"),
    "/v1/responses": ({"model": "m", "input": "hello", "stream": True}, "response.completed"),
    "/v1/messages": (chat_body("hello", stream=True, max_tokens=64), "message_stop"),
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_ends_with_its_last_event(path: str) -> None:
    """In each dialect; the turn is committed by then."""
    body, last = PATHS[path]
    async with proxied() as served:
        answer = await served.client.post(path, json=body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert last in answer.text.strip().split("\n\n")[-1]
        assert len(served.asking.session.turns) == 1


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_is_kept_open_while_the_model_thinks(path: str) -> None:
    """By comments, before its first event."""
    body, last = PATHS[path]
    held = Held(reply("4"))
    async with proxied(held, proxy_keepalive_s=0.01) as served:
        async with served.client.stream("POST", path, json=body) as answer:
            lines = answer.aiter_lines()
            assert [await anext(lines) for _ in range(4)] == [": keepalive", "", ": keepalive", ""]
            held.release()
            rest = "\n".join([line async for line in lines])
        assert last in rest


@pytest.mark.parametrize("path", PATHS)
async def test_what_is_refused_at_once_is_refused_by_its_status(path: str) -> None:
    """A stream that has not begun is no stream: programs compact, or give up, by the status."""
    async with proxied(max_model_len=16) as served:
        body: dict[str, Any] = dict(PATHS[path][0])
        body |= {"input": "x" * 99} if "input" in body else {"messages": [{"role": "user", "content": "x" * 99}]}
        answer = await served.client.post(path, json=body)
        assert (answer.status_code, "prompt is too long" in answer.text) == (400, True)


@pytest.mark.parametrize("path", PATHS)
async def test_an_error_after_the_beginning_is_the_last_event(path: str) -> None:
    """In the dialect's own form: the status was sent already."""
    async with proxied(Stalled(), proxy_keepalive_s=0.01) as served:
        async with served.client.stream("POST", path, json=PATHS[path][0]) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == ": keepalive"
            served.endpoints.close(served.model)
            rest = "\n".join([line async for line in lines])
        assert answer.status_code == 200
        assert "has ended" in rest
        assert "error" in rest


async def test_a_client_that_leaves_a_stream_is_told_to_its_turn() -> None:
    """Nobody waits for it then."""
    held = Held(reply("4"))
    async with proxied(held, proxy_keepalive_s=0.01, client_gone_s=60) as served:
        async with served.client.stream("POST", "/v1/chat/completions", json=chat_body("hello", stream=True)) as answer:
            await anext(answer.aiter_lines())
        held.release()
        again = {"x-stainless-retry-count": "1"}
        answer = await served.chat("hello", stream=True, headers=again)
        assert '"content":"4"' in answer.text
        assert len(served.asking.session.turns) == 1


async def test_frames_reach_a_client_whole_however_large_they_are() -> None:
    """An answer of a megabyte arrives as it was said."""
    text = "word " * 200_000
    async with proxied(reply(text)) as served:
        answer = await served.chat("hello", stream=True)
        pieces = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
        said = [httpx.Response(200, content=piece).json()["choices"] for piece in pieces]
        assert "".join(choices[0]["delta"].get("content") or "" for choices in said if choices) == text


async def test_many_agents_are_answered_at_once() -> None:
    """One that waits holds up no other."""
    held = Held(reply("late"))
    async with proxied(held, *[reply("soon")] * 20) as served:
        waits = asyncio.ensure_future(served.chat("hello"))
        await served.transport.wait_for(1)
        answers = await asyncio.gather(*(served.chat("hello") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert not waits.done()
        held.release()
        assert (await waits).status_code == 200
