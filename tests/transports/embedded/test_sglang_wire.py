"""SGLang's wire, as it was seen on 0.5.23."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.transports.embedded.conftest import client_of
from transports.embedded.app import create_app
from transports.embedded.engine import Engine
from transports.embedded.model import Model

HELLO = [{"role": "user", "content": "Guess my number from 1 to 64. 7 guesses left."}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.fixture
async def client(model: Model) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an SGLang app with a small context."""
    async with client_of(create_app(engine=Engine(model), dialect="sglang", max_model_len=512)) as client:
        yield client


async def generate(client: httpx.AsyncClient, ids: list[int], params: Any = None, **body: Any) -> httpx.Response:
    sampling = {"max_new_tokens": 3, "ignore_eos": True, **(params or {})}
    return await client.post("/generate", json={"input_ids": ids, "sampling_params": sampling, **body})


async def chat(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"messages": HELLO, "top_k": -1, "max_tokens": 3, **body})


async def test_the_server_names_itself(client: httpx.AsyncClient) -> None:
    """By its models' owner; its own routes tell the version, the folder and the load."""
    (card,) = (await client.get("/v1/models")).json()["data"]
    assert (card["owned_by"], card["max_model_len"]) == ("sglang", 512)
    assert (await client.get("/server_info")).json()["version"].startswith("0.5.23")
    assert (await client.get("/model_info")).json()["weight_version"] == "default"
    (load,) = (await client.get("/v1/loads")).json()["loads"]
    assert (load["num_running_reqs"], load["num_waiting_reqs"]) == (0, 0)


async def test_ids_in_are_ids_out(client: httpx.AsyncClient) -> None:
    """With logprobs as [logprob, id, null], spans of versions and cached tokens in meta_info."""
    answer = (await generate(client, [1, 2, 1], return_logprob=True, return_prompt_token_ids=True)).json()
    meta = answer["meta_info"]
    assert [entry[1] for entry in meta["output_token_logprobs"]] == answer["output_ids"]
    assert answer["prompt_token_ids"] == [1, 2, 1]
    assert meta["finish_reason"] == {"type": "length", "length": 3}
    assert meta["weight_versions"] == [{"version": "default", "start": 0, "end": 3}]
    assert meta["cached_tokens"] == 0


async def test_messages_are_answered_with_what_is_asked_for(client: httpx.AsyncClient) -> None:
    """Ids and meta_info only then."""
    (plain,) = (await chat(client)).json()["choices"]
    assert plain["response_token_ids"] is plain["prompt_token_ids"] is plain["meta_info"] is None
    (whole,) = (await chat(client, return_token_ids=True, return_meta_info=True, logprobs=True)).json()["choices"]
    assert [entry[1] for entry in whole["meta_info"]["output_token_logprobs"]] == whole["response_token_ids"]
    assert whole["prompt_token_ids"]


async def test_tool_choice_none_hides_the_tools(client: httpx.AsyncClient) -> None:
    """As the real one does."""
    asked = {"tools": TOOLS, "return_token_ids": True}
    lengths = [
        len((await chat(client, **asked, **choice)).json()["choices"][0]["prompt_token_ids"])
        for choice in ({}, {"tool_choice": "none"})
    ]
    assert lengths[0] > lengths[1]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"top_k": 0}, "top_k must be -1 (disable) or at least 1, got 0."),
        ({"logit_bias": {"-1": 0.0}}, "logit_bias must has keys in [0, 2047], got -1."),
        ({"max_tokens": 3}, "max_tokens"),
        ({"max_new_tokens": 600}, "maximum context length of 512 tokens"),
        ({"temperature": -1.0}, "temperature must be non-negative"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, params: Any, said: str) -> None:
    """Each is 400, and a completion that does not fit is not cut."""
    answer = await generate(client, [1, 2, 1], params)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


async def test_a_models_own_top_k_of_zero_is_refused_on_chat(client: httpx.AsyncClient) -> None:
    """The embedded model's generation_config says it."""
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1})
    assert (answer.status_code, "top_k" in answer.text) == (400, True)


async def test_a_name_that_runs_is_taken(client: httpx.AsyncClient) -> None:
    """Until it is ended by it; an aborted request answers what it has."""
    first = asyncio.ensure_future(generate(client, [1, 2, 1], {"max_new_tokens": 400}, rid="a"))
    while not (await client.get("/v1/loads")).json()["loads"][0]["num_running_reqs"]:  # noqa: ASYNC110  # a server
        await asyncio.sleep(0)
    again = await generate(client, [1, 2, 1], rid="a")
    assert (again.status_code, "Duplicate request ID" in again.text) == (400, True)
    await client.post("/abort_request", json={"rid": "a"})
    assert (await first).json()["meta_info"]["finish_reason"]["type"] == "abort"


async def test_a_pause_that_it_cannot_make_is_refused(client: httpx.AsyncClient) -> None:
    """It keeps what was computed, so it does not retract."""
    answer = await client.post("/pause_generation", json={"mode": "retract"})
    assert (answer.status_code, "does not retract" in answer.text) == (400, True)
    assert (await client.get("/ready")).status_code == 200


async def test_weights_that_do_not_fit_are_refused(client: httpx.AsyncClient) -> None:
    """With 400, as SGLang says it."""
    answer = await client.post("/update_weights_from_disk", json={"model_path": "/nowhere"})
    assert answer.status_code == 400
    assert "Failed to update weights" in answer.json()["error"]["message"]
