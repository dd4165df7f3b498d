"""The routes: three dialects, whose request it is, and errors that clients can read."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from rollout.chat.messages import Message
from rollout.errors import ConnectionFailed, RequestRefused, ServerBusy
from rollout.play.model import RolloutModel
from rollout.proxy import app
from rollout.proxy.app import versioned
from tests.log_kit import capture_logs
from tests.rollout.play.test_session import ByteCodec
from tests.rollout.proxy.kit import Proxied, asking_of, chat_body, proxied, text_of
from transports.scripted import Fault, ScriptedTransport, reply

MESSAGES = {"model": "scripted", "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}


async def test_each_dialect_is_answered() -> None:
    """Chat completions, Responses and Messages are turns of one rollout."""
    async with proxied() as served:
        assert text_of(await served.chat("hello")) == "answer 0"
        answered = await served.client.post("/v1/responses", json={"model": "m", "input": "hello"})
        assert answered.json()["output"][0]["content"][0]["text"] == "answer 1"
        said = await served.client.post("/v1/messages", json=MESSAGES)
        assert said.json()["content"] == [{"type": "text", "text": "answer 2"}]
        assert said.headers["request-id"].startswith("req_")
        assert len(served.asking.session.turns) == 3


async def test_a_path_names_the_rollout_where_a_key_cannot_be_set() -> None:
    """The path's key counts, whatever the headers have."""
    async with proxied() as served, httpx.AsyncClient(base_url=served.endpoint.base_url) as client:
        path = f"/r/{served.endpoint.api_key}/v1/chat/completions"
        headers = {"authorization": "Bearer none"}
        assert text_of(await client.post(path, json=chat_body("hello"), headers=headers)) == "answer 0"
        assert (await client.post("/r/none/v1/messages", json=MESSAGES)).status_code == 401


async def test_unknown_keys_are_told_so_in_each_dialect() -> None:
    """401, in the dialect's own form, and clients are told not to try again."""
    async with proxied() as served, httpx.AsyncClient(base_url=served.endpoint.base_url) as client:
        for headers in ({}, {"authorization": "Bearer x"}, {"x-api-key": "x"}, {"authorization": "Basic x"}):
            answer = await client.post("/v1/chat/completions", json=chat_body("hello"), headers=headers)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
            assert answer.headers["x-should-retry"] == "false"
        answer = await client.post("/v1/messages", json=MESSAGES)
        assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", "authentication_error")
        assert (await client.get("/v1/models")).status_code == 401


async def test_a_key_reads_nothing_of_another_rollout() -> None:
    """Neither a session's header, nor the id of an answer, nor a call's id brings anything of it."""
    async with proxied(*[reply("secret")] * 3) as served:
        answer = await served.client.post("/v1/responses", json={"model": "m", "input": "hello"})
        other = asking_of(ScriptedTransport([reply("mine")]), served.asking._config)
        endpoint = served.endpoints.open(RolloutModel(other))
        headers = {"x-api-key": endpoint.api_key, "x-session-id": "s"}
        async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers) as client:
            body = {"model": "m", "input": "go on", "previous_response_id": answer.json()["id"]}
            refused = await client.post("/v1/responses", json=body)
            assert refused.status_code == 404
            assert text_of(await client.post("/v1/chat/completions", json=chat_body("hello"))) == "mine"
        assert [len(session.turns) for session in (served.asking.session, other.session)] == [1, 1]


