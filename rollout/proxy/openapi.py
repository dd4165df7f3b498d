"""What a recorder answers, as an OpenAPI document: made of the very table by which it answers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request

from rollout.proxy.app import PATHS
from rollout.registry import DISTRIBUTION


class Fault(msgspec.Struct, kw_only=True):
    """Why a request is refused."""

    error: dict[str, Any]


class Operation(msgspec.Struct, kw_only=True):
    """One request of the API."""

    method: str
    path: str
    summary: str
    answer: Any
    status: int = 200
    body: Any = None
    body_required: bool = True
    do: Callable[[Any, Request, Any], Awaitable[Any]]
    """Given the API, the request and its body, gives the answer: a struct, or JSON."""

    @property
    def parameters(self) -> list[str]:
        """Those in its path."""
        return re.findall(r"\{(\w+)\}", self.path)


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI document of these, and of what the dialects answer."""
    types = [each for operation in operations for each in (operation.body, operation.answer) if each is not None]
    schemas, components = msgspec.json.schema_components([*types, Fault], ref_template="#/components/schemas/{name}")
    schema_of = dict(zip([*types, Fault], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, schema_of)
    for prefix in ("", "/r/{key}"):
        paths |= _of_models(prefix)
    return {
        "openapi": "3.1.0",
        "info": {"title": "rollout proxy", "version": version(DISTRIBUTION), "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Names the rollout; x-api-key does, too."},
                "token": {"type": "http", "scheme": "bearer", "description": "The recorder's, where it has one."},
            },
        },
    }


_DESCRIPTION = (
    "Records whatever agent is pointed at it. Model requests are OpenAI's chat completions and Responses, and "
    "Anthropic Messages; their API key, or the path /r/KEY, names the rollout."
)


def _described(operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": operation.summary,
        "security": [{"token": []}],
        "responses": {
            str(operation.status): _answer("As asked.", schema_of[operation.answer]),
            "default": _answer("Refused: 400, 401, 404, 409 where it has ended, 413, 429.", schema_of[Fault]),
        },
    }
    if operation.parameters:
        found["parameters"] = [_parameter(name, "The session's id.") for name in operation.parameters]
    if operation.body is not None:
        content = {"application/json": {"schema": schema_of[operation.body]}}
        found["requestBody"] = {"required": operation.body_required, "content": content}
    return found


def _of_models(prefix: str) -> dict[str, dict[str, Any]]:
    anything = {"type": "object"}
    further = [_parameter("key", "The rollout's key.")] if prefix else []

    def operation(summary: str, *names: str, body: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "summary": summary,
            "security": [{"key": []}],
            "responses": {
                "200": _answer("In the dialect's form, streamed where that was asked for.", anything),
                "default": _answer("Refused, in the dialect's form.", anything),
            },
        }
        if parameters := [*further, *(_parameter(name, "The model's name.") for name in names)]:
            found["parameters"] = parameters
        if body:
            found["requestBody"] = {"required": True, "content": {"application/json": {"schema": anything}}}
        return found

    paths = {
        f"{prefix}{path}": {"post": operation(f"Have the model answer ({dialect.name}).", body=True)}
        for path, dialect in PATHS.items()
    }
    count = operation("Count the tokens of a request's prompt.", body=True)
    paths[f"{prefix}/v1/messages/count_tokens"] = {"post": count}
    paths[f"{prefix}/v1/models"] = {"get": operation("The model.", body=False)}
    paths[f"{prefix}/v1/models/{{model}}"] = {"get": operation("The model.", "model", body=False)}
    return paths


def _parameter(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _answer(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
