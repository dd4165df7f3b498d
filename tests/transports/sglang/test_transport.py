"""SGLang is found out by asking, and what runs there is ended by name: over the wire of the embedded server."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from rollout.codec.local import load_codec
from rollout.codec.types import make_context
from rollout.errors import (
    ConfigError,
    ConnectionFailed,
    MalformedReply,
    ModelNotFound,
    RequestRefused,
    RequestTimeout,
    ServerError,
)
from rollout.request import MessagePrompt, Request, Sampling, TokenPrompt
from rollout.transport import TransportConfig
from tests.transports.contract import HELLO, long_request, request_of, until
from transports import auto
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app
from transports.http.client import HttpClient
from transports.sglang import transport as sglang
from transports.sglang.transport import SglangTransport

Hook = Callable[[str, bytes], Any]


class Wire:
    """The embedded server, what was sent to it, and what it says instead."""

    def __init__(self, app: Starlette) -> None:
        self.app = app
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.instead: dict[str, tuple[int, Any]] = {}
        """Status and body of paths that the app is not asked for."""
        self.once: dict[str, tuple[int, Any]] = {}
        """The same, for the next request alone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, body = scope["path"], b""
        message = await receive()
        body = message.get("body", b"")
        self.sent.append((path, json.loads(body) if body else {}))

        async def again() -> Any:
            nonlocal message
            taken, message = message, None
            return taken if taken is not None else await receive()

        if (said := self.once.pop(path, None) or self.instead.get(path)) is None:
            await self.app(scope, again, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": said[0], "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(said[1]).encode()})

    def to(self, path: str) -> list[dict[str, Any]]:
        """The bodies that went to a path."""
        return [body for at, body in self.sent if at == path]


@asynccontextmanager
async def opened(wire: Wire, **config: Any) -> AsyncIterator[SglangTransport]:
    client = HttpClient("http://x", transport=httpx.ASGITransport(wire, raise_app_exceptions=False), retries=0)
    transport = await sglang.open(TransportConfig(base_url="http://x", **config), client)
    try:
        yield transport
    finally:
        await transport.aclose()


@pytest.fixture
def wire() -> Any:
    app = create_app(dialect="sglang")
    yield Wire(app)
    app.state.engine.close()


async def running(transport: SglangTransport, count: int) -> None:
    async def are_there() -> bool:
        load = await transport.load()
        return (load.running or 0) + (load.waiting or 0) == count

    await until(are_there)


async def test_a_probe_sees_what_the_server_does(wire: Wire) -> None:
    """Every fact is found by asking: also how many ids the model has, which no route says, by a refusal."""
    async with opened(wire) as transport:
        info = transport.info
    assert (info.dialect, info.owned_by, info.version) == ("sglang", "sglang", "0.5.23+embedded")
    assert (info.token_route, info.token_routes, info.max_model_len) == ("/generate", ["/generate"], 8192)
    assert (info.vocab_size, info.weight_version, info.tokenizer) == (2048, "default", str(MODEL_DIR))
    assert info.reports_prompt_ids
    assert info.reports_completion_ids
    assert info.reports_cached_tokens
    assert info.reports_weight_versions
    assert info.keeps_stop_token is True
    assert info.can_tokenize
    assert info.logprobs_mode == "processed_logprobs"
    assert info.sampling_defaults == Sampling()
    assert info.tool_fields == {"function": {"description": None, "parameters": None}, "defer_loading": None}