async def test_limits_are_refused_with_their_reason() -> None:
    """400, and nothing is sent to the model's server."""
    async with proxied(max_turns=1) as served:
        assert text_of(await served.chat("hello")) == "answer 0"
        refused = await served.chat("hello", "answer 0", "more")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "limit_reached")
        assert "max_turns" in refused.json()["error"]["message"]
        assert served.model.limit == "max_turns"
    async with proxied(max_model_len=64) as served:
        refused = await served.chat("hello" * 100)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        refused = await served.client.post("/v1/messages", json=MESSAGES | chat_body("hello" * 100))
        assert refused.json()["error"]["message"].startswith("prompt is too long: ")
        assert not served.transport.requests


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (RequestRefused("no such parameter", status=400), 400, "no such parameter"),
        (ServerBusy("full", status=429), 429, "full"),
        (ServerBusy("full", status=503), 503, "full"),
        (ConnectionFailed("gone"), 503, "gone"),
    ],
)
async def test_what_the_server_does_is_told(error: Any, status: int, says: str) -> None:
    """A refusal is the client's, what fails may be tried again, and is not remembered against the rollout then."""
    async with proxied(Fault(error), reply("4")) as served:
        answer = await served.chat("hello")
        assert answer.status_code == status
        assert says in answer.json()["error"]["message"]
        assert answer.headers["x-should-retry"] == ("false" if status == 400 else "true")
        assert text_of(await served.chat("hello", headers={"x-stainless-retry-count": "1"})) == "4"
        assert not served.asking.faults


