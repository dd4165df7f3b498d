"""Dynamo's bodies and answers, as seen on the wire of 1.6.1."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from rollout.chat.messages import user
from rollout.errors import ConfigError, MalformedReply, PromptTooLong, RequestRefused, ServerBusy, TransportError
from rollout.request import MessagePrompt, Request, TokenPrompt
from rollout.transport import ServerInfo, TransportConfig
from transports.dynamo import GONE_S, DynamoTransport, chat_body, read_chat, session_headers
from transports.dynamo import open as open_dynamo
from transports.http.client import Answer, HttpClient
from transports.sglang.wire import GENERATE as STREAM
from transports.vllm.wire import GENERATE

TOOLS = [{"type": "function", "function": {"name": "add"}}]


def request(prompt: Any = None, **fields: Any) -> Request:
    base = {"request_id": "r1", "session_id": "s1", "max_tokens": 9, "stop_token_ids": [7, 8]}
    return Request(prompt=prompt or TokenPrompt([1, 2]), **{**base, **fields})


def on_wire(body: dict[str, Any]) -> Any:
    """A body as the server reads it."""
    return msgspec.json.decode(msgspec.json.encode(body))


def test_a_token_in_body_is_what_the_frontend_takes() -> None:
    """Ids in nvext, one placeholder message, no tools, parameters at the root, priority as a hint."""
    sampling = {"top_k": 5, "tools": TOOLS, "stop_token_ids": [7], "own_field": 1}
    body = on_wire(chat_body(request(sampling=sampling, priority=3, cache_salt="v1"), "m"))
    assert body == {
        "model": "m",
        "stream": False,
        "logprobs": True,
        "messages": [{"role": "user", "content": "."}],
        "top_k": 5,
        "own_field": 1,
        "stop_token_ids": [7, 8],
        "max_tokens": 9,
        "cache_salt": "v1",
        "nvext": {
            "token_data": [1, 2],
            "extra_fields": ["engine_data", "completion_token_ids"],
            "agent_hints": {"priority": 3},
        },
    }
    assert "return_token_ids" not in body
    assert "priority" not in body


def test_the_callers_extra_fields_come_first_without_repeats() -> None:
    """The caller's order is kept and ours is appended; the caller's nvext is not changed."""
    own = {"extra_fields": ["timing", "engine_data"], "agent_hints": {"x": 1}}
    body = on_wire(chat_body(request(sampling={"nvext": own}, priority=1, echo_prompt=True), "m"))
    assert body["nvext"]["extra_fields"] == ["timing", "engine_data", "completion_token_ids", "prompt_token_ids"]
    assert body["nvext"]["agent_hints"] == {"x": 1, "priority": 1}
    assert own == {"extra_fields": ["timing", "engine_data"], "agent_hints": {"x": 1}}


def test_a_message_in_body_has_tools_and_template_arguments() -> None:
    """Messages, tools and chat-template arguments go to the server's template; prompt ids are asked for."""
    prompt = MessagePrompt(messages=[user("hi")], tools=TOOLS, template_args={"enable_thinking": False})
    body = on_wire(chat_body(request(prompt), "m"))
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert body["tools"] == TOOLS
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "prompt_token_ids" in body["nvext"]["extra_fields"]
    assert "token_data" not in body["nvext"]


def test_the_session_goes_in_headers() -> None:
    """One header names the trajectory, another the request."""
    assert session_headers(request()) == {"x-dynamo-session-id": "s1", "x-request-id": request().request_id}


def answered(nvext: Any, logprobs: Any = None, **changes: Any) -> Answer:
    choice = {"message": {"role": "assistant", "content": None}, "finish_reason": "stop", "logprobs": logprobs}
    return Answer(200, msgspec.json.encode({"choices": [{**choice, **changes}], "nvext": nvext}), 0.1)


def content(*values: float | None) -> dict[str, Any]:
    return {"content": [{"token": "x", "logprob": value} for value in values]}


def test_the_engines_ids_and_logprobs_are_taken_together() -> None:
    """Where engine_data is there, nothing is taken from the choice."""
    engine = {
        "prompt_token_ids": [1],
        "completion_token_ids": [5, 6],
        "completion_logprobs": [-1.0, -2.0],
    }
    engine["kv_cache_hit"] = {"prompt_tokens": 1, "reused_tokens": 1}
    reply = read_chat(answered({"engine_data": engine}, content(-9.0)))
    assert (reply.prompt_ids, reply.completion_ids, reply.logprobs) == ([1], [5, 6], [-1.0, -2.0])
    assert reply.cached_tokens == 1


def test_without_an_engine_the_frontends_own_fields_serve() -> None:
    """Ids from nvext go with the choice's logprobs where there is one for each."""
    nvext = {"prompt_token_ids": [1], "completion_token_ids": [5, 6]}
    reply = read_chat(answered(nvext, content(-1.0, -2.0)))
    assert (reply.completion_ids, reply.logprobs) == ([5, 6], [-1.0, -2.0])


