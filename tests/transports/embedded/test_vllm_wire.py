"""vLLM's wire, as `wire.md` saw it on live servers."""

from __future__ import annotations

import asyncio
import gc
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from tests.transports.embedded.conftest import client_of
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app
from transports.embedded.engine import Engine
from transports.embedded.model import Model

MODEL = "rollout-tiny"
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]
HELLO = [{"role": "user", "content": "Guess my number from 1 to 64. 7 guesses left."}]


@pytest.fixture
def app(model: Model) -> Starlette:
    """An app with a small context, so that it can be overrun."""
    return create_app(engine=Engine(model), max_model_len=512)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client in this process."""
    async with client_of(app) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    """A successful answer's JSON."""
    response = await client.post(path, json={"model": MODEL, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def refused(client: httpx.AsyncClient, path: str, **body: Any) -> tuple[int, str]:
    """Status and message of a refusal in vLLM's form."""
    response = await client.post(path, json={"model": MODEL, **body})
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == response.status_code
    return response.status_code, error["message"]


async def running(app: Starlette, count: int) -> None:
    """Waits until so many requests run."""
    async with asyncio.timeout(60):
        while app.state.engine.stats().running != count:  # noqa: ASYNC110 - another thread's state, without an event
            await asyncio.sleep(0.005)


async def test_the_server_names_itself(client: httpx.AsyncClient) -> None:
    """Version, owner, context and folder are where a probe of vLLM looks for them."""
    assert "version" in (await client.get("/version")).json()
    (card,) = (await client.get("/v1/models")).json()["data"]
    expected = (MODEL, "vllm", 512, str(MODEL_DIR))
    assert (card["id"], card["owned_by"], card["max_model_len"], card["root"]) == expected
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/inference/v1/generate", "/tokenize"} <= paths.keys()
    assert (await client.get("/health")).status_code == 200


async def test_chat_answers_ids_and_logprobs(client: httpx.AsyncClient) -> None:
    """Prompt ids at the top, completion ids and as many logprobs in the choice, stop token included."""
    answer = await post(client, "/v1/chat/completions", messages=HELLO, return_token_ids=True, logprobs=True)
    (choice,) = answer["choices"]
    asked = await post(client, "/tokenize", messages=HELLO)
    assert answer["prompt_token_ids"] == asked["tokens"]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == answer["usage"]["completion_tokens"]
    assert (choice["finish_reason"], choice["token_ids"][-1]) == ("stop", 2024)
    assert not choice["message"]["content"].endswith("<|im_end|>")
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_ids_are_not_sent_unasked(client: httpx.AsyncClient) -> None:
    """Without return_token_ids and logprobs the answer has neither."""
    answer = await post(client, "/v1/chat/completions", messages=HELLO, max_tokens=3)
    assert answer["prompt_token_ids"] is None
    assert (answer["choices"][0]["token_ids"], answer["choices"][0]["logprobs"]) == (None, None)


async def test_tools_and_template_arguments_reach_the_prompt(client: httpx.AsyncClient) -> None:
    """Tools, their calls and enable_thinking change the prompt that comes back."""
    function = {"name": "add", "parameters": {"type": "object"}}
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "2"}]
    answer = await post(
        client,
        "/v1/chat/completions",
        messages=messages,
        tools=[{"type": "function", "function": function}],
        chat_template_kwargs={"enable_thinking": False},
        return_token_ids=True,
        max_tokens=1,
    )
    text = (await post(client, "/detokenize", tokens=answer["prompt_token_ids"]))["prompt"]
    assert '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}' in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("path", ["/v1/completions", "/inference/v1/generate"])
async def test_ids_go_in_and_come_out(client: httpx.AsyncClient, path: str) -> None:
    """Both token routes take ids and answer ids, logprobs and cached tokens; the second turn is cached."""
    prompt = (await post(client, "/tokenize", messages=HELLO))["tokens"]
    cached: list[int] = []
    for _ in range(2):
        if path == "/v1/completions":
            answer = await post(client, path, prompt=prompt, max_tokens=30, return_token_ids=True, logprobs=0)
            ids = answer["choices"][0]["token_ids"]
            logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
        else:
            answer = await post(client, path, token_ids=prompt, sampling_params={"max_tokens": 30, "logprobs": 0})
            ids = answer["choices"][0]["token_ids"]
            entries = answer["choices"][0]["logprobs"]["content"]
            assert [entry["token_id"] for entry in entries] == ids
            assert all(entry["rank"] >= 1 for entry in entries)
            assert answer["choices"][0]["weight_versions"] == [{"version": "default", "start": 0, "end": len(ids)}]
            logprobs = [entry["logprob"] for entry in entries]
        assert len(ids) == len(logprobs) > 0
        assert all(value <= 0 for value in logprobs)
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        prompt = [*prompt, *ids, *prompt]
    assert cached[0] == 0 < cached[1]


