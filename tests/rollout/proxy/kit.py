"""A rollout served over HTTP on loopback, against a scripted server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from rollout.agent import Endpoint
from rollout.config import EngineConfig
from rollout.play.model import Asking, RolloutModel
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.proxy.endpoints import HttpEndpoints
from tests.rollout.play.test_session import ByteCodec
from transports.scripted import ScriptedTransport, reply


class Proxied(msgspec.Struct, kw_only=True):
    """What a test has of it."""

    endpoint: Endpoint
    client: httpx.AsyncClient
    """Has the rollout's key."""
    transport: ScriptedTransport
    asking: Asking
    model: RolloutModel
    endpoints: HttpEndpoints

    async def chat(self, *said: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """Posts a chat completion: what user and assistant said in turn."""
        return await self.client.post("/v1/chat/completions", json=chat_body(*said, **fields), headers=headers or {})


def chat_body(*said: str, **fields: Any) -> dict[str, Any]:
    """A request of OpenAI's chat completions: what user and assistant said in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]
    return {"model": "scripted", "messages": messages, **fields}


def text_of(response: httpx.Response) -> str:
    """What the model said."""
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def asking_of(transport: ScriptedTransport, config: EngineConfig, codec: Any = None) -> Asking:
    """A rollout of an agent's, that may ask."""
    model = ServedModel(transport=transport, info=transport._info, codec=codec or ByteCodec(), config=config)
    session = Session(model, "s")
    session.has_several()
    return Asking(session, config)


@contextlib.asynccontextmanager
async def proxied(*entries: Any, **config: Any) -> AsyncIterator[Proxied]:
    """One rollout, served."""
    settings = EngineConfig(verify=True, **config)
    transport = ScriptedTransport(entries or [reply(f"answer {n}") for n in range(9)])
    asking = asking_of(transport, settings)
    model = RolloutModel(asking)
    async with HttpEndpoints(settings) as endpoints:
        endpoint = endpoints.open(model)
        headers = {"authorization": f"Bearer {endpoint.api_key}"}
        # Nothing is encrypted here: reading the machine's certificates takes 20 ms.
        async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=30, verify=False) as client:
            yield Proxied(
                endpoint=endpoint,
                client=client,
                transport=transport,
                asking=asking,
                model=model,
                endpoints=endpoints,
            )