def test_a_mocker_has_no_logprobs_and_says_so() -> None:
    """Where nothing computes logprobs each is NaN, which no loss can use unseen."""
    reply = read_chat(answered({"completion_token_ids": [5, 6]}))
    assert reply.logprobs is not None
    assert [math.isnan(value) for value in reply.logprobs] == [True, True]


@pytest.mark.parametrize("nvext", [None, {}, {"engine_data": {}}])
def test_no_ids_are_no_ids(nvext: Any) -> None:
    """A frontend that reports none is believed; the session falls back with `ids_missing`."""
    reply = read_chat(answered(nvext, content(-1.0)))
    assert reply.completion_ids is None
    assert reply.logprobs is None


@pytest.mark.parametrize(
    ("nvext", "logprobs", "said"),
    [
        ({"engine_data": {"completion_token_ids": [5, 6], "completion_logprobs": [-1.0]}}, None, "2 ids but 1"),
        ({"engine_data": {"completion_token_ids": [5]}}, content(-1.0), "no logprobs"),
        (
            {"engine_data": {"completion_token_ids": [5], "completion_logprobs": [-1]}, "completion_token_ids": [6]},
            None,
            "disagree",
        ),
        ({"completion_token_ids": [5, 6]}, content(-1.0), "2 ids but 1"),
    ],
)
def test_counts_that_differ_are_errors(nvext: Any, logprobs: Any, said: str) -> None:
    """566 ids beside 565 logprobs are an error of the turn, never a silent trim."""
    with pytest.raises(MalformedReply, match=said):
        read_chat(answered(nvext, logprobs))


async def test_there_is_no_tokenize() -> None:
    """Dynamo's lack of the route is said with the remedy."""
    carrier = DynamoTransport(HttpClient("http://x"), ServerInfo(dialect="dynamo", model="m"))
    with pytest.raises(TransportError, match="--tokenizer"):
        await carrier.tokenize(MessagePrompt(messages=[user("x")]), add_generation_prompt=True)


class Frontend(httpx.AsyncBaseTransport):
    """A frontend in process, whose generate route answers what a test says; `nvext` always serves."""

    def __init__(self, status: int = 200, said: str = "") -> None:
        self.status, self.said = status, said
        self.streams = False
        """Whether it serves SGLang's route, too."""
        self.seen: list[tuple[str, dict[str, Any], httpx.Headers]] = []
        self.now = 0.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            card = {"id": "m", "owned_by": "nvidia", "context_window": 64}
            return httpx.Response(200, json={"data": [card]})
        self.seen.append((path, msgspec.json.decode(request.content), request.headers))
        if path == STREAM and self.streams:
            meta = {"finish_reason": {"type": "length"}, "output_token_logprobs": [[-3.0, 8, None]]}
            said = msgspec.json.encode({"output_ids": [8], "meta_info": meta})
            return httpx.Response(200, content=b"data: " + said + b"\n\ndata: [DONE]\n\n")
        if path == STREAM:
            return httpx.Response(404, json={"error": {"message": "no generate-capable model is registered"}})
        if path != GENERATE:
            engine = {"prompt_token_ids": [1], "completion_token_ids": [5], "completion_logprobs": [-1.0]}
            return httpx.Response(200, json={"choices": [{"finish_reason": "stop"}], "nvext": {"engine_data": engine}})
        if self.status != 200:
            return httpx.Response(self.status, json={"error": {"message": self.said, "code": self.status}})
        logprobs = {"content": [{"token": "token_id:6", "logprob": -2.0, "bytes": [], "top_logprobs": []}]}
        choice = {"index": 0, "token_ids": [6], "logprobs": logprobs, "finish_reason": "stop", "sampling_mask": None}
        return httpx.Response(200, json={"request_id": "r1", "choices": [choice], "kv_transfer_params": None})

    def client(self) -> HttpClient:
        async def at_once(_: float) -> None: ...

        return HttpClient("http://x", transport=self, retries=2, sleep=at_once)

    def carrier(self, route: str = GENERATE) -> DynamoTransport:
        """A transport by a native route, whose clock is this one's."""
        info = ServerInfo(dialect="dynamo", model="m", token_route=route, max_model_len=64)
        return DynamoTransport(self.client(), info, clock=lambda: self.now)

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.seen]


async def test_the_generate_route_is_found_by_a_call_and_taken_when_asked_for() -> None:
    """It says less than `nvext`, which is the best of the two."""
    async with open_dynamo_of(Frontend()) as carrier:
        assert carrier.info.token_routes == ["/v1/chat/completions", GENERATE]
        assert carrier.info.token_route == "/v1/chat/completions"
    async with open_dynamo_of(Frontend(), token_route=GENERATE) as carrier:
        assert carrier.info.token_route == GENERATE


