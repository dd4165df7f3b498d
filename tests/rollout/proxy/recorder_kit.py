"""A recorder in this process, against a scripted server; what a crash leaves of it, another goes on with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from rollout.play.served import ServedModel
from rollout.proxy.app import create_app
from rollout.proxy.guard import Guard
from rollout.proxy.record_folder import RecordFolder
from rollout.proxy.recorder import Recorder, RecorderSettings, recording
from rollout.proxy.sessions_api import Api
from rollout.store.settings import RunSettings
from tests.rollout.play.test_session import ByteCodec
from transports.scripted import ScriptedTransport, reply


class Recorded(msgspec.Struct, kw_only=True):
    """What a test has of it."""

    recorder: Recorder
    client: httpx.AsyncClient
    """Has no key."""
    transport: ScriptedTransport
    app: Any

    async def chat(self, key: str, *said: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """Posts a chat completion under a key: what user and assistant said in turn."""
        roles = ("user", "assistant")
        messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]
        headers = {"authorization": f"Bearer {key}", **(headers or {})}
        body = {"model": "m", "messages": messages, **fields}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def post(self, path: str, body: Any = None) -> dict[str, Any]:
        """Asks the recorder itself; the answer, which must be one."""
        response = await self.client.post(path, json=body if body is not None else {})
        assert response.status_code in (200, 201), response.text
        return dict(response.json())


@contextlib.asynccontextmanager
async def recorded(
    folder: Path,
    *entries: Any,
    codec: Any = None,
    token: str | None = None,
    clock: Callable[[], float] | None = None,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Recorded]:
    """A recorder in a folder. It ends as a crash ends it: nothing is written at its end."""
    transport = ScriptedTransport(entries or [reply(f"answer {n}") for n in range(99)])
    run = RunSettings(env="proxy", agent_sampling="keep", model=transport._info.model, **(config or {}))
    engine = msgspec.structs.replace(run.engine_config(), verify=True)
    model = ServedModel(transport=transport, info=transport._info, codec=codec or ByteCodec(), config=engine)
    opened = RecordFolder.open(folder, run, model.info.model)
    try:
        more: dict[str, Any] = {"clock": clock} if clock is not None else {}
        if token is not None:
            settings["open_unknown"] = False
        async with recording(model, engine, RecorderSettings(**settings), opened, **more) as recorder:
            app = create_app(
                recorder,
                Guard(),
                engine.proxy_body_bytes,
                Api(recorder, "http://localhost", token, engine.proxy_body_bytes).routes(),
            )
            over = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=over, base_url="http://localhost", timeout=30) as client:
                yield Recorded(recorder=recorder, client=client, transport=transport, app=app)
    finally:
        opened.close()
