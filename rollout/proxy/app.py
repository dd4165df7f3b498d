"""The routes: three dialects of one rollout's model, under `/v1` by its key, and under `/r/KEY/v1` by its path."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rollout.dialects.anthropic import Anthropic
from rollout.dialects.chat import Chat
from rollout.dialects.dialect import Dialect
from rollout.dialects.headers import Caller, read_headers
from rollout.dialects.responses import Responses
from rollout.dialects.types import DialectError
from rollout.proxy import faults
from rollout.proxy.guard import Guard
from rollout.proxy.respond import respond, send_body, send_error
from rollout.proxy.sessions import ModelCard, Served, Sessions

_CHAT, _RESPONSES, _ANTHROPIC = Chat(), Responses(), Anthropic()

#: Bytes of a request's end, where what is new stands.
_END = 8_192

#: Seconds for which the next part of a request's body is waited for.
BODY_S = 60.0

#: What a dialect's requests are posted to.
PATHS: dict[str, Dialect] = {
    "/v1/chat/completions": _CHAT,
    "/v1/responses": _RESPONSES,
    "/v1/messages": _ANTHROPIC,
}


_VERSIONED = frozenset({*PATHS, "/v1/messages/count_tokens", "/v1/models"})


def create_app(sessions: Sessions, guard: Guard, most_bytes: int, further: Sequence[BaseRoute] = ()) -> ASGIApp:
    """The application. `further` are routes beside those of the dialects; the guard stands before all of them."""
    routes: list[BaseRoute] = []
    for path, dialect in PATHS.items():
        routes.append(Route(path, _Turn(sessions, dialect, most_bytes), methods=["POST"]))
    routes.append(Route("/v1/messages/count_tokens", _Count(sessions, _ANTHROPIC, most_bytes), methods=["POST"]))
    routes += models_routes(sessions)
    routes.append(Route("/", _alive, methods=["GET", "HEAD"]))
    handlers: dict[Any, Any] = {404: _no_route, 405: _no_route, Exception: _failed}
    # Claude Code asks for its base URL itself, which has no slash at its end.
    root = Route("/r/{key}", _alive, methods=["GET", "HEAD"])
    app = Starlette(routes=[*further, *routes, root, Mount("/r/{key}", routes=routes)], exception_handlers=handlers)
    return _Guarded(app, guard)


def models_routes(sessions: Sessions) -> list[BaseRoute]:
    """Those that tell which model there is."""
    paths = ("/v1/models", "/v1/models/{model:path}")
    return [Route(path, _Models(sessions), methods=["GET"]) for path in paths]


class _Guarded:
    """Stands before every route."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            self._guard.check(Headers(scope=scope))
        except DialectError as error:
            await send_error(send, _dialect_of(scope["path"]), error)
            return
        if (path := versioned(scope["path"])) is not scope["path"]:
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


def versioned(path: str) -> str:
    """A path with its /v1: some clients' base URLs have none, whatever is said of them."""
    root, rest = "", path
    if path.startswith("/r/"):
        end = path.find("/", 3)
        root, rest = (path[:end], path[end:]) if end > 0 else (path, "")
    return f"{root}/v1{rest}" if f"/v1{rest}" in _VERSIONED else path


