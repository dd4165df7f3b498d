"""Case use/route_logprobs: token-in paid for an alternative of each token, which message-in does not ask for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from rollout.chat.messages import user
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.transport import TransportConfig
from transports.embedded.app import create_app
from transports.http.client import HttpClient
from transports.vllm import transport as vllm


class Recording(httpx.ASGITransport):
    """The embedded server, and what it was asked and what it answered."""

    def __init__(self) -> None:
        self.app_ = create_app()
        super().__init__(self.app_, raise_app_exceptions=False)
        self.exchanges: list[tuple[dict[str, Any], dict[str, Any]]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        response = await super().handle_async_request(request)
        answer = await response.aread()
        if request.method == "POST":
            self.exchanges.append((json.loads(body), json.loads(answer or b"null")))
        return httpx.Response(response.status_code, headers=response.headers, content=answer)


def alternatives(answer: Any) -> set[int]:
    """How many alternatives the tokens of an answer came with."""
    logprobs = answer["choices"][0]["logprobs"]
    if "content" in logprobs:
        return {len(entry["top_logprobs"]) for entry in logprobs["content"]}
    return {len(top) - 1 for top in logprobs["top_logprobs"]}  # the sampled token is among them


@pytest.mark.parametrize("route", ["/inference/v1/generate", "/v1/completions"])
async def test_token_in_asks_for_no_more_than_message_in(route: str) -> None:
    """On every route each token comes with its own logprob and nothing else to be ranked, and none is missing."""
    server = Recording()
    client = HttpClient("http://x", transport=server, retries=0)
    transport = await vllm.open(TransportConfig(base_url="http://x", token_route=route), client)
    messages = MessagePrompt([user("Guess my number from 1 to 64.")])
    ids = TokenPrompt(await transport.tokenize(messages, add_generation_prompt=True))
    replies: list[Reply] = []
    for prompt in (messages, ids):
        request = Request(prompt=prompt, request_id="r", session_id="s", max_tokens=12)
        replies.append(await transport.generate(request))
    asked = [exchange for exchange in server.exchanges if exchange[0].get("max_tokens", 12) == 12][-2:]
    assert [alternatives(answer) for _, answer in asked] == [{0}, {0}]
    assert all(len(reply.logprobs or ()) == len(reply.completion_ids or ()) > 0 for reply in replies)
    await transport.aclose()
    server.app_.state.engine.close()
