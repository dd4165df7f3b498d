"""The embedded model as a transport: the real client against the real app, with no socket between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import httpx
from starlette.applications import Starlette

from rollout.errors import ConfigError
from rollout.histogram import Histogram
from rollout.transport import MessagePrompt, Reply, Request, ServerInfo, ServerLoad, Traffic, TransportConfig
from rollout.weights import InFlight
from transports.dynamo import DynamoTransport
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app
from transports.embedded.engine import Engine
from transports.http import HttpClient
from transports.vllm import VllmTransport

_OPTIONS = frozenset({"model_dir", "dialect"})


class EmbeddedTransport:
    """Carries prompts to an engine of its own in this process."""

    def __init__(self, config: TransportConfig) -> None:
        """Options: `model_dir` (a folder) and `dialect` (vllm or dynamo)."""
        if unknown := config.options.keys() - _OPTIONS:
            raise ConfigError(f"the embedded transport knows no option {', '.join(sorted(unknown))}")
        self._config = config
        self._folder = Path(config.options.get("model_dir", MODEL_DIR))
        self._dialect = config.options.get("dialect", "vllm")
        if self._dialect not in ("vllm", "dynamo"):
            raise ConfigError(f"the embedded model speaks vllm or dynamo, not {self._dialect!r}")
        self._engine: Engine | None = None
        self._inner: VllmTransport | DynamoTransport | None = None
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<EmbeddedTransport {self._engine or self._folder}>"

    async def connect(self) -> ServerInfo:
        """See `rollout.transport.Transport`."""
        info = await (await self._opened()).connect()
        info.dialect = "embedded"
        return info

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`."""
        return await (await self._opened()).generate(request)

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """See `rollout.transport.Transport`."""
        return await (await self._opened()).tokenize(prompt, add_generation_prompt=add_generation_prompt)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `rollout.transport.Transport`."""
        return await (await self._opened()).detokenize(ids)

    async def check(self) -> None:
        """See `rollout.transport.Watched`."""
        await (await self._opened()).check()

    async def load(self) -> ServerLoad:
        """See `rollout.transport.Watched`."""
        return await (await self._opened()).load()

    async def first_tokens(self) -> Histogram | None:
        """See `rollout.transport.Metered`."""
        return await (await self._opened()).first_tokens()

    @property
    def traffic(self) -> Traffic:
        """See `rollout.transport.Metered`. Nothing goes over a wire here; the bodies are made and read all the same."""
        return self._inner.traffic if self._inner is not None else Traffic()

    async def pause(self, mode: InFlight = "keep") -> None:
        """Stops decoding: `keep` freezes what runs, `wait` lets it end, `abort` ends it."""
        await self._control().pause(mode)

    async def resume(self) -> None:
        """Goes on after `pause`."""
        await self._control().resume()

    async def update_weights(self, version: str, path: str | None) -> None:
        """Loads the weights of a folder and names their version."""
        await self._control().update_weights(version, path)

    async def aclose(self) -> None:
        """Closes the client and ends the engine's thread."""
        inner, self._inner = self._inner, None
        engine, self._engine = self._engine, None
        if inner is not None:
            await inner.aclose()
        if engine is not None:
            await anyio.to_thread.run_sync(engine.close)

    async def _opened(self) -> VllmTransport | DynamoTransport:
        if self._inner is not None:
            return self._inner
        async with self._lock:
            if self._inner is None:
                try:
                    app = await anyio.to_thread.run_sync(self._create)
                except (OSError, ValueError, KeyError) as error:
                    raise ConfigError(f"no embedded model in {self._folder}: {error}") from error
                client = HttpClient(
                    "http://embedded",
                    timeout_s=self._config.timeout_s,
                    retries=self._config.retries,
                    headers=self._config.headers,
                    transport=httpx.ASGITransport(app, raise_app_exceptions=False),
                )
                kind = VllmTransport if self._dialect == "vllm" else DynamoTransport
                self._inner = kind(self._config, client)
        return self._inner

    def _create(self) -> Starlette:
        app = create_app(self._folder, dialect=self._dialect)
        self._engine = app.state.engine
        return app

    def _control(self) -> VllmTransport:
        if not isinstance(self._inner, VllmTransport):
            raise ConfigError("weights are controlled after connect, and by vLLM's dialect")
        return self._inner


def create(config: TransportConfig) -> EmbeddedTransport:
    """Entry point `embedded`."""
    return EmbeddedTransport(config)
