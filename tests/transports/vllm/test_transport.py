"""vLLM is found out by asking, over the real wire of the embedded server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout.chat.messages import Message, user
from rollout.errors import ConfigError, ServerError
from rollout.request import MessagePrompt, Request, Sampling, TokenPrompt
from rollout.transport import TransportConfig
from tests.transports.mixture import Mixture
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app
from transports.http.client import HttpClient
from transports.openai import probe_image
from transports.vllm import transport as vllm
from transports.vllm.transport import VllmTransport
from transports.vllm.wire import GENERATE, RENDER


async def opened(app: Any, **config: Any) -> VllmTransport:
    client = HttpClient("http://x", transport=httpx.ASGITransport(app, raise_app_exceptions=False), retries=0)
    return await vllm.open(TransportConfig(base_url="http://x", **config), client)


async def test_a_probe_sees_what_the_server_does() -> None:
    """Over the real wire of the embedded server every fact is found by asking."""
    app = create_app()
    info = (await opened(app)).info
    app.state.engine.close()
    assert info.token_routes == ["/inference/v1/generate", "/v1/completions"]
    assert info.token_route == "/inference/v1/generate"
    assert info.reports_prompt_ids
    assert info.reports_completion_ids
    assert info.keeps_stop_token is True
    assert info.can_tokenize
    assert info.max_model_len == 8192


async def test_a_route_can_be_forced() -> None:
    """A forced route is used where it works, and named with those that work where it does not."""
    app = create_app()
    info = (await opened(app, token_route="/v1/completions")).info
    assert info.token_route == "/v1/completions"
    with pytest.raises(ConfigError, match="/v1/completions"):
        await opened(app, token_route="/v1/chat/completions/tokens")
    app.state.engine.close()


async def test_a_disabled_route_is_passed_over() -> None:
    """A server that lists the generate route but answers 403 is used by the next one."""
    app = create_app()

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/inference/v1/generate":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b'{"error": {"message": "not enabled"}}'})
            return
        await app(scope, receive, send)

    info = (await opened(refusing)).info
    app.state.engine.close()
    assert info.token_routes == ["/v1/completions"]


async def test_something_else_is_not_a_server() -> None:
    """A server that has no models list is named."""

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"nope"})

    with pytest.raises(ServerError, match="does not answer as a model server"):
        await opened(nothing)


def with_defaults(folder: Path, **config: Any) -> Path:
    """The embedded model's folder with another generation_config."""
    shutil.copytree(MODEL_DIR, folder)
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def hiding(app: Any, path: str) -> Any:
    """The app without a route, as an older server."""

    async def older(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": "/nowhere"} if scope.get("path") == path else scope, receive, send)

    return older


@pytest.mark.parametrize("hidden", ["/nothing", RENDER])
async def test_a_servers_own_sampling_is_found(hidden: str, tmp_path: Path) -> None:
    """By its word, and on an older server by the model's folder, as vLLM reads it by default."""
    app = create_app(with_defaults(tmp_path / "m", temperature=0.6, top_k=20, top_p=0.95, max_new_tokens=9))
    info = (await opened(hiding(app, hidden))).info
    app.state.engine.close()
    assert info.sampling_defaults == Sampling(temperature=0.6, top_k=20, top_p=0.95)


async def test_a_server_that_says_nothing_of_its_sampling_is_not_guessed_at() -> None:
    """A model named as on the hub has no folder here."""
    app = create_app()
    app.state.served.root = "someone/some-model"
    info = (await opened(hiding(app, RENDER))).info
    app.state.engine.close()
    assert info.sampling_defaults is None


async def test_the_vocabulary_is_the_one_of_the_models_folder() -> None:
    """Where the server names a folder that is here."""
    app = create_app()
    assert (await opened(app)).info.vocab_size == 2048
    app.state.served.root = "someone/some-model"
    assert (await opened(app)).info.vocab_size is None
    app.state.engine.close()


async def test_ids_are_sampled_as_messages_are(tmp_path: Path) -> None:
    """The route of ids leaves out the server's defaults, which turn 1 was sampled with: they go with the request.

    Else a conversation would be drawn from one distribution in its first turn and from another ever after.
    """
    app = create_app(with_defaults(tmp_path / "m", temperature=0.0))
    transport = await opened(app)
    prompt = await transport.tokenize(
        MessagePrompt([user("Guess my number from 1 to 64.")]), add_generation_prompt=True
    )

    async def sampled(**sampling: Any) -> set[tuple[int, ...]]:
        request = Request(prompt=TokenPrompt(prompt), request_id="r", session_id="s", max_tokens=8, sampling=sampling)
        replies = [await transport.generate(request) for _ in range(12)]
        return {tuple(reply.completion_ids or ()) for reply in replies}

    assert transport.info.token_route == GENERATE
    assert len(await sampled()) == len(await sampled(temperature=None)) == 1
    assert len(await sampled(temperature=5.0)) > 1
    await transport.aclose()
    app.state.engine.close()


class SeeingVllm(httpx.AsyncBaseTransport):
    """vLLM with a model that reads an image as four tokens, as 0.32 was seen to answer."""

    IMAGE = 300

    def __init__(self, *, takes_parts: bool = True, rerenders: bool = False) -> None:
        self.takes_parts = takes_parts
        """Older servers pass over what they do not know."""
        self.rerenders = rerenders
        """Whether a prompt is rendered otherwise the second time."""
        self.seen: list[tuple[str, dict[str, Any]]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        self.seen.append((path, body))
        paths: dict[str, Any] = {known: {} for known in ("/v1/chat/completions", RENDER, GENERATE)}
        known: dict[str, Any] = {
            "/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]},
            "/version": {"version": "0.32"},
            "/openapi.json": {"paths": paths},
        }
        if path in known:
            return httpx.Response(200, json=known[path])
        if path == GENERATE:
            return httpx.Response(200, json=self._generated(body))
        if path not in paths:
            return httpx.Response(404, json={})
        images = json.dumps(body["messages"]).count("image_url") // 2
        ids, places = self._read([1, *[self.IMAGE] * images, 2], images)
        if path == RENDER:
            assert not images or body["mm_payload"] == "none"
            rendered = [*ids, 3] if self.rerenders else ids
            features = {"mm_hashes": {}, "mm_placeholders": {"image": places}} if images else None
            return httpx.Response(200, json={"token_ids": rendered, "features": features, "sampling_params": {}})
        return httpx.Response(200, json={"choices": [self._choice()], "prompt_token_ids": ids})

    def _generated(self, body: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {"choices": [self._choice()]}
        if body.get("return_token_ids") and self.takes_parts:
            parts = body.get("content_parts", [])
            assert all(part["type"] == "image_url" and part["url"].startswith("data:") for part in parts)
            ids, places = self._read(body["token_ids"], len(parts))
            out |= {"prompt_token_ids": ids, "mm_placeholders": {"image": places} if parts else None}
        return out

    def _read(self, ids: list[int], images: int) -> tuple[list[int], list[dict[str, int]]]:
        out: list[int] = []
        places: list[dict[str, int]] = []
        for one in ids:
            if one == self.IMAGE and len(places) < images:
                places.append({"offset": len(out), "length": 4})
                out += [self.IMAGE] * 4
            else:
                out.append(one)
        return out, places

    def _choice(self) -> dict[str, Any]:
        logprobs = {"content": [{"token_id": 5, "logprob": -1.0, "token": "x"}]}
        message = {"role": "assistant", "content": "x"}
        return {"token_ids": [5], "logprobs": logprobs, "finish_reason": "stop", "message": message}

    async def open(self) -> VllmTransport:
        return await vllm.open(TransportConfig(base_url="http://x"), HttpClient("http://x", transport=self, retries=0))


SEEN = Message("user", ({"type": "image_url", "image_url": {"url": probe_image()}}, {"type": "text", "text": "?"}))


async def test_a_server_that_takes_images_with_ids_is_found_by_a_call() -> None:
    """What stands for an image is the first id of what the server makes of one; images go beside the ids."""
    server = SeeingVllm()
    transport = await server.open()
    assert transport.info.image_token == SeeingVllm.IMAGE
    prompt = TokenPrompt([1, 300, 2, 300], (probe_image(), probe_image()))
    reply = await transport.generate(Request(prompt=prompt, request_id="r", session_id="s"))
    assert reply.prompt_ids == [1, *[300] * 4, 2, *[300] * 4]
    assert reply.image_spans == ((1, 4), (6, 4))
    assert server.seen[-1][1]["token_ids"] == [1, 300, 2, 300]


async def test_an_older_server_takes_none() -> None:
    """It answers a prompt without its images, and does not say what it read: so none are sent."""
    assert (await SeeingVllm(takes_parts=False).open()).info.image_token is None


async def test_where_the_images_of_messages_stand_is_asked() -> None:
    """Chat completions do not say it; messages without images are not asked about."""
    server = SeeingVllm()
    transport = await server.open()
    reply = await transport.generate(Request(prompt=MessagePrompt([SEEN]), request_id="r", session_id="s"))
    assert reply.prompt_ids == [1, *[300] * 4, 2]
    assert reply.image_spans == ((1, 4),)
    assert [path for path, _ in server.seen[-2:]] == ["/v1/chat/completions", RENDER]
    reply = await transport.generate(Request(prompt=MessagePrompt([user("x")]), request_id="r", session_id="s"))
    assert reply.image_spans is None
    assert server.seen[-1][0] == "/v1/chat/completions"


async def test_a_prompt_that_is_rendered_otherwise_the_second_time_has_no_places() -> None:
    """A clock in a template, say: what is said of other ids is not believed."""
    server = SeeingVllm()
    transport = await server.open()
    server.rerenders = True
    reply = await transport.generate(Request(prompt=MessagePrompt([SEEN]), request_id="r", session_id="s"))
    assert reply.image_spans is None


@pytest.mark.parametrize("route", [GENERATE, "/v1/completions"])
async def test_masks_come_by_the_generate_route_alone(route: str) -> None:
    """A server that refuses what it could report none of is opened all the same; by another route there are none."""
    mixture = Mixture("vllm")
    client = HttpClient("http://x", transport=mixture, retries=0)
    config = TransportConfig(base_url="http://x", token_route=route, sampling_mask=True)
    transport = await vllm.open(config, client)
    assert mixture.refused
    assert transport.info.token_routes == [GENERATE, "/v1/completions"]
    assert transport.info.reports_routed_experts
    assert transport.info.reports_sampling_mask is transport.info.masks_by_ids_only is (route == GENERATE)
    assert transport.info.keeps_stop_token
    await transport.aclose()
