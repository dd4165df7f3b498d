"""A trace goes on at the server: each transport sends the request's headers of it, on both ways in."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from rollout.chat.messages import user
from rollout.errors import RequestRefused
from rollout.request import MessagePrompt, TokenPrompt
from rollout.transport import ServerInfo, Transport
from tests.transports.contract import request_of
from transports.dynamo import DynamoTransport
from transports.http.client import HttpClient
from transports.sglang.transport import SglangTransport
from transports.sglang.wire import Ways
from transports.vllm.transport import VllmTransport

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def info(dialect: str, route: str) -> ServerInfo:
    return ServerInfo(dialect=dialect, model="m", token_route=route, max_model_len=64)


MAKES = {
    "vllm": lambda client: VllmTransport(client, info("vllm", "/inference/v1/generate")),
    "dynamo": lambda client: DynamoTransport(client, info("dynamo", "/v1/chat/completions")),
    "sglang": lambda client: SglangTransport(client, info("sglang", "/generate"), Ways()),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
@pytest.mark.parametrize("prompt", [TokenPrompt([1, 2]), MessagePrompt(messages=[user("x")])], ids=["ids", "messages"])
async def test_the_server_is_told_the_trace(
    make: Callable[[HttpClient], Transport], prompt: TokenPrompt | MessagePrompt
) -> None:
    """`traceparent` is there where the request has it, and not where it has none."""
    seen: list[str | None] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        if b"prompt" in request.content or b"messages" in request.content or b"ids" in request.content:
            seen.append(request.headers.get("traceparent"))
        return httpx.Response(400, json={"error": {"message": "no"}})

    transport = make(HttpClient("http://x", transport=httpx.MockTransport(refuse)))
    for trace in ({"traceparent": PARENT}, {}):
        with pytest.raises(RequestRefused):
            await transport.generate(request_of(prompt, trace=trace))
    assert set(seen) == {PARENT, None}
    assert seen[0] == PARENT
    await transport.aclose()