async def test_it_is_told_apart(wire: Wire) -> None:
    """By its models' owner."""
    transport = None

    def client_of(config: TransportConfig) -> HttpClient:
        return HttpClient("http://x", transport=httpx.ASGITransport(wire, raise_app_exceptions=False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transports.openai.client_of", client_of)
        transport = await auto.open(TransportConfig(base_url="http://x"))
        await transport.aclose()
    assert isinstance(transport, SglangTransport)


async def test_a_model_whose_own_top_k_is_zero_is_played(wire: Wire) -> None:
    """As the embedded model's is: the chat route refuses it, unless it is said otherwise with each request."""
    async with opened(wire) as transport:
        await transport.generate(request_of(HELLO, sampling={}))
        assert wire.to("/v1/chat/completions")[-1]["top_k"] == -1


async def test_a_models_own_settings_go_with_ids(tmp_path: Path) -> None:
    """`/generate` does not read them: a conversation would be drawn from two distributions."""
    shutil.copytree(MODEL_DIR, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    app = create_app(tmp_path / "m", dialect="sglang")
    wire = Wire(app)
    async with opened(wire) as transport:
        assert transport.info.sampling_defaults == Sampling(temperature=0.6, top_k=20)
        await transport.generate(request_of(TokenPrompt([1, 2, 1]), sampling={"top_p": 0.9}))
        params = wire.to("/generate")[-1]["sampling_params"]
        assert (params["temperature"], params["top_k"], params["top_p"]) == (0.6, 20, 0.9)
    app.state.engine.close()


async def test_a_server_that_was_left_paused_is_named(wire: Wire) -> None:
    """A client that was killed in the middle of an update leaves it so: nothing waits for a first token in vain."""
    wire.instead["/ready"] = (503, {})
    with pytest.raises(ServerError, match=r"is paused.*POST http://x/continue_generation"):
        async with opened(wire):
            pass


async def test_a_route_that_it_has_not_cannot_be_forced(wire: Wire) -> None:
    """The line lists what works; an option that is none is named, too."""
    with pytest.raises(ConfigError, match="those that work: /generate"):
        async with opened(wire, token_route="/v1/completions"):
            pass
    with pytest.raises(ConfigError, match="in_place or retract"):
        async with opened(wire, options={"keep": "all"}):
            pass


async def test_an_older_server_is_used_as_far_as_it_goes(wire: Wire) -> None:
    """Without /ready, /server_info, /v1/loads and a /tokenize that takes messages."""
    for path in ("/ready", "/server_info", "/model_info", "/v1/loads"):
        wire.instead[path] = (404, {})
    wire.instead["/tokenize"] = (400, {"message": "no prompt"})
    async with opened(wire) as transport:
        assert not transport.info.can_tokenize
        assert (transport.info.version, transport.info.tokenizer) == (None, None)
        assert transport.info.token_route == "/generate"
        assert (await transport.load()).running == 0  # by its metrics
        wire.instead["/metrics"] = (404, {})
        assert await transport.first_tokens() is None


async def test_how_many_ids_it_has_is_read_from_its_folder_where_it_does_not_say(wire: Wire) -> None:
    """An older server refuses a bias otherwise, and would die of an id all the same."""
    async with opened(wire) as transport:
        assert transport.info.vocab_size == 2048
    wire.once["/generate"] = (400, {"error": {"message": "unknown parameter logit_bias"}})
    async with opened(wire) as transport:
        assert transport.info.vocab_size == 2048
        with pytest.raises(RequestRefused, match="id 2048 is none of them"):
            await transport.generate(request_of(TokenPrompt([1, 2048])))


@pytest.mark.parametrize("said", [[1], "x", {"served_model_name": 7}])
async def test_a_page_in_the_place_of_what_it_says_of_itself_is_no_death(wire: Wire, said: Any) -> None:
    """Asked for after its weights were loaded by somebody else: what cannot be read is an error of ours."""
    async with opened(wire) as transport:
        wire.instead["/v1/models"] = (200, {"data": [{"id": "folder", "owned_by": "sglang"}]})
        wire.instead["/server_info"] = (200, said)
        with pytest.raises((MalformedReply, ModelNotFound)):
            await transport.check()


async def test_what_would_kill_it_is_never_sent(wire: Wire) -> None:
    """An id that is none, and a prompt that fills the context."""
    async with opened(wire) as transport:
        before = len(wire.to("/generate"))
        for ids in ([1, 2048], [-1], [1] * 8192):
            with pytest.raises(RequestRefused):
                await transport.generate(request_of(TokenPrompt(ids)))
        assert len(wire.to("/generate")) == before


@pytest.mark.slow
async def test_the_whole_context_can_be_filled(wire: Wire) -> None:
    """What is asked for beyond it is cut, which SGLang does not do by itself."""
    async with opened(wire) as transport:
        reply = await transport.generate(request_of(TokenPrompt([1] * 8188), max_tokens=100))
        assert len(reply.completion_ids or ()) <= 4


async def test_a_request_that_is_left_is_ended_by_name(wire: Wire) -> None:
    """A connection that drops is noticed late: the abort names the very request, and comes before the close ends."""
    async with opened(wire) as transport:
        async with anyio.create_task_group() as group:
            group.start_soon(transport.generate, long_request())
            await running(transport, 1)
            group.cancel_scope.cancel()
        await running(transport, 0)
        async with anyio.create_task_group() as group:
            group.start_soon(transport.generate, long_request())
            await running(transport, 1)
            group.cancel_scope.cancel()
    rids = [body["rid"] for body in wire.to("/generate")][-2:]
    assert [body["rid"] for body in wire.to("/abort_request")] == rids


async def test_no_name_begins_as_another_does(wire: Wire) -> None:
    """SGLang aborts every request whose name begins as the one it is told: `r-1` would end `r-12`, too."""
    async with opened(wire) as transport:
        prompt = TokenPrompt([1, 2, 1])
        for name in ("r-1", "r-12", "r-1", "r-1~", ""):
            await transport.generate(Request(prompt=prompt, request_id=name, session_id="s", max_tokens=1))
    rids = [body["rid"] for body in wire.to("/generate")]
    assert len(set(rids)) == len(rids)
    assert not [(one, other) for one in rids for other in rids if one != other and other.startswith(one)]


async def test_a_name_that_still_runs_is_given_up(wire: Wire) -> None:
    """After a connection that broke the first try may still run: it is ended, and the next has another name."""
    async with opened(wire) as transport:
        before = len(wire.to("/generate"))
        wire.once["/generate"] = (400, {"error": {"message": "Duplicate request ID detected: r"}})
        reply = await transport.generate(request_of(TokenPrompt([1, 2, 1])))
        assert reply.completion_ids
    first, second = (body["rid"] for body in wire.to("/generate")[before:])
    assert first != second
    assert [body["rid"] for body in wire.to("/abort_request")] == [first]


async def test_each_pause_is_its_own(wire: Wire) -> None:
    """keep is in_place, and so is wait once nothing runs; new weights empty the cache, but not in place."""
    async with opened(wire) as transport:
        for mode in ("keep", "abort", "wait"):
            await transport.pause(mode)
            await transport.update_weights("7", str(MODEL_DIR))
            await transport.resume()
        await transport.update_weights("8", None)
        reply = await transport.generate(request_of(TokenPrompt([1, 2, 1])))
    assert [body["mode"] for body in wire.to("/pause_generation")] == ["in_place", "abort", "in_place"]
    assert [body["flush_cache"] for body in wire.to("/update_weights_from_disk")] == [False, True, False]
    assert wire.to("/update_weight_version") == [{"new_version": "8", "abort_all_requests": False}]
    assert [span.version for span in reply.weight_versions] == ["8"]


async def test_new_weights_do_not_make_it_another_model(wire: Wire) -> None:
    """SGLang's model then has their folder's name: it is the one that it was, also to whoever opens it anew.

    A model that was started under another name is another.
    """
    async with opened(wire) as transport:
        await transport.update_weights("7", str(MODEL_DIR))
        assert (await transport.client.get("/v1/models")).body.count(str(MODEL_DIR).encode())
        for _ in range(2):
            await transport.check()
        assert (await transport.generate(request_of(HELLO))).completion_ids
        async with opened(wire, model="rollout-tiny") as again:
            assert again.info.model == "rollout-tiny"
            await again.check()
        asked = len(wire.to("/server_info"))
        await transport.check()
        assert len(wire.to("/server_info")) == asked
        card = {"id": "other", "owned_by": "sglang", "max_model_len": 8192}
        wire.instead["/v1/models"] = (200, {"data": [card]})
        wire.instead["/server_info"] = (200, {"served_model_name": "other"})
        with pytest.raises(ModelNotFound, match="serves 'rollout-tiny' no more; it serves other"):
            await transport.check()


async def test_what_is_kept_can_be_computed_again(wire: Wire) -> None:
    """By the option `keep`; then the cache can be emptied, since nothing of it is in use."""
    wire.instead["/pause_generation"] = wire.instead["/update_weights_from_disk"] = (200, {})
    async with opened(wire, options={"keep": "retract"}) as transport:
        await transport.pause("keep")
        await transport.update_weights("7", "/w")
        await transport.resume()
    assert wire.to("/pause_generation") == [{"mode": "retract"}]
    assert wire.to("/update_weights_from_disk")[0]["flush_cache"] is True


async def test_a_wait_that_lasts_too_long_is_given_up(wire: Wire) -> None:
    """It says what to do, and what was held back goes out."""
    async with opened(wire, weights_timeout_s=0.3) as transport, anyio.create_task_group() as group:
        group.start_soon(transport.generate, long_request())
        await running(transport, 1)
        with pytest.raises(RequestTimeout, match="pause with keep or abort"):
            await transport.pause("wait")
        assert (await transport.generate(request_of(TokenPrompt([1, 2, 1])))).completion_ids
        group.cancel_scope.cancel()


async def test_a_server_without_a_route_says_so(wire: Wire) -> None:
    """It is the server's age, not the request."""
    async with opened(wire) as transport:
        wire.instead["/pause_generation"] = (404, {})
        with pytest.raises(ConfigError, match="has no /pause_generation: this SGLang is too old"):
            await transport.pause()


async def test_health_is_not_asked_for(wire: Wire) -> None:
    """SGLang's samples a token, takes a second, and fails in a pause: the list of models is the sign of life."""
    async with opened(wire) as transport:
        await transport.check()
    assert not wire.to("/health")


async def test_tokens_of_messages_are_those_of_the_prompt(wire: Wire) -> None:
    """With tools and template arguments; special tokens come back as text, which SGLang leaves out unless told."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    prompt = MessagePrompt(HELLO.messages, tools, {"enable_thinking": False})
    async with opened(wire) as transport:
        ids = await transport.tokenize(prompt, add_generation_prompt=True)
        assert ids == (await transport.generate(request_of(prompt))).prompt_ids
        assert "<|im_start|>" in await transport.detokenize(ids)


async def test_a_prompt_with_tools_is_made_here_as_there(wire: Wire) -> None:
    """SGLang adds fields to tools before the template sees them: so does a codec that is told of it."""
    tools = [{"type": "function", "function": {"name": "add", "strict": True}}]
    codec = load_codec(str(MODEL_DIR))
    async with opened(wire) as transport:
        ids = await transport.tokenize(MessagePrompt(HELLO.messages, tools), add_generation_prompt=True)
        context = make_context(tools, {})
        assert await codec.render(HELLO.messages, context) != ids
        codec.tool_fields = transport.info.tool_fields
        assert await codec.render(HELLO.messages, context) == ids


async def test_a_template_with_tools_of_its_own_form_is_left_alone(wire: Wire) -> None:
    """What it adds can be told only where a tool is shown as JSON."""
    wire.instead["/detokenize"] = (200, {"text": "<tool>rollout_probe()</tool>"})
    async with opened(wire) as transport:
        assert transport.info.can_tokenize
        assert transport.info.tool_fields == {}


async def test_closing_waits_for_no_abort_for_long(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is gone does not hold up the end."""
    monkeypatch.setattr(sglang, "LEAVE_S", 0.05)
    async with opened(wire) as transport:

        async def never(*args: Any, **kwargs: Any) -> Awaitable[None]:
            await anyio.sleep_forever()
            raise AssertionError

        monkeypatch.setattr(transport.client, "tell", never)
        async with anyio.create_task_group() as group:
            group.start_soon(transport.generate, long_request())
            await running(transport, 1)
            group.cancel_scope.cancel()
        with anyio.fail_after(30):
            await transport.aclose()
        with pytest.raises(ConnectionFailed):
            await transport.load()
