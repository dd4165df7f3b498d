"""vLLM is found out by asking, over the real wire of the embedded server."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from rollout.errors import ConfigError, ServerError
from rollout.transport import TransportConfig
from transports.embedded.app import create_app
from transports.http.client import HttpClient
from transports.vllm import transport as vllm
from transports.vllm.transport import VllmTransport


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
