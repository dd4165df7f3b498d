"""Tells servers apart, then speaks their dialect."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from rollout.errors import ConfigError, ServerError, TransportError
from rollout.histogram import Histogram
from rollout.transport import (
    MessagePrompt,
    Reply,
    Request,
    ServerInfo,
    ServerLoad,
    Traffic,
    Transport,
    TransportConfig,
)
from rollout.weights import InFlight, WeightControl
from transports.common import PROBE_RETRIES, client_of, list_models
from transports.dynamo import DynamoTransport
from transports.http import HttpClient
from transports.vllm import VllmTransport


class AutoTransport:
    """The dialect that the server is found to speak, at `connect`."""

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self._client: HttpClient = client_of(config)
        self._found: VllmTransport | DynamoTransport | None = None
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<AutoTransport {self._found or self._client.base_url}>"

    async def connect(self) -> ServerInfo:
        """See `rollout.transport.Transport`."""
        async with self._lock:
            if self._found is None:
                self._found = await self._detect()
        return await self._found.connect()

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`."""
        return await (await self._transport()).generate(request)

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """See `rollout.transport.Transport`."""
        return await (await self._transport()).tokenize(prompt, add_generation_prompt=add_generation_prompt)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `rollout.transport.Transport`."""
        return await (await self._transport()).detokenize(ids)

    async def check(self) -> None:
        """See `rollout.transport.Watched`."""
        await (await self._served()).check()

    async def load(self) -> ServerLoad:
        """See `rollout.transport.Watched`."""
        return await (await self._served()).load()

    async def first_tokens(self) -> Histogram | None:
        """See `rollout.transport.Metered`."""
        return await (await self._served()).first_tokens()

    @property
    def traffic(self) -> Traffic:
        """See `rollout.transport.Metered`."""
        return self._client.traffic

    async def pause(self, mode: InFlight = "keep") -> None:
        """See `rollout.weights.WeightControl`. Raises ConfigError for a dialect that has none."""
        await (await self._control()).pause(mode)

    async def resume(self) -> None:
        """See `rollout.weights.WeightControl`."""
        await (await self._control()).resume()

    async def update_weights(self, version: str, path: str | None) -> None:
        """See `rollout.weights.WeightControl`."""
        await (await self._control()).update_weights(version, path)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _control(self) -> WeightControl:
        found = await self._transport()
        if not isinstance(found, WeightControl):
            raise ConfigError(f"{self._client.base_url}: this server's weights cannot be changed from here; vLLM's can")
        return found

    async def _transport(self) -> Transport:
        return await self._served()

    async def _served(self) -> VllmTransport | DynamoTransport:
        if self._found is None:
            await self.connect()
        assert self._found is not None
        return self._found

    async def _detect(self) -> VllmTransport | DynamoTransport:
        """vLLM says so as its models' owner and answers /version; Dynamo says nvidia and has no /version."""
        owners = {card.owned_by for card in await list_models(self._client)}
        if "vllm" in owners or (owners - {"nvidia"} and await self._has_version()):
            return VllmTransport(self._config, self._client)
        if "nvidia" in owners:
            return DynamoTransport(self._config, self._client)
        raise ServerError(
            f"{self._client.base_url} is neither vLLM nor Dynamo (its models are owned by "
            f"{', '.join(sorted(owners)) or 'nobody'}); if it speaks one of their dialects, say which by --transport"
        )

    async def _has_version(self) -> bool:
        try:
            return b'"version"' in (await self._client.get("/version", retries=PROBE_RETRIES)).body
        except TransportError:
            return False


def create(config: TransportConfig) -> AutoTransport:
    """Entry point `auto`."""
    return AutoTransport(config)