async def test_sglangs_route_is_found_by_a_call_and_taken_when_asked_for() -> None:
    """Ids go by it, streamed, with their session in the header, and messages by chat as ever."""
    frontend = Frontend()
    frontend.streams = True
    async with open_dynamo_of(frontend, token_route=STREAM) as carrier:
        assert carrier.info.token_routes == ["/v1/chat/completions", GENERATE, STREAM]
        reply = await carrier.generate(request())
        assert (reply.completion_ids, reply.logprobs, reply.finish_reason) == ([8], [-3.0], "length")
        path, body, headers = frontend.seen[-1]
        assert (path, body["stream"], body["input_ids"]) == (STREAM, True, [1, 2])
        assert headers["x-dynamo-session-id"] == "s1"
        await carrier.generate(request(MessagePrompt(messages=[user("x")])))
        assert frontend.paths[-1] == "/v1/chat/completions"
        frontend.streams = False
        assert (await carrier.generate(request())).completion_ids == [5]
        assert carrier.detours == {"404": 1}


async def test_a_route_that_no_worker_serves_cannot_be_forced() -> None:
    """Mockers answer that they have no such model; the routes that work are named."""
    with pytest.raises(ConfigError, match=r"those that work: /v1/chat/completions$"):
        async with open_dynamo_of(Frontend(404, "Model not found: m"), token_route=GENERATE):
            pass


@asynccontextmanager
async def open_dynamo_of(frontend: Frontend, **config: Any) -> AsyncIterator[DynamoTransport]:
    carrier = await open_dynamo(TransportConfig(base_url="http://x", **config), frontend.client())
    try:
        yield carrier
    finally:
        await carrier.aclose()


async def test_ids_go_by_the_generate_route_with_their_session() -> None:
    """vLLM's body and answer, Dynamo's headers; messages go by chat as ever."""
    frontend = Frontend()
    carrier = frontend.carrier()
    reply = await carrier.generate(request(sampling={"top_k": 5, "nvext": {"a": 1}}, priority=3, cache_salt="v1"))
    assert (reply.completion_ids, reply.logprobs, reply.finish_reason) == ([6], [-2.0], "stop")
    ((path, body, headers),) = frontend.seen
    assert path == GENERATE
    assert (headers["x-dynamo-session-id"], headers["x-request-id"]) == ("s1", "r1")
    assert body.pop("sampling_params") == {
        "top_k": 5,
        "logprobs": 0,
        "max_tokens": 9,
        "stop_token_ids": [7, 8],
        "detokenize": False,
    }
    assert body == {
        "model": "m",
        "token_ids": [1, 2],
        "request_id": "r1",
        "cache_salt": "v1",
        "priority": 3,
        "nvext": {"a": 1},
    }
    await carrier.generate(request(MessagePrompt(messages=[user("x")])))
    assert frontend.paths[-1] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "Model not found: m"), (503, "Model unavailable: m"), (501, "not implemented"), (405, "no")],
)
async def test_a_worker_that_goes_is_a_detour_and_it_comes_back(
    status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same ids by `nvext`, counted by what was answered; the route is asked again after a while, by one prompt."""
    frontend = Frontend()
    carrier = frontend.carrier()
    frontend.status, frontend.said = status, said
    for _ in range(3):
        assert (await carrier.generate(request())).completion_ids == [5]
    assert carrier.detours == {str(status): 3}
    sent = frontend.seen[-1][1]
    assert sent["nvext"]["token_data"] == [1, 2]
    tried = frontend.paths.count(GENERATE)
    assert tried == (1 if status < 500 else 3)

    frontend.status = 200
    assert (await carrier.generate(request())).completion_ids == [5]
    frontend.now += GONE_S
    assert (await carrier.generate(request())).completion_ids == [6]
    assert (await carrier.generate(request())).completion_ids == [6]
    assert carrier.detours == {str(status): 4}
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    assert [event for event in events if event.startswith("token_route")] == ["token_route_gone", "token_route_back"]
    assert said in caplog.text
    await carrier.aclose()
    assert "token_route_detours" in caplog.text


async def test_a_fault_of_one_prompt_leaves_the_route_to_the_others() -> None:
    """What a worker's death answers first says nothing of the route: the next prompt goes by it."""
    frontend = Frontend(500, "internal server error")
    carrier = frontend.carrier()
    assert (await carrier.generate(request())).completion_ids == [5]
    frontend.status = 200
    assert (await carrier.generate(request())).completion_ids == [6]
    assert carrier.detours == {"500": 1}


async def test_what_is_wrong_with_a_prompt_is_no_detour() -> None:
    """The worker's refusal has no reason on this route, so what it may be is said; a length is refused here."""
    frontend = Frontend(400, "Invalid request")
    carrier = frontend.carrier()
    with pytest.raises(RequestRefused, match=r"Invalid request: Dynamo does not say why.*--token-route"):
        await carrier.generate(request())
    frontend.said = "Temperature must be between 0 and 2, got -1"
    with pytest.raises(RequestRefused, match=r"got -1$"):
        await carrier.generate(request())
    before = len(frontend.seen)
    with pytest.raises(PromptTooLong, match="64 tokens do not fit the context of 64"):
        await carrier.generate(request(TokenPrompt([1] * 64)))
    assert len(frontend.seen) == before
    frontend.status = 429
    with pytest.raises(ServerBusy):
        await carrier.generate(request())
    assert not carrier.detours
