"""The embedded model as a transport: the real client against the real app, with no socket between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec

from rollout.errors import ConfigError
from rollout.transport import TransportConfig
from transports import dynamo
from transports.dynamo import DynamoTransport
from transports.embedded import MODEL_DIR, NOT_A_MODEL
from transports.embedded.app import create_app
from transports.fields import tell_unreported
from transports.http.client import HttpClient
from transports.sglang import transport as sglang
from transports.sglang.transport import SglangTransport
from transports.vllm import transport as vllm
from transports.vllm.transport import VllmTransport

_OPTIONS = ("model_dir", "dialect", "logprobs_mode")


async def open(config: TransportConfig) -> VllmTransport | DynamoTransport | SglangTransport:
    """Entry point `embedded`: an engine of its own in this process, which ends with the transport.

    Options: `model_dir` (a folder), `dialect` (vllm, sglang or dynamo), `logprobs_mode` (vLLM's). Raises ConfigError.
    """
    if unknown := config.options.keys() - set(_OPTIONS):
        raise ConfigError(
            f"the embedded transport knows no option {', '.join(sorted(unknown))}; it knows {', '.join(_OPTIONS)}"
        )
    dialect = config.options.get("dialect", "vllm")
    if dialect not in ("vllm", "sglang", "dynamo"):
        raise ConfigError(f"the embedded model speaks vllm, sglang or dynamo, not {dialect!r}")
    folder = Path(config.options.get("model_dir", MODEL_DIR))
    try:
        mode = config.options.get("logprobs_mode")
        app = await anyio.to_thread.run_sync(lambda: create_app(folder, dialect=dialect, logprobs_mode=mode))
    except NOT_A_MODEL as error:
        raise ConfigError(f"no embedded model in {folder}: {error}") from error
    client = HttpClient(
        "http://embedded",
        timeout_s=config.timeout_s,
        retries=config.retries,
        headers=config.headers,
        transport=_AppTransport(app),
    )
    speaks: dict[str, Any] = {"vllm": vllm.open, "sglang": sglang.open, "dynamo": dynamo.open}
    plain = msgspec.structs.replace(config, options={}, routed_experts=False, sampling_mask=False)
    transport: VllmTransport | DynamoTransport | SglangTransport = await speaks[dialect](plain, client)
    transport.info.dialect = "embedded"
    transport.info.vocab_size = app.state.engine.model.config.vocab_size
    tell_unreported(
        config,
        transport.info,
        routed_experts="the embedded model is no mixture of experts: play on vLLM or SGLang",
        sampling_mask="the embedded model reports none: play on vLLM or SGLang",
    )
    return transport


class _AppTransport(httpx.ASGITransport):
    """Ends the engine's thread when it is closed."""

    def __init__(self, app: Any) -> None:
        super().__init__(app, raise_app_exceptions=False)
        self._close_engine = app.state.engine.close

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._close_engine)
