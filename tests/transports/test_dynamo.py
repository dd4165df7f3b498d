"""Dynamo's bodies and answers, as seen on the wire of 1.6.1."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from rollout.chat.messages import user
from rollout.errors import MalformedReply, TransportError
from rollout.request import MessagePrompt, Request, TokenPrompt
from rollout.transport import ServerInfo
from transports.dynamo import DynamoTransport, chat_body, read_chat, session_headers
from transports.http.client import Answer, HttpClient

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
