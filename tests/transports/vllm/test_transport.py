"""vLLM is found out by asking, over the real wire of the embedded server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout.chat.messages import user
from rollout.errors import ConfigError, ServerError
from rollout.request import MessagePrompt, Request, Sampling, TokenPrompt
from rollout.transport import TransportConfig
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app
from transports.http.client import HttpClient
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
