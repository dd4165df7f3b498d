"""A recorder on a port."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout.errors import ConfigError
from rollout.proxy.recorder import RecorderSettings
from rollout.proxy.recording import recording_on
from rollout.store.settings import RunSettings


def _settings(**further: Any) -> RunSettings:
    return RunSettings(env="proxy", transport="scripted", agent_sampling="keep", **further)


async def test_keys_need_no_registering_on_this_machine(tmp_path: Path) -> None:
    """With a token, too: that is for the sessions' own requests."""
    async with recording_on(_settings(), RecorderSettings(), tmp_path / "run", token="secret") as one:
        assert one.url.startswith("http://127.0.0.1:")
        async with httpx.AsyncClient(base_url=one.url) as client:
            assert (await client.get("/sessions")).status_code == 401
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == one.model.info.model
            body = {"model": "m", "messages": []}
            refused = await client.post("/v1/chat/completions", json=body, headers={"x-api-key": "any"})
            assert refused.status_code == 400  # its body is what is wrong
            with_token = await client.get("/sessions", headers={"authorization": "Bearer secret"})
            assert len(with_token.json()["sessions"]) == 1


async def test_beyond_this_machine_a_token_is_needed_and_keys_are_registered(tmp_path: Path) -> None:
    """Whoever reaches it could read every session otherwise. Nothing is made before that is said."""
    beyond = _settings(proxy_host="0.0.0.0")
    with pytest.raises(ConfigError, match="--token-env"):
        async with recording_on(beyond, RecorderSettings(), tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists()
    async with recording_on(beyond, RecorderSettings(), tmp_path / "run", token="secret") as one:
        port = one.url.rpartition(":")[2]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
            refused = await client.post("/v1/chat/completions", json=body, headers={"x-api-key": "any"})
            assert refused.status_code == 401


async def test_a_port_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    """Before a server is asked for anything, or a folder made."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = _settings(proxy_port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"cannot listen on .* give another --host or --port"):
            async with recording_on(settings, RecorderSettings(), tmp_path / "run"):
                pass
    assert not (tmp_path / "run").exists()
