"""Opening: a server that cannot be used is named within seconds, with what is wrong; and later it is seen to change."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from rollout.errors import ConfigError, ModelNotFound, RequestTimeout, ServerBusy, ServerChanged, ServerError
from rollout.transport import TransportConfig
from tests.live.servers import free_port
from tests.local_server import serving
from tests.transports.fake_vllm import FakeVllm, prompted, until
from transports import auto
from transports import openai as common
from transports.openai import PROBE_S
from transports.vllm import transport as vllm
from transports.vllm.transport import VllmTransport


@asynccontextmanager
async def opened(fake: FakeVllm, **config: Any) -> AsyncIterator[VllmTransport]:
    with serving(fake.app) as url:
        transport = await vllm.open(TransportConfig(base_url=url, **config))
        try:
            yield transport
        finally:
            await transport.aclose()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"silent": {"/v1/models"}}, r"no server answers at http://127\.0\.0\.1:\d+: no answer within"),
        ({"redirects": "https://elsewhere.example/v1/models"}, r"it redirects to https://elsewhere\.example/v1/models"),
        ({"statuses": {"/v1/models": 404}}, "does not answer as a model server"),
        ({"statuses": {"/v1/models": 401}}, "refused the API key.*--api-key-env"),
        ({"statuses": {"/v1/models": 503}}, "does not answer as a model server: /v1/models: 503"),
    ],
)
@pytest.mark.parametrize("open_it", [auto.open, vllm.open])
async def test_a_server_that_cannot_be_used_is_named(
    fault: dict[str, Any], said: str, open_it: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what is wrong with it; a key in its place is never in it."""
    monkeypatch.setattr(common, "OPEN_S", 0.5)
    with serving(FakeVllm(**fault).app) as url, pytest.raises(ServerError, match=said) as caught:
        await open_it(TransportConfig(base_url=url, api_key="sk-secret"))
    assert "sk-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("faulty", ["nobody", "not http", "tls"])
async def test_what_is_no_server_is_named(faulty: str) -> None:
    """A closed port, another protocol, and https to a server that speaks http."""
    with serving(FakeVllm().app) as url:
        addresses = {"nobody": f"http://127.0.0.1:{free_port()}", "tls": url.replace("http://", "https://")}
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as ssh, anyio.create_task_group() as group:
            group.start_soon(ssh.serve, _ssh)
            addresses["not http"] = f"http://127.0.0.1:{ssh.extra(anyio.abc.SocketAttribute.local_port)}"
            address, error = addresses[faulty], None
            try:
                await auto.open(TransportConfig(base_url=address))
            except ServerError as raised:
                error = raised
            group.cancel_scope.cancel()
    assert error is not None
    assert str(error).startswith(f"no server answers at {address}: ")
    assert "\n" not in str(error)


async def _ssh(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        await stream.receive()
        await stream.send(b"SSH-2.0-OpenSSH_9.6\r\n")


async def test_silence_is_found_out_in_seconds() -> None:
    """The deadlines of opening are its own, not those of a completion."""
    assert common.OPEN_S < 5
    assert PROBE_S <= 60


@pytest.mark.slow
async def test_a_silent_server_is_named_within_five_seconds() -> None:
    """With the deadlines as they are."""
    with serving(FakeVllm(silent={"/v1/models"}).app) as url:
        began = time.monotonic()
        with pytest.raises(ServerError):
            await auto.open(TransportConfig(base_url=url))
        assert time.monotonic() - began < 5.5


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 500])
async def test_a_server_that_completes_nothing_is_named(status: int) -> None:
    """It lists its model, and its engine is dead, or wants another key."""
    fake = FakeVllm()

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") in ("/v1/chat/completions", "/v1/completions"):
            await send({"type": "http.response.start", "status": status, "headers": [(b"retry-after-ms", b"1")]})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        await fake.app(scope, receive, send)

    with serving(refusing) as url, pytest.raises(ServerError, match=r"completes nothing|refused the API key"):
        await vllm.open(TransportConfig(base_url=url))


async def test_a_wrong_model_or_address_is_the_callers_mistake() -> None:
    """The line lists what there is."""
    with serving(FakeVllm().app) as url, pytest.raises(ConfigError, match="does not serve 'other'; it serves: m"):
        await auto.open(TransportConfig(base_url=url, model="other"))
    with pytest.raises(ConfigError, match="port is a number"):
        await auto.open(TransportConfig(base_url="http://h:99999"))


async def test_a_restart_with_another_model_is_seen() -> None:
    """`check` compares what is served with what was opened: the model, its context, its owner."""
    fake = FakeVllm()
    async with opened(fake) as transport:
        await transport.check()
        before = fake.card
        fake.card = {**before, "id": "other"}
        with pytest.raises(ModelNotFound, match="serves 'm' no more; it serves other"):
            await transport.check()
        fake.card = {**before, "max_model_len": 2048}
        with pytest.raises(ServerChanged, match="a context of 2048 tokens, and had 4096"):
            await transport.check()
        fake.card = {"id": "m", "owned_by": "nvidia"}
        with pytest.raises(ServerChanged, match="owned by 'nvidia', and was by 'vllm'"):
            await transport.check()
        fake.card = {**before, "max_model_len": 8192}
        await transport.check()


@pytest.mark.parametrize("status", [401, 403, 404, 405, 429])
async def test_any_answer_is_a_sign_of_life(status: int) -> None:
    """A gateway may have no /health, or guard it, or say that too much is asked."""
    fake = FakeVllm(statuses={"/health": status})
    async with opened(fake) as transport:
        await transport.check()
        fake.statuses = {"/health": 503}
        with pytest.raises(ServerBusy):
            await transport.check()


async def test_a_full_pool_does_not_keep_the_server_from_being_heard() -> None:
    """Four long completions on four connections: health, metrics, pause and weights are answered all the same."""
    fake = FakeVllm(holds=True)
    async with opened(fake, max_connections=4) as transport, anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(transport.generate, prompted(number))
        await until(lambda: fake.running == 4)
        with anyio.fail_after(60):
            await transport.check()
            await transport.load()
            await transport.first_tokens()
            await transport.abort(["unknown"])
            await transport.update_weights("1", "/w")
            assert fake.running == 4
            await transport.pause("abort")
            await transport.resume()
    await until(lambda: fake.running == 0)


async def test_ids_of_a_text_have_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the deadline of prompts is the caller's, a silent /tokenize still ends."""
    monkeypatch.setattr(vllm, "TOKENIZE_S", 0.1)
    fake = FakeVllm(silent={"/detokenize"})
    async with opened(fake, timeout_s=None) as transport:
        with pytest.raises(RequestTimeout):
            await transport.detokenize([1])
