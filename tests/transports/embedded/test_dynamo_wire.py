"""Dynamo's wire, as `wire.md` saw it on live servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.transports.embedded.conftest import client_of
from transports.embedded.app import create_app
from transports.embedded.engine import Engine
from transports.embedded.model import Model

MODEL = "rollout-tiny"
HELLO = [{"role": "user", "content": "Guess my number from 1 to 64. 7 guesses left."}]
PLACEHOLDER = [{"role": "user", "content": "-"}]


@pytest.fixture
async def client(model: Model) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a Dynamo app with a small context."""
    async with client_of(create_app(engine=Engine(model), dialect="dynamo", max_model_len=512)) as client:
        yield client


async def chat(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """A chat request."""
    return await client.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, **body})


async def test_the_server_names_itself(client: httpx.AsyncClient) -> None:
    """No /version, NVIDIA's models, their context, and Dynamo in the routes' title."""
    assert (await client.get("/version")).status_code == 404
    (card,) = (await client.get("/v1/models")).json()["data"]
    assert (card["id"], card["owned_by"], card["context_window"]) == (MODEL, "nvidia", 512)
    assert "max_model_len" not in card
    assert "Dynamo" in (await client.get("/openapi.json")).json()["info"]["title"]


async def test_ids_come_only_when_asked_for(client: httpx.AsyncClient) -> None:
    """Without extra_fields there is no nvext; with engine_data it has ids, logprobs and cache hits."""
    assert "nvext" not in (await chat(client, max_tokens=2)).json()
    answer = (await chat(client, max_tokens=30, logprobs=True, nvext={"extra_fields": ["engine_data"]})).json()
    data = answer["nvext"]["engine_data"]
    assert len(data["completion_token_ids"]) == len(data["completion_logprobs"])
    assert data["completion_token_ids"][-1] == 2024
    assert data["kv_cache_hit"] == {"prompt_tokens": len(data["prompt_token_ids"]), "reused_tokens": 16}
    assert data["finished"] is True
    choice_logprobs = [entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"]]
    assert choice_logprobs == data["completion_logprobs"]


async def test_the_frontends_own_fields(client: httpx.AsyncClient) -> None:
    """prompt_token_ids and completion_token_ids can be had without engine_data; unknown names are left out."""
    fields = ["prompt_token_ids", "completion_token_ids", "nothing"]
    answer = (await chat(client, max_tokens=2, ignore_eos=True, nvext={"extra_fields": fields})).json()
    assert answer["nvext"].keys() == set(fields[:2])
    assert len(answer["nvext"]["completion_token_ids"]) == 2


async def test_token_data_is_the_prompt(client: httpx.AsyncClient) -> None:
    """With token_data the messages do not count, and the ids come back as the prompt."""
    ids = list(range(40))
    nvext = {"token_data": ids, "extra_fields": ["engine_data"], "agent_hints": {"priority": 1}}
    answer = (await chat(client, messages=PLACEHOLDER, max_tokens=2, stop_token_ids=[5], nvext=nvext)).json()
    assert answer["nvext"]["engine_data"]["prompt_token_ids"] == ids
    assert answer["usage"]["prompt_tokens"] == 40


async def test_completions_take_ids_too(client: httpx.AsyncClient) -> None:
    """The completions route answers ids in nvext."""
    body = {
        "model": MODEL,
        "prompt": [1, 2, 3],
        "max_tokens": 2,
        "ignore_eos": True,
        "nvext": {"extra_fields": ["completion_token_ids"]},
    }
    answer = (await client.post("/v1/completions", json=body)).json()
    assert len(answer["nvext"]["completion_token_ids"]) == 2


@pytest.mark.parametrize("place", ["root", "nvext"])
async def test_the_salt_may_be_in_either_place(client: httpx.AsyncClient, place: str) -> None:
    """A cache salt at the root or in nvext keeps prompts apart."""
    salt = {"cache_salt": "s"}
    plain = {"token_data": list(range(40)), "extra_fields": ["engine_data"]}
    await chat(client, max_tokens=1, nvext=plain)
    salted = salt | {"nvext": plain} if place == "root" else {"nvext": plain | salt}
    answer = (await chat(client, max_tokens=1, **salted)).json()
    assert answer["nvext"]["engine_data"]["kv_cache_hit"]["reused_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"return_token_ids": True}, 400, "Unsupported parameter(s): return_token_ids"),
        ({"priority": 1}, 400, "Unsupported parameter(s): priority"),
        ({"nvext": {"agent_context": {}}}, 400, "Unsupported parameter(s): nvext.agent_context"),
        ({"model": "x"}, 404, "The model `x` not found"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format: the embedded server cannot do this"),
        ({"tools": [{}], "tool_choice": "required"}, 400, "tool_choice: the embedded server cannot force a call"),
        ({"n": 2}, 400, "n must be 1 on this route"),
        ({"max_tokens": 0}, 400, "max_tokens must be at least 1, got 0."),
        ({"nvext": {"token_data": [4000]}}, 400, "Token id 4000 is out of vocabulary"),
        ({"nvext": {"token_data": [1] * 512}}, 400, "This model's maximum context length is 512 tokens"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, body: Any, status: int, message: str) -> None:
    """Unknown fields are refused by name; only vLLM lists the right models."""
    response = await chat(client, **body)
    assert response.status_code == status
    assert response.json()["message"].startswith(message)
    assert "rollout-tiny" not in response.json()["message"]


async def generate(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """A request of ids by vLLM's route."""
    sampling = {"max_tokens": 2, "temperature": 0, "ignore_eos": True, "logprobs": 0, **body.pop("sampling", {})}
    body = {"model": MODEL, "token_ids": [1, 2, 3], "sampling_params": sampling, **body}
    return await client.post("/inference/v1/generate", json=body)


async def test_the_generate_route_answers_ids_named_in_their_logprobs(client: httpx.AsyncClient) -> None:
    """And neither usage nor versions; without logprobs asked for there are none."""
    answer = (await generate(client, request_id="mine")).json()
    assert answer["request_id"] == "mine"
    assert "usage" not in answer
    (choice,) = answer["choices"]
    assert len(choice["token_ids"]) == 2
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert (choice["finish_reason"], choice["routed_experts"]) == ("length", None)
    assert (await generate(client, sampling={"logprobs": None})).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "x"}, 404, "Model not found: x"),
        ({"stream": True}, 501, "streaming (stream=true) is not implemented for /inference/v1/generate yet"),
        ({"token_ids": []}, 400, "token_ids must contain at least one token ID."),
        ({"sampling": {"max_tokens": 0}}, 400, "sampling_params.max_tokens must be greater than 0."),
        ({"sampling": {"temperature": -1}}, 400, "Temperature must be between 0 and 2, got -1"),
        ({"sampling": {"top_p": 2}}, 400, "Invalid request"),
        ({"token_ids": [4000]}, 400, "Invalid request"),
        ({"token_ids": [1] * 512}, 400, "Invalid request"),
    ],
)
async def test_the_generate_route_refuses_in_its_own_words(
    client: httpx.AsyncClient, body: Any, status: int, message: str
) -> None:
    """What its worker refuses it does not explain."""
    response = await generate(client, **body)
    assert response.status_code == status
    assert response.json()["error"]["message"] == message


async def test_a_lone_stop_token_is_null_content(client: httpx.AsyncClient) -> None:
    """Where nothing but the stop token was sampled, content is null."""
    answer = (await chat(client, stop_token_ids=list(range(2022, 2026)), max_tokens=1, logit_bias={})).json()
    assert answer["choices"][0]["message"]["content"] != ""


async def test_two_dialects_share_one_engine(model: Model) -> None:
    """What one app computed, the other finds in the cache."""
    engine = Engine(model)
    ids = list(range(40))
    vllm, dynamo = create_app(engine=engine), create_app(engine=engine, dialect="dynamo")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(vllm), base_url="http://a") as first:
        await first.post("/v1/completions", json={"prompt": ids, "max_tokens": 1})
    async with client_of(dynamo) as second:
        nvext = {"token_data": ids, "extra_fields": ["engine_data"]}
        answer = (await chat(second, max_tokens=1, nvext=nvext)).json()
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 32
