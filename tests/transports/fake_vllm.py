"""A small server with vLLM's routes, with faults that a test chooses: what a real one does not show on demand."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from rollout.request import Request as Prompted
from rollout.request import TokenPrompt


def prompted(number: int = 0, **fields: Any) -> Prompted:
    """A token-in request that is no probe's."""
    fields = {"max_tokens": 100, **fields}
    return Prompted(prompt=TokenPrompt([1, 2]), request_id=f"r{number}", session_id=f"s{number}", **fields)


async def until(condition: Callable[[], bool]) -> None:
    """Returns when it holds, which a server in another thread decides."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # another thread can set no event of this loop
            await anyio.sleep(0.002)


class FakeVllm:
    """The app, what it saw, and what it does wrong. Its attributes may be changed while it serves."""

    def __init__(self, **faults: Any) -> None:
        self.seen: Counter[str] = Counter()
        """Requests by path; those of a probe are counted as `probe`."""
        self.running = 0
        self.holds = False
        """Completions wait for a pause, and end by it."""
        self.held_reason = "abort"
        """Why those have ended."""
        self.silent: set[str] = set()
        """Paths that are never answered."""
        self.redirects: str | None = None
        """Where /v1/models redirects to."""
        self.late: float | None = None
        """Every other completion is answered 429, to be asked for again in so many seconds, as a date without zone."""
        self.card: dict[str, Any] = {"id": "m", "owned_by": "vllm", "root": "/none", "max_model_len": 4096}
        self.statuses: dict[str, int] = {}
        """Paths that are answered with this status."""
        for name, value in faults.items():
            setattr(self, name, value)
        self._paused = asyncio.Event()
        routes = [Route(path, self._get) for path in ("/v1/models", "/openapi.json", "/version", "/health", "/metrics")]
        told = (
            "/pause",
            "/resume",
            "/collective_rpc",
            "/update_weight_version",
            "/inference/v1/abort_requests",
            "/detokenize",
        )
        routes += [Route(path, self._tell, methods=["POST"]) for path in told]
        routes += [Route(path, self._complete, methods=["POST"]) for path in COMPLETIONS]
        self.app = Starlette(routes=routes)

    async def _fault(self, request: Request) -> Response | None:
        path = request.url.path
        self.seen[path] += 1
        if path in self.silent:
            await _gone(request)
        if path == "/v1/models" and self.redirects is not None:
            return RedirectResponse(self.redirects, 308)
        return JSONResponse({}, self.statuses[path]) if path in self.statuses else None

    async def _get(self, request: Request) -> Response:
        path = request.url.path
        if (fault := await self._fault(request)) is not None:
            return fault
        paths: dict[str, Any] = {path: {} for path in (*COMPLETIONS, "/version")}
        said = {"/v1/models": {"data": [self.card]}, "/openapi.json": {"paths": paths}, "/version": {"version": "0.32"}}
        return JSONResponse(said.get(path, {}))

    async def _tell(self, request: Request) -> Response:
        if (fault := await self._fault(request)) is not None:
            return fault
        if request.url.path == "/pause":
            self._paused.set()
        if request.url.path == "/resume":
            self._paused.clear()
        return JSONResponse({})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        if body.get("max_tokens") in (1, 2):
            self.seen["probe"] += 1
            return JSONResponse(_answer((body.get("stop_token_ids") or [7])[:1], "stop"))
        if (fault := await self._fault(request)) is not None:
            return fault
        if self.late is not None and self.seen[request.url.path] % 2:
            return Response("{}", 429, headers={"retry-after": formatdate(time.time() + self.late)})
        if not self.holds:
            return JSONResponse(_answer([7, 8], "stop"))
        self.running += 1
        try:
            await self._until_told(request)
        finally:
            self.running -= 1
        return JSONResponse(_answer([7], self.held_reason))

    async def _until_told(self, request: Request) -> None:
        """Returns when a pause ends it, or the client is gone."""
        waits = [asyncio.ensure_future(self._paused.wait()), asyncio.ensure_future(_gone(request))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


COMPLETIONS = ("/v1/chat/completions", "/v1/completions")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(ids: list[int], finish_reason: str) -> dict[str, Any]:
    logprobs = {"content": [{"token": "x", "logprob": -0.5} for _ in ids], "token_logprobs": [-0.5] * len(ids)}
    choice = {"token_ids": ids, "finish_reason": finish_reason, "logprobs": logprobs, "text": "x"}
    choice["message"] = {"role": "assistant", "content": "x"}
    return {"choices": [choice], "prompt_token_ids": [1, 2, 3], "usage": {"prompt_tokens": 3}}