async def test_one_seed_samples_one_completion(client: httpx.AsyncClient) -> None:
    """Message-in and token-in of the same prompt with the same seed sample the same ids."""
    chat = await post(client, "/v1/chat/completions", messages=HELLO, seed=4, return_token_ids=True, max_tokens=9)
    text = await post(
        client, "/v1/completions", prompt=chat["prompt_token_ids"], seed=4, return_token_ids=True, max_tokens=9
    )
    assert chat["choices"][0]["token_ids"] == text["choices"][0]["token_ids"]


async def test_stop_strings_and_stop_ids(client: httpx.AsyncClient) -> None:
    """A stop string is cut from the text, a stop id is named; both keep all ids."""
    prompt = (await post(client, "/tokenize", messages=HELLO))["tokens"]
    answer = await post(client, "/v1/completions", prompt=prompt, max_tokens=50, stop="over", return_token_ids=True)
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], "over" in choice["text"]) == ("stop", False)
    assert choice["text"].startswith("<think>")
    think_end = (await post(client, "/tokenize", prompt="</think>"))["tokens"]
    answer = await post(client, "/v1/completions", prompt=prompt, max_tokens=50, stop_token_ids=think_end)
    assert answer["choices"][0]["stop_reason"] == think_end[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/chat/completions", {"model": "x", "messages": HELLO}, 404, "`x` does not exist.*rollout-tiny"),
        ("/v1/completions", {"prompt": [1], "max_tokens": 0}, 400, "max_tokens must be at least 1"),
        ("/v1/completions", {"prompt": [2048]}, 400, "out of vocabulary"),
        ("/v1/completions", {"prompt": [-1]}, 400, "out of vocabulary"),
        ("/v1/completions", {"prompt": []}, 400, "empty"),
        ("/v1/completions", {"prompt": [1] * 600}, 400, "maximum context length is 512 tokens"),
        ("/v1/completions", {"prompt": [1], "temperature": -1}, 400, "temperature"),
        ("/v1/completions", {"prompt": [1], "n": 0}, 400, "n must be at least 1"),
        ("/v1/completions", {"prompt": [1], "n": 2, "temperature": 0}, 400, "greedy"),
        ("/v1/completions", {"prompt": [1], "echo": True}, 400, "echo"),
        ("/v1/chat/completions", {"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "response_form"),
        ("/v1/chat/completions", {"messages": HELLO, "logit_bias": {"5": 1}}, 400, "logit_bias"),
        ("/v1/chat/completions", {"messages": HELLO, "stream": True, "logprobs": True}, 400, "not streamed"),
        ("/v1/chat/completions", {"messages": HELLO, "tools": [{}], "tool_choice": "required"}, 400, "tool_choice"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": IMAGE}]}, 400, "reads text only"),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": {}, "stream": True}, 400, "stream"),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": {"n": 2}}, 400, "n must be 1"),
        (
            "/inference/v1/generate",
            {"token_ids": [1], "sampling_params": {"structured_outputs": {"regex": "a"}}},
            400,
            "structured",
        ),
        ("/v1/completions", {"prompt": 3}, 400, "prompt"),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 600}, 400, "maximum context length is 512 tokens"),
        ("/v1/chat/completions", {}, 400, "messages"),
        ("/v1/chat/completions", {"messages": []}, 400, "template"),
        ("/inference/v1/generate", {"token_ids": [1] * 512, "sampling_params": {}}, 400, "longer than the maximum"),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": {"max_tokens": 0}}, 400, "at least 1"),
        ("/collective_rpc", {"method": "exec"}, 400, "no method"),
        ("/pause?mode=now", {}, 400, "mode"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, path: str, body: Any, status: int, message: str) -> None:
    """What vLLM refuses is refused with its status, in its form, saying what is wrong."""
    found, text = await refused(client, path, **body)
    assert found == status
    assert re.search(message, text), text


