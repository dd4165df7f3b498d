"""The ASGI app: one engine behind vLLM's wire, Dynamo's or SGLang's.

    app = create_app()                      # or dialect="dynamo", "sglang"
    httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://embedded")

In process nobody sends lifespan events, so the first request starts the engine; whoever made the
app closes it with `app.state.engine.close()`. Under uvicorn the lifespan does both.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rollout.dialects.headers import read_headers
from transports.embedded import MODEL_DIR
from transports.embedded.chat import ChatFormat
from transports.embedded.dynamo_routes import DynamoRoutes
from transports.embedded.engine import Engine
from transports.embedded.jobs import EngineClosedError
from transports.embedded.model import Model
from transports.embedded.programs import ANTHROPIC, ProgramRoutes, refusal
from transports.embedded.sampling import LogprobsMode
from transports.embedded.sglang_routes import SglangRoutes
from transports.embedded.vllm_routes import VERSION, VllmRoutes
from transports.embedded.wire import GenerateRefused, Refused, RouteSpec, Served, answer, generation_defaults

Dialect = Literal["vllm", "sglang", "dynamo"]

_ROUTES: dict[str, type[VllmRoutes] | type[SglangRoutes] | type[DynamoRoutes]] = {
    "vllm": VllmRoutes,
    "sglang": SglangRoutes,
    "dynamo": DynamoRoutes,
}

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    model_dir: Path | str = MODEL_DIR,
    *,
    served_name: str = "rollout-tiny",
    dialect: Dialect = "vllm",
    engine: Engine | None = None,
    max_model_len: int | None = None,
    logprobs_mode: LogprobsMode | None = None,
    api_key: str | None = None,
) -> Starlette:
    """An app that serves the folder's model under `served_name`.

    `engine` is one of the caller's, perhaps shared by two apps of different dialect; the app then
    neither starts nor closes it under lifespan. `max_model_len` (tokens) lowers the context. `logprobs_mode` says what
    logprobs are of, where the engine is not the caller's; None is as each server does it by default. Where there is an
    `api_key`, who does not send it is let into nothing but the health checks.
    """
    folder = Path(model_dir)
    own = engine is None
    mode = logprobs_mode or ("processed_logprobs" if dialect == "sglang" else "raw_logprobs")
    engine = engine or Engine(Model.load(folder), logprobs_mode=mode)
    context = min(max_model_len or engine.model.config.context, engine.model.config.context)
    defaults = generation_defaults(folder)
    served = Served(engine, ChatFormat(folder), served_name, root=str(folder), context=context, defaults=defaults)
    specs = _ROUTES[dialect](served).routes()
    if dialect == "vllm":
        specs = [*specs, *ProgramRoutes(served).routes()]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if own:
            engine.start()
        try:
            yield
        finally:
            if own:
                engine.close()

    error_of = _dynamo_error if dialect == "dynamo" else _vllm_error
    app = Starlette(
        routes=[
            *(Route(path, _starting(engine, handler), methods=[method]) for method, path, handler in specs),
            Route("/openapi.json", _openapi(specs, dialect), methods=["GET"]),
        ],
        lifespan=lifespan,
        middleware=[Middleware(KeyCheck, api_key=api_key, refusal=error_of)] if api_key else [],
        exception_handlers={
            Refused: lambda request, error: error_of(error),
            HTTPException: lambda request, error: error_of(_of_http(error)),
            # Logged by the server, as what is raised still; its client is told in JSON, as all clients are.
            Exception: lambda request, error: error_of(Refused(500, "the request failed here", "InternalServerError")),
            EngineClosedError: lambda request, error: error_of(Refused(503, str(error), "ServiceUnavailable")),
        },
    )
    app.state.engine = engine
    app.state.served = served
    return app


class KeyCheck:
    """Lets in who sends the key, as a bearer token or as Anthropic's clients send it."""

    def __init__(self, app: ASGIApp, api_key: str, refusal: Callable[[Exception], Response]) -> None:
        self._app, self._key, self._refusal = app, api_key.encode(), refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ("/health", "/live") or self._is_let_in(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        missing = Refused(401, "the API key is missing or wrong", "AuthenticationError")
        is_anthropic = scope["path"].startswith("/v1/messages")
        refused = refusal(ANTHROPIC, missing) if is_anthropic else self._refusal(missing)
        await refused(scope, receive, send)

    def _is_let_in(self, headers: Headers) -> bool:
        return any(hmac.compare_digest(key.encode(), self._key) for key in read_headers(headers).keys)


def _starting(engine: Engine, handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        engine.start()
        return await handler(request)

    return handle


def _openapi(specs: list[RouteSpec], dialect: Dialect) -> Handler:
    """The list of routes, by which a probe tells what the server can do."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, _ in specs:
        paths.setdefault(path, {})[method.lower()] = {"responses": {"200": {"description": "OK"}}}
    title = "NVIDIA Dynamo OpenAI Frontend" if dialect == "dynamo" else "FastAPI"
    document = {"openapi": "3.1.0", "info": {"title": title, "version": VERSION}, "paths": paths}

    async def openapi(request: Request) -> Response:
        return answer(document)

    return openapi


def _of_http(error: Exception) -> Refused:
    """Starlette's own refusals (no such route, wrong method)."""
    assert isinstance(error, HTTPException)
    return Refused(error.status_code, str(error.detail), "NotFoundError" if error.status_code == 404 else "HTTPError")


def _vllm_error(error: Exception) -> Response:
    assert isinstance(error, Refused)
    content = {"message": error.message, "type": error.kind, "param": error.param, "code": error.status}
    return answer({"error": content}, error.status)


def _dynamo_error(error: Exception) -> Response:
    assert isinstance(error, Refused)
    if isinstance(error, GenerateRefused):
        return answer({"error": {"message": error.message, "type": error.kind, "code": error.status}}, error.status)
    if error.kind == "NotFoundError" and error.param == "model":
        # Dynamo's message names the model that was asked for, not those that it has.
        message = error.message.partition(". Available")[0].replace("does not exist", "not found")
        return answer({"message": message, "type": "Not Found", "code": 404}, 404)
    return answer({"message": error.message, "type": "Bad Request", "code": error.status}, error.status)
