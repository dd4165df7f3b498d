"""Tells servers apart, then opens the transport of their dialect."""

from __future__ import annotations

from rollout.errors import ServerError, TransportError
from rollout.transport import TransportConfig
from transports import dynamo
from transports.dynamo import DynamoTransport
from transports.http.client import HttpClient
from transports.openai import PROBE_RETRIES, list_models, opening
from transports.sglang import transport as sglang
from transports.sglang.transport import SglangTransport
from transports.vllm import transport as vllm
from transports.vllm.transport import VllmTransport


async def open(config: TransportConfig) -> VllmTransport | DynamoTransport | SglangTransport:
    """Entry point `auto`. See `rollout.transport.Open`.

    vLLM and SGLang say so as their models' owner, and vLLM answers /version; Dynamo says nvidia and has no /version.
    """
    async with opening(config) as client:
        owners = {card.owned_by for card in await list_models(client)}
        if "sglang" in owners:
            return await sglang.open(config, client)
        if "vllm" in owners or (owners - {"nvidia"} and await _has_version(client)):
            return await vllm.open(config, client)
        if "nvidia" in owners:
            return await dynamo.open(config, client)
        raise ServerError(
            f"{client.base_url} is neither vLLM, SGLang nor Dynamo (its models are owned by "
            f"{', '.join(sorted(owners)) or 'nobody'}); if it speaks one of their dialects, say which by --transport"
        )


async def _has_version(client: HttpClient) -> bool:
    try:
        return b'"version"' in (await client.get("/version", retries=PROBE_RETRIES)).body
    except TransportError:
        return False