async def test_several_answers(client: httpx.AsyncClient) -> None:
    """`n` gives as many choices, each with its own ids and seed, and the usage counts them all."""
    asked = {
        "messages": HELLO,
        "max_tokens": 8,
        "n": 3,
        "seed": 1,
        "temperature": 3.0,
        "return_token_ids": True,
        "logprobs": True,
    }
    answer = await post(client, "/v1/chat/completions", **asked)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    ids = [choice["token_ids"] for choice in answer["choices"]]
    assert len({tuple(each) for each in ids}) > 1
    assert answer["usage"]["completion_tokens"] == sum(map(len, ids))
    assert all(len(choice["logprobs"]["content"]) == len(choice["token_ids"]) for choice in answer["choices"])
    again = await post(client, "/v1/chat/completions", **asked)
    # A logprob's last bit is of the batch in which it was computed, and which answers share one is a matter of time.
    written = [[each.pop("logprobs")["content"] for each in one["choices"]] for one in (answer, again)]
    assert again["choices"] == answer["choices"]
    first, second = ([token.pop("logprob") for content in one for token in content] for one in written)
    assert second == pytest.approx(first, abs=1e-5)
    assert written[0] == written[1]


async def test_text_completions_are_streamed(client: httpx.AsyncClient) -> None:
    """As frames of choices, the usage where it is asked for, and a last one that ends the stream."""
    options = {"include_usage": True}
    body = {"model": MODEL, "prompt": [1, 2], "max_tokens": 4, "stream": True, "stream_options": options}
    frames = (await client.post("/v1/completions", json=body)).text.strip().split("\n\n")
    first, counts = (msgspec.json.decode(frame.removeprefix("data: ")) for frame in frames[:-1])
    assert first["choices"][0]["finish_reason"] in ("length", "stop")
    assert counts["usage"]["completion_tokens"] <= 4
    assert frames[-1] == "data: [DONE]"


async def test_broken_json_and_unknown_paths(client: httpx.AsyncClient) -> None:
    """A body that is no JSON is 400, a path that is none 404."""
    assert (await client.post("/v1/completions", content=b"{")).status_code == 400
    assert (await client.get("/v1/nothing")).status_code == 404


async def test_generate_cuts_to_the_context(client: httpx.AsyncClient) -> None:
    """The generate route cuts max_tokens to what fits instead of refusing."""
    params = {"max_tokens": 999, "ignore_eos": True}
    answer = await post(client, "/inference/v1/generate", token_ids=[1] * 500, sampling_params=params)
    assert (len(answer["choices"][0]["token_ids"]), answer["choices"][0]["finish_reason"]) == (12, "length")


async def test_cancelling_the_call_aborts_the_request(app: Starlette, client: httpx.AsyncClient) -> None:
    """In process, a cancelled call leaves nothing running, and asyncio nothing to complain of."""
    complaints = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
    body = {"model": MODEL, "prompt": [1], "max_tokens": 500, "ignore_eos": True}
    calls = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(4)]
    await running(app, 4)
    for call in calls:
        call.cancel()
    await running(app, 0)
    assert app.state.engine.stats().finished["abort"] == 4
    calls.clear()
    gc.collect()
    await asyncio.sleep(0)
    assert not complaints


async def test_closing_the_connection_aborts_the_request(app: Starlette) -> None:
    """On a port, a client that goes away leaves nothing running."""
    body = msgspec.json.encode({"model": MODEL, "prompt": [1], "max_tokens": 500, "ignore_eos": True})
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    events.put_nowait({"type": "http.request", "body": body, "more_body": False})
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [],
    }

    async def send(message: Any) -> None:
        pass

    call = asyncio.create_task(app(scope, events.get, send))
    await running(app, 1)
    events.put_nowait({"type": "http.disconnect"})
    await running(app, 0)
    await call
    app.state.engine.close()


