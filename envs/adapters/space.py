"""A server of OpenEnv: what it says of itself, and a session with it by the package's own client."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import msgspec

from envs.adapters.common import one_line, package
from envs.adapters.headers import shown
from rollout.errors import ConfigError

#: How the package's client says what a server answered.
_SAID = re.compile(r"Server error: (.*) \(code: (\w+)\)", re.DOTALL)

#: A frame of the server's at most, MiB: pictures are in observations.
_FRAME_MIB = 100.0


class SpaceFailed(Exception):
    """A server that cannot be reached, is gone, or failed in a call: never a reward of 0."""


class SpaceFull(Exception):
    """A server that has no session free."""


class Wrong(Exception):
    """An action that the server refuses, for the model to be told."""


class Described(msgspec.Struct, frozen=True):
    """What a server says of itself."""

    action: Mapping[str, Any]
    """The JSON schema of its actions."""
    checker: Any
    """Checks an action against it."""

    @property
    def has_tools(self) -> bool:
        """Whether its actions are calls of tools, as those of the package's MCP environments are."""
        fields = self.action.get("properties", {})
        return "tool_name" in fields or (self.action.get("title") == "Action" and not fields.keys() - {"metadata"})


def described(url: str, headers: Mapping[str, str], timeout_s: float) -> Described:
    """What a server says of itself. Blocks. Raises ConfigError for an address that is none."""
    answer, said = _get(url, "/schema", headers, timeout_s)
    if not isinstance(said, dict) or not isinstance(said.get("action"), dict):
        more = ": does it want a header (headers)?" if answer.status_code in (401, 403) else ""
        raise ConfigError(
            f"openenv: {shown(url)} is no OpenEnv server: its /schema answers {answer.status_code}, without a schema "
            f"of actions{more}"
        )
    checker = package("openenv", "jsonschema", "openenv").Draft202012Validator(said["action"])
    return Described(said["action"], checker)


def listed(url: str, headers: Mapping[str, str], timeout_s: float, split: str) -> int | None:
    """How many tasks a server lists of a split; None where it lists none at all. Blocks. Raises ConfigError."""
    names = _get(url, "/list_environments", headers, timeout_s)[1]
    for name in names if isinstance(names, list) else []:
        splits = _get(url, f"/{name}/splits", headers, timeout_s)[1]
        if not isinstance(splits, list):
            continue
        known = [each["name"] for each in splits]
        if split not in known:
            raise ConfigError(f"openenv: {shown(url)} has no split {split!r}: -a split= one of {', '.join(known)}")
        count: int = _get(url, f"/{name}/num_tasks", headers, timeout_s, {"split": split})[1]["num_tasks"]
        return count
    return None


def _get(url: str, path: str, headers: Mapping[str, str], timeout_s: float, body: Any = None) -> tuple[Any, Any]:
    """An answer, and its JSON where it succeeded and has any. Raises ConfigError where nobody answers."""
    whole = re.sub(r"^ws", "http", url.rstrip("/")) + path
    try:
        method = "GET" if body is None else "POST"
        answer = httpx.request(method, whole, json=body, headers=dict(headers), timeout=timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = one_line(error)
        raise ConfigError(f"openenv: no server at {shown(url)}: {why:.200}: start it, or name another") from error
    try:
        return answer, answer.json() if answer.status_code == 200 else None
    except ValueError:
        return answer, None


@functools.cache
def _client_class() -> Any:
    """The package's client, that does not open a second session in place of one that was lost."""
    core = package("openenv", "openenv.core", "openenv")

    class Client(core.GenericEnvClient):  # type: ignore[misc, name-defined]  # the package is imported when it is needed
        connected = False

        async def _connect_async(self) -> Any:
            before = self._ws
            if self.connected and (before is None or before.state.name != "OPEN"):
                raise ConnectionError("the session's connection was lost, and its episode with it")
            await super()._connect_async()
            self.connected = True
            return self

    return Client


def opened(url: str, headers: Mapping[str, str], timeout_s: float) -> Session:
    """A session that connects with its first call."""
    return Session(
        _client_class()(
            base_url=url,
            connect_timeout_s=timeout_s,
            message_timeout_s=timeout_s,
            max_message_size_mb=_FRAME_MIB,
            mode="simulation",
            headers=dict(headers) or None,
        ),
        shown(url),
        timeout_s,
    )


class Session:
    """A session with a server, which has an environment of its own there."""

    def __init__(self, client: Any, server: str, timeout_s: float) -> None:
        self._client, self._server, self._timeout_s = client, server, timeout_s

    async def tools(self) -> list[dict[str, Any]]:
        """Its tools, as chat templates take them. The package lists them before a reset, which undoes the step."""
        result = await self._asked("list_tools", lambda: self._client.step({"type": "list_tools"}))
        found = result.observation.get("tools", [])
        if not found:
            why = (result.observation.get("metadata") or {}).get("error", "it has none")
            raise SpaceFailed(f"{self._server} lists no tools: {why}")
        return [_tool_spec(each) for each in found]

    async def begin(self, task: Mapping[str, Any]) -> Any:
        """Opens an episode. Raises SpaceFull where the server has no session free."""
        return await self._asked("reset", lambda: self._client.reset(**task))

    async def act(self, action: Any) -> Any:
        """One step. Raises Wrong for what is no action there."""
        return await self._asked("step", lambda: self._client.step(action))

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """One step that calls a tool."""
        return await self.act({"type": "call_tool", "tool_name": name, "arguments": arguments})

    async def _asked(self, what: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await ask()
        except TimeoutError as error:
            raise SpaceFailed(f"{self._server}: {what} took longer than {self._timeout_s:g} s (timeout_s)") from error
        except RuntimeError as error:
            raise self._meaning(what, str(error)) from error
        except Exception as error:  # whatever the connection says
            said = one_line(error)
            raise SpaceFailed(f"{self._server} is gone in {what}: {said:.300}") from error

    def _meaning(self, what: str, said: str) -> Exception:
        match = _SAID.fullmatch(said)
        text, code = match.groups() if match else (said, "")
        if code == "CAPACITY_REACHED":
            return SpaceFull(text)
        if code == "VALIDATION_ERROR":
            return Wrong("The environment does not take this action.")
        return SpaceFailed(f"{self._server}: {what} failed there ({code.lower()}): {' '.join(text.split()):.300}")

    async def close(self) -> None:
        """Ends it, on the server too."""
        await self._client.close()


def _tool_spec(found: Mapping[str, Any]) -> dict[str, Any]:
    schema = found.get("input_schema") or found.get("inputSchema") or {"type": "object", "properties": {}}
    spec = {"name": found["name"], "description": found.get("description") or "", "parameters": schema}
    return {"type": "function", "function": json.loads(json.dumps(spec))}
