"""A small server with vLLM's routes on a real port: it can be paused, given weights, stopped, and started anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import anyio
from aiohttp import web

from tests.live.servers import free_port


class VllmDouble:
    """One server. Its settings may be changed while it runs."""

    def __init__(self, *, model: str = "m", answer_s: float = 0.01, port: int | None = None) -> None:
        self.model = model
        self.answer_s = answer_s
        """What one completion takes."""
        self.max_model_len = 4096
        self.paused = False
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self.version = "start"
        self.loads: list[str] = []
        self.loads_fail = False
        self.completions = 0
        self.port = free_port() if port is None else port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> Self:
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.get("/openapi.json", _paths),
                web.get("/version", _said),
                web.get("/health", _said),
                web.get("/metrics", self._metrics),
                web.get("/is_paused", self._is_paused),
                web.post("/v1/chat/completions", self._complete),
                web.post("/v1/completions", self._complete),
                web.post("/pause", self._pause),
                web.post("/resume", self._resume),
                web.post("/collective_rpc", self._load),
                web.post("/update_weight_version", self._name),
            ]
        )
        return app

    async def _models(self, request: web.Request) -> web.Response:
        card = {"id": self.model, "owned_by": "vllm", "root": "/none", "max_model_len": self.max_model_len}
        return web.json_response({"data": [card]})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n")

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["model"] != self.model:
            error = {"message": f"The model `{body['model']}` does not exist.", "code": 404}
            return web.json_response({"error": error}, status=404)
        probe = body.get("max_tokens") in (1, 2)
        if not probe:
            self.completions += 1
            await asyncio.sleep(self.answer_s)
        await self._goes_on.wait()
        ids = (body.get("stop_token_ids") or [7])[:1] if probe else [7, 8]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "token_ids": ids}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": "x"}
            choice["logprobs"] = {"content": [{"token": "x", "logprob": -0.5} for _ in ids]}
        else:
            choice["text"] = "x"
            choice["logprobs"] = {"token_logprobs": [-0.5] * len(ids), "tokens": ["x"] * len(ids)}
        usage = {"prompt_tokens": 3, "completion_tokens": len(ids)}
        return web.json_response({"choices": [choice], "prompt_token_ids": [1, 2, 3], "usage": usage})

    async def _pause(self, request: web.Request) -> web.Response:
        self.paused = True
        self._goes_on.clear()
        return web.json_response({})

    async def _resume(self, request: web.Request) -> web.Response:
        self.paused = False
        self._goes_on.set()
        return web.json_response({})

    async def _is_paused(self, request: web.Request) -> web.Response:
        return web.json_response({"is_paused": self.paused})

    async def _load(self, request: web.Request) -> web.Response:
        if self.loads_fail:
            return web.json_response({"error": {"message": "out of memory"}}, status=400)
        self.loads.append((await request.json())["kwargs"]["weights_path"])
        return web.json_response({})

    async def _name(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.json_response({})


async def _said(request: web.Request) -> web.Response:
    return web.json_response({"version": "0.32"})


async def _paths(request: web.Request) -> web.Response:
    return web.json_response({"paths": {"/v1/completions": {}, "/v1/chat/completions": {}}})


async def until(condition: Callable[[], bool]) -> None:
    """Returns when it holds, which a server on a socket decides."""
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # nothing here sets an event
            await anyio.sleep(0.005)


@contextlib.asynccontextmanager
async def vllm_double(**settings: Any) -> AsyncIterator[VllmDouble]:
    """A running one; stopped at the end."""
    server = await VllmDouble(**settings).start()
    try:
        yield server
    finally:
        await server.stop()