async def test_abort_by_name(app: Starlette, client: httpx.AsyncClient) -> None:
    """A request id aborts the generate call that carries it."""
    body = {"token_ids": [1], "request_id": "mine", "sampling_params": {"max_tokens": 500, "ignore_eos": True}}
    call = asyncio.create_task(post(client, "/inference/v1/generate", **body))
    await running(app, 1)
    assert (await client.post("/inference/v1/abort_requests", json={"request_ids": ["mine"]})).status_code == 200
    assert (await call)["choices"][0]["finish_reason"] == "abort"


async def test_weights_are_updated_over_the_wire(client: httpx.AsyncClient) -> None:
    """Pause, reload, version, resume: the next answer carries the new version."""
    assert (await client.post("/pause?mode=keep")).status_code == 200
    assert (await client.get("/is_paused")).json() == {"is_paused": True}
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(MODEL_DIR)}}
    assert (await client.post("/collective_rpc", json=reload)).status_code == 200
    version = await client.post("/update_weight_version", json={"new_version": "7"})
    assert version.json() == {"success": True, "new_version": "7"}
    assert (await client.post("/resume")).status_code == 200
    answer = await post(client, "/inference/v1/generate", token_ids=[1], sampling_params={"max_tokens": 2})
    assert answer["choices"][0]["weight_versions"][0]["version"] == "7"
    assert (await client.get("/weight_info")).json() == {"weight_version": "7"}


async def test_weights_that_cannot_be_loaded_are_an_error(client: httpx.AsyncClient) -> None:
    """A wrong folder answers an error, and the server goes on."""
    reload = {"method": "reload_weights", "kwargs": {"weights_path": "/nowhere"}}
    assert (await client.post("/collective_rpc", json=reload)).status_code == 500
    assert (await post(client, "/v1/completions", prompt=[1], max_tokens=1))["choices"]


async def test_metrics_have_vllms_names(client: httpx.AsyncClient) -> None:
    """The counters that a scheduler reads are there and count."""
    await post(client, "/v1/completions", prompt=list(range(40)), max_tokens=1)
    await post(client, "/v1/completions", prompt=list(range(40)), max_tokens=1)
    lines = [line for line in (await client.get("/metrics")).text.splitlines() if not line.startswith("#")]
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert values["vllm:prefix_cache_queries_total"] == 80
    assert values["vllm:prefix_cache_hits_total"] == 32
    assert values["vllm:generation_tokens_total"] == 2
    assert {"vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting"} <= values.keys()


async def test_a_closed_engine_is_unavailable(app: Starlette, client: httpx.AsyncClient) -> None:
    """Once closed, requests answer 503 and not an exception."""
    app.state.engine.close()
    status, message = await refused(client, "/v1/completions", prompt=[1])
    assert status == 503
    assert "closed" in message


async def test_lifespan_starts_and_ends_the_engine() -> None:
    """Under a server the engine lives exactly as long as the app."""
    app = create_app()
    async with app.router.lifespan_context(app):
        assert app.state.engine.is_alive
    assert not app.state.engine.is_alive


async def test_a_request_of_messages_is_rendered_with_the_servers_defaults(model: Model, tmp_path: Path) -> None:
    """What messages and completions take from generation_config is told, and what a request says comes before it."""
    folder = tmp_path / "m"
    shutil.copytree(MODEL_DIR, folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "top_k": 20, "eos_token_id": 3}')
    async with client_of(create_app(folder)) as client:
        path = "/v1/chat/completions/render"
        found = await post(client, path, messages=HELLO, max_tokens=4)
        assert found["sampling_params"] == {"temperature": 0.5, "top_k": 20, "max_tokens": 4}
        found = await post(client, path, messages=HELLO, max_tokens=4, temperature=1, top_k=0)
        assert found["sampling_params"] == {"max_tokens": 4}
        chat = await post(client, "/v1/chat/completions", messages=HELLO, max_tokens=1, return_token_ids=True)
        assert found["token_ids"] == chat["prompt_token_ids"]


async def test_alternatives_come_where_they_are_asked_for(client: httpx.AsyncClient) -> None:
    """The generate route gives none for 0, and the likeliest with their ids else."""
    for count in (0, 2):
        sampling = {"logprobs": count, "max_tokens": 1}
        found = await post(client, "/inference/v1/generate", token_ids=[1, 2, 1], sampling_params=sampling)
        (entry,) = found["choices"][0]["logprobs"]["content"]
        assert [top["rank"] for top in entry["top_logprobs"]] == list(range(1, count + 1))