class _Endpoint:
    """A route of one dialect's. Whatever is refused is refused in the dialect's own form, and so is what fails."""

    def __init__(self, sessions: Sessions, dialect: Dialect, most_bytes: int) -> None:
        self._sessions, self._dialect, self._most_bytes = sessions, dialect, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            served, caller = _whose(self._sessions, scope)
            await self._serve(served, caller, scope, receive, send)
        except Exception as error:
            await send_error(send, self._dialect, faults.refusal_of(error))

    async def _serve(self, served: Served, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class _Turn(_Endpoint):
    """Has the model answer."""

    async def _serve(self, served: Served, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._most_bytes)
        digest = request_digest(self._dialect, body, caller)
        turn = served.turns.asked_before(caller, digest)
        if turn is None:
            call = self._dialect.read(body, served.memory)
            ask = served.ask_of(call, caller)
            turn = served.turns.begin(call, ask, caller, digest, dialect=self._dialect.name)
        await respond(served.turns, turn, self._dialect, served.memory, receive, send)


class _Count(_Endpoint):
    """Says how many tokens a request's prompt has, and has nothing answered."""

    async def _serve(self, served: Served, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._most_bytes)
        call = _ANTHROPIC.read(body, served.memory)
        tokens = await served.asking.session.count(served.ask_of(call, caller))
        if tokens is None:
            why = "count_tokens: there is neither a tokenizer nor /tokenize here: name one by --tokenizer"
            raise DialectError(501, why, code="not_implemented")
        await send_body(send, _ANTHROPIC.count_body(tokens))


class _Models:
    """The one model that there is."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        dialect = _dialect_of("/v1/messages" if "anthropic-version" in Headers(scope=scope) else "")
        try:
            served, _ = _whose(self._sessions, scope)
            name = served.server.model
            card = ModelCard(id=name, display_name=name)
            named = scope["path_params"].get("model")
            if named is not None and named != card.id:
                why = f"there is no model {named[:100]!r}, only {card.id!r}"
                raise DialectError(404, why, code="model_not_found")
        except DialectError as error:
            await send_error(send, dialect, error)
            return
        page = {"object": "list", "data": [card], "has_more": False, "first_id": card.id, "last_id": card.id}
        await send_body(send, msgspec.json.encode(page if named is None else card))


def _whose(sessions: Sessions, scope: Scope) -> tuple[Served, Caller]:
    caller = read_headers(Headers(scope=scope))
    key = scope["path_params"].get("key")
    return sessions.find(caller.keys if key is None else (key,), caller), caller


def request_digest(dialect: Dialect, body: bytes, caller: Caller) -> bytes:
    """What an equal request of the same agent has, too: its length, a checksum, and a digest of its end.

    A digest of the whole would cost as much as reading what was seen before, and only a marked retry is looked up.
    """
    end = hashlib.sha256(memoryview(body)[-_END:])
    end.update(f"\0{caller.train} {caller.agent or ''}".encode(errors="replace"))
    return b"%s %d %d %s" % (dialect.name.encode(), len(body), zlib.crc32(body), end.digest())


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The request's body. Raises DialectError where it is too large, packed, or does not come."""
    headers = Headers(scope=scope)
    if headers.get("content-encoding", "identity") != "identity":
        packed = headers["content-encoding"]
        raise DialectError(415, f"bodies of content-encoding {packed[:40]!r} are not read: send it as it is")
    said = headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise faults.too_large(most)
    parts, size = list[bytes](), 0
    while True:
        try:
            async with asyncio.timeout(BODY_S):
                message = await receive()
        except TimeoutError:
            raise DialectError(408, f"no more of the request came within {BODY_S:g} s", code="slow_request") from None
        if message["type"] == "http.disconnect":
            raise DialectError(400, "the client left before its request was whole")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise faults.too_large(most)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts) if len(parts) > 1 else part


def _dialect_of(path: str) -> Dialect:
    """Which form an error takes where no route says."""
    return _ANTHROPIC if "/messages" in path else _CHAT


async def _alive(request: Request) -> Response:
    return Response(b"" if request.method == "HEAD" else b"rollout\n", media_type="text/plain")


async def _no_route(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    what = f"{request.method} {request.url.path[-100:]}"
    refusal = DialectError(status, f"{what}: there are POST {', '.join(PATHS)}, and GET /v1/models", code="no_route")
    body = _dialect_of(request.url.path).error(refusal)
    return Response(body, status, {"x-should-retry": "false"}, "application/json")


async def _failed(request: Request, error: Exception) -> Response:
    """For routes that are no dialect's."""
    return Response(_CHAT.error(faults.refusal_of(error)), 500, media_type="application/json")
