"""A resources server of NeMo Gym: what its OpenAPI names, a session with it, and what was said as it reads that.

A server tells sessions apart by a cookie, which it may change with every answer. What a model said is told to it as a
response of OpenAI's Responses API.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import httpx
import msgspec

from envs.adapters.common import one_line
from envs.adapters.headers import shown
from rollout.chat.messages import Message
from rollout.errors import ConfigError

#: Endpoints that are no tools.
_OWN = frozenset({"seed_session", "verify", "aggregate_metrics", "reset", "step", "close", "end_session"})

#: How deep the schema of an endpoint is followed; one that goes on names itself.
_DEPTH = 12


class ResourcesFailed(Exception):
    """A server that cannot be reached, or failed in a call: never a reward of 0."""


class Resources(msgspec.Struct, frozen=True):
    """What a server says of itself."""

    steps: bool
    """Whether it is played by `reset` and `step`, as the package's GymnasiumServer is, in place of `verify`."""
    tools: Sequence[Mapping[str, Any]]
    """Its endpoints, as chat templates take them."""


def described(url: str, headers: Mapping[str, str], timeout_s: float) -> Resources:
    """What a server says of itself. Blocks. Raises ConfigError for an address that is none."""
    try:
        answer = httpx.get(f"{url}/openapi.json", headers=dict(headers), timeout=timeout_s)
        said = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = one_line(error)
        raise ConfigError(f"nemo-gym: no server at {shown(url)}: {why:.200}: start it (ng_run)") from error
    except ValueError:
        said = {}
    paths = said.get("paths", {}) if isinstance(said, dict) else {}
    steps = {"/reset", "/step"} <= paths.keys() and "/verify" not in paths
    if not steps and "/verify" not in paths:
        there = f"it has {', '.join(sorted(paths)[:8])}" if paths else f"it answers {answer.status_code}"
        raise ConfigError(
            f"nemo-gym: {shown(url)} is no resources server: its /openapi.json names no /verify, and {there}"
        )
    schemas = said.get("components", {}).get("schemas", {})
    tools = [_tool_spec(path[1:], each["post"], schemas) for path, each in paths.items() if _is_tool(path, each)]
    return Resources(steps, tools)


def _is_tool(path: str, methods: Mapping[str, Any]) -> bool:
    return "post" in methods and "{" not in path and path.count("/") == 1 and path[1:] not in _OWN


def _tool_spec(name: str, endpoint: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    body = endpoint.get("requestBody", {}).get("content", {}).get("application/json", {})
    parameters = _inlined(body.get("schema", {}), schemas, _DEPTH) or {"type": "object", "properties": {}}
    about = endpoint.get("description") or endpoint.get("summary") or ""
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def _inlined(schema: Any, schemas: Mapping[str, Any], depth: int) -> Any:
    """A schema without references, which few chat templates would show."""
    if isinstance(schema, list):
        return [_inlined(each, schemas, depth) for each in schema]
    if not isinstance(schema, dict) or depth < 0:
        return {} if isinstance(schema, dict) else schema
    if isinstance(name := schema.get("$ref"), str):
        return _inlined(schemas.get(name.rpartition("/")[2], {}), schemas, depth - 1)
    return {key: _inlined(each, schemas, depth - 1) for key, each in schema.items()}


class Session:
    """A rollout's session with a server."""

    def __init__(self, client: aiohttp.ClientSession, url: str, timeout_s: float) -> None:
        self._client, self._url, self._timeout_s = client, url, timeout_s
        self._cookies: dict[str, str] = {}

    async def tool(self, name: str, arguments: Mapping[str, Any]) -> tuple[bool, str]:
        """Whether a call failed, and what the server said: the model is told either."""
        status, text = await self._post(name, arguments)
        return status >= 400, text

    async def ask(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What an endpoint answers. Raises ResourcesFailed where it refuses."""
        status, text = await self._post(name, body)
        if status != 200:
            hint = ": is the task of this server's data set?" if status == 422 else ""
            said = " ".join(text.split())
            raise ResourcesFailed(f"{shown(self._url)}: {name} answers {status}: {said:.300}{hint}")
        found = msgspec.json.decode(text)
        if not isinstance(found, dict):
            raise ResourcesFailed(f"{shown(self._url)}: {name} answers no JSON object")
        return found

    async def _post(self, name: str, body: Mapping[str, Any]) -> tuple[int, str]:
        url, limit = f"{self._url}/{name}", aiohttp.ClientTimeout(self._timeout_s)
        try:
            async with self._client.post(url, json=body, cookies=self._cookies, timeout=limit) as answer:
                text = await answer.text()
        except TimeoutError as error:
            took = f"{name} took longer than {self._timeout_s:g} s (timeout_s)"
            raise ResourcesFailed(f"{shown(self._url)}: {took}") from error
        except aiohttp.ClientError as error:
            said = one_line(error)
            raise ResourcesFailed(f"{shown(self._url)} is gone in {name}: {said:.300}") from error
        self._cookies.update((cookie.key, cookie.value) for cookie in answer.cookies.values())
        return answer.status, text


def said_items(message: Message, at: int) -> list[dict[str, Any]]:
    """An assistant's message as items of a response; `at` makes their ids its own."""
    items: list[dict[str, Any]] = []
    if message.reasoning_content:
        summary = [{"type": "summary_text", "text": message.reasoning_content}]
        items.append({"type": "reasoning", "id": f"rs_{at}", "summary": summary})
    if message.text or not message.tool_calls:
        content = [{"type": "output_text", "text": message.text, "annotations": []}]
        said = {"type": "message", "id": f"msg_{at}", "role": "assistant", "status": "completed", "content": content}
        items.append(said)
    for number, call in enumerate(message.tool_calls):
        named = {"name": call.name, "arguments": call.function.arguments, "status": "completed"}
        items.append(
            {"type": "function_call", "id": f"fc_{at}_{number}", "call_id": call_id(call, at, number), **named}
        )
    return items


def call_id(call: Any, at: int, number: int) -> str:
    """What a call's result names it by."""
    return call.id or f"call_{at}_{number}"


def output_item(call: str, text: str) -> dict[str, Any]:
    """A tool's result."""
    return {"type": "function_call_output", "call_id": call, "output": text}


def response(items: Sequence[Mapping[str, Any]], params: Mapping[str, Any], *, cut: bool) -> dict[str, Any]:
    """What was said, as the package's models of responses read it."""
    return {
        "id": "resp_rollout",
        "object": "response",
        "created_at": 0,
        "model": params.get("model") or "rollout",
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": list(items),
        "parallel_tool_calls": params.get("parallel_tool_calls", True),
        "tool_choice": params.get("tool_choice") or "auto",
        "tools": params.get("tools") or [],
    }


def rows(path: str, chosen: Any) -> list[dict[str, Any]]:
    """Lines of a data set's file; `chosen` is told how many there are, and says which. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            places = [0]
            for line in file:
                places.append(places[-1] + len(line))
            found = []
            for index in chosen(len(places) - 1):
                file.seek(places[index])
                found.append(json.loads(file.readline()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"nemo-gym: data={path} cannot be read: {error}") from error
    return found