async def test_bodies_are_bounded_and_read_as_they_are() -> None:
    """413 over the limit, said and unsaid; 415 for packed ones; 400 names the field that is wrong."""
    async with proxied(proxy_body_bytes=2_000) as served:
        assert (await served.chat("x" * 3_000)).status_code == 413

        async def parts() -> Any:
            for _ in range(30):
                yield b" " * 100

        assert (await served.client.post("/v1/messages", content=parts())).status_code == 413
        packed = await served.client.post("/v1/responses", content=b"x", headers={"content-encoding": "zstd"})
        assert (packed.status_code, "zstd" in packed.text) == (415, True)
        for body, says in ((b"{", "JSON"), (b"[]", "object"), (b'{"model": "m"}', "messages")):
            answer = await served.client.post("/v1/chat/completions", content=body)
            assert (answer.status_code, says in answer.json()["error"]["message"]) == (400, True), answer.text
        assert text_of(await served.chat("hello")) == "answer 0"


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """408, which tells the client to try again; one whose parts come is read to its end."""
    monkeypatch.setattr(app, "BODY_S", 0.2)
    async with proxied() as served:
        host, port = served.endpoint.base_url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nx-api-key: {served.endpoint.api_key}\r\n"
        writer.write(f"{head}content-length: 99\r\n\r\n{{".encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert answer.startswith("HTTP/1.1 408")
        assert "x-should-retry: true" in answer
        writer.close()
        assert text_of(await served.chat("hello")) == "answer 0"


async def test_models_are_told_to_either_kind_of_client() -> None:
    """The one that is served, in a page and by its name; another is 404."""
    async with proxied() as served:
        page = (await served.client.get("/v1/models")).json()
        assert (page["object"], [model["id"] for model in page["data"]]) == ("list", ["scripted"])
        assert (await served.client.get("/v1/models/scripted")).json()["id"] == "scripted"
        missing = await served.client.get("/v1/models/claude", headers={"anthropic-version": "2023-06-01"})
        assert (missing.status_code, missing.json()["type"]) == (404, "error")


async def test_it_says_that_it_is_there_and_which_routes_it_has() -> None:
    """HEAD and GET on the root need no key; an unknown route says what there is."""
    async with proxied() as served, httpx.AsyncClient(base_url=served.endpoint.base_url) as client:
        assert (await client.head("/")).status_code == (await client.get("/")).status_code == 200
        assert (await client.head("/r/any/")).status_code == (await client.head("/r/any")).status_code == 200
        missing = await client.post("/v1/embeddings", json={})
        assert (missing.status_code, "/v1/responses" in missing.json()["error"]["message"]) == (404, True)
        assert (await client.get("/v1/chat/completions")).status_code == 405


async def test_tokens_are_counted_as_they_would_be_sent() -> None:
    """A new conversation by its rendering, one that goes on by the very ids; nothing is asked of the server."""
    async with proxied() as served:
        count = await served.client.post("/v1/messages/count_tokens", json=MESSAGES)
        said = (await served.client.post("/v1/messages", json=MESSAGES)).json()
        assert count.json() == {"input_tokens": said["usage"]["input_tokens"]}
        further = [*MESSAGES["messages"], {"role": "assistant", "content": said["content"]}]  # type: ignore[misc]
        body = MESSAGES | {"messages": [*further, {"role": "user", "content": "go on"}]}
        count = await served.client.post("/v1/messages/count_tokens", json=body)
        said = (await served.client.post("/v1/messages", json=body)).json()
        assert count.json() == {"input_tokens": said["usage"]["input_tokens"]}
        assert len(served.transport.requests) == 2


async def test_a_count_that_nobody_can_tell_is_refused_by_name() -> None:
    """501, where there is neither a tokenizer nor /tokenize."""
    async with proxied() as served:
        served.asking.session._model.codec = None
        answer = await served.client.post("/v1/messages/count_tokens", json=MESSAGES)
        assert (answer.status_code, "count_tokens" in answer.text) == (501, True)


async def test_a_fault_of_ours_is_told_by_a_number_and_logged() -> None:
    """500 without a traceback; the log has it under that number."""

    class Broken(ByteCodec):
        async def parse(self, prompt_ids: Any, completion_ids: Any, context: Any) -> Message:
            raise AssertionError("a secret of ours")

    async with proxied() as served:
        served.asking.session._model.codec = Broken()
        with capture_logs() as logs:
            answer = await served.chat("hello")
        message = answer.json()["error"]["message"]
        assert (answer.status_code, "secret" in answer.text) == (500, False)
        (event,) = [event for event in logs if event["event"] == "proxy_error"]
        assert event["id"] in message


async def test_who_asks_is_on_the_turn() -> None:
    """Sub-agents by the headers of their programs; what is not named is the rollout's own agent."""

    async def asked(served: Proxied, **headers: str) -> str:
        await served.chat("hello", headers={name.replace("_", "-"): value for name, value in headers.items()})
        return served.asking.session.turns[-1].agent

    async with proxied() as served:
        assert await asked(served) == ""
        assert await asked(served, x_claude_code_agent_id="explore") == "explore"
        assert await asked(served, x_codex_turn_metadata='{"agent_name": "reviewer"}') == "reviewer"
        assert await asked(served, x_rollout_agent="judge") == "judge"


async def test_what_a_client_leaves_out_of_training_is_kept() -> None:
    """By a header, as `train=False` does."""
    async with proxied() as served:
        await served.chat("hello", headers={"x-rollout-train": "false"})
        await served.chat("hello")
        assert [turn.train for turn in served.asking.session.turns] == [False, True]


async def test_a_base_url_without_its_version_is_answered() -> None:
    """Some clients add only the dialect's own path."""
    async with proxied() as served:
        assert text_of(await served.client.post("/chat/completions", json=chat_body("hello"))) == "answer 0"
        assert (await served.client.post("/messages", json=MESSAGES)).json()["type"] == "message"
        assert (await served.client.get("/models")).status_code == 200
        path = f"/r/{served.endpoint.api_key}/chat/completions"
        assert text_of(await served.client.post(path, json=chat_body("hello"))) == "answer 2"
    assert [versioned(path) for path in ("/r/x", "/r/", "/v1/models", "/x")] == ["/r/x", "/r/", "/v1/models", "/x"]


async def test_what_a_request_names_and_the_model_is_not_shown_is_said_once() -> None:
    """In the log, by its name."""
    body = {"model": "m", "input": "hello", "tools": [{"type": "web_search"}]}
    async with proxied() as served:
        with capture_logs() as logs:
            for _ in range(2):
                assert (await served.client.post("/v1/responses", json=body)).status_code == 200
        (event,) = [event for event in logs if event["event"] == "request_left_out"]
        assert "web_search" in str(event["what"])
