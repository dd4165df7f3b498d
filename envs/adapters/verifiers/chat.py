"""A harness of verifiers in this process: the chat loop of its `null`, without a program to start for each rollout.

It asks the interception server as a program would, so that verifiers sees, limits and records every turn; tools are
those of the task's MCP servers. A context that is full ends it as it ends `null`: with what was said so far.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.compaction import CONTEXT_OVERFLOW_MARKERS, bound_tool_message
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp

__all__ = ["ChatHarness"]

#: How often a request is sent again that was told to come later, and how long after the first time, seconds.
_TRIES = 6
_AFTER_S = 0.5


class ChatConfig(vf.HarnessConfig):  # type: ignore[misc]  # the package is none of this environment's
    """It has no settings of its own."""


class ChatHarness(vf.Harness[ChatConfig]):  # type: ignore[misc]
    """Asks, makes the calls, and asks again, until an answer has no calls."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    SUPPORTS_TOOL_INTERCEPTION = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: Mapping[str, str],
        data: Any,
        tool_interception_url: str | None = None,
    ) -> Any:
        """See `Harness.launch`: from the task's prompt, or from the conversation so far."""
        system, prompt = self.resolve_prompt(data)
        messages: list[Any] = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or ()]
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                aiohttp.ClientSession(
                    headers={"Authorization": f"Bearer {secret}"}, timeout=aiohttp.ClientTimeout(total=None)
                )
            )
            tools = _Tools(http, tool_interception_url)
            await tools.open(stack, mcp_urls, self.config.tool_timeout)
            return await _talk(http, f"{endpoint}/chat/completions", ctx.model, messages, tools)


async def _talk(http: aiohttp.ClientSession, url: str, model: str, messages: list[Any], tools: _Tools) -> Any:
    """The loop; its end as that of a program."""
    while True:
        request = {"model": model, "messages": messages, **({"tools": tools.specs} if tools.specs else {})}
        status, text = await _asked(http, url, request)
        if status != 200:
            full = any(marker in text.casefold() for marker in CONTEXT_OVERFLOW_MARKERS)
            return vf.ProgramResult(0 if full else 1, "", text)
        message = json.loads(text)["choices"][0]["message"]
        messages.append(message)
        calls = message.get("tool_calls") or ()
        if not calls:
            return vf.ProgramResult(0, "", "")
        messages += [await tools.result(call) for call in calls]


async def _asked(http: aiohttp.ClientSession, url: str, request: Mapping[str, Any]) -> tuple[int, str]:
    """An answer's status and text. One that says to come later is asked for again."""
    for attempt in range(_TRIES):
        headers = {"x-stainless-retry-count": str(attempt)} if attempt else {}
        async with http.post(url, json=request, headers=headers) as answer:
            status, text = answer.status, await answer.text()
        if status != 429 or attempt == _TRIES - 1:
            break
        await asyncio.sleep(_AFTER_S * 2**attempt)
    return status, text


class _Tools:
    """The tools of one rollout, behind verifiers' own gate where the task has one."""

    def __init__(self, http: aiohttp.ClientSession, gate: str | None) -> None:
        self.specs: Sequence[Any] = ()
        self._http, self._gate = http, gate
        self._dispatch: Mapping[str, tuple[str, str]] = {}
        self._servers: Mapping[str, Any] = {}

    async def open(self, stack: AsyncExitStack, urls: Mapping[str, str], timeout_s: float) -> None:
        """Asks the servers what they have. What it opens is left with the stack."""
        if urls:
            servers = {name: {"url": url, "timeout": timeout_s} for name, url in urls.items()}
            self.specs, self._dispatch, self._servers = await connect_mcp({"mcpServers": servers}, stack)

    async def result(self, call: Mapping[str, Any]) -> Any:
        """The message that answers a call."""
        name, id, arguments = call["function"]["name"], call["id"], _arguments(call["function"].get("arguments"))
        if self._gate is not None and (denied := await self._denied(id, name, arguments)) is not None:
            return denied
        return bound_tool_message(
            {"role": "tool", "tool_call_id": id, "name": name, "content": await self._content(name, arguments)}
        )

    async def _content(self, name: str, arguments: Any) -> Any:
        if not isinstance(arguments, dict):
            return "error: the arguments of a tool are a JSON object; send the call again with one"
        if name not in self._dispatch:
            return f"error: unknown tool {name!r}"
        return await call_mcp(self._servers, self._dispatch, name, arguments)

    async def _denied(self, id: str, name: str, arguments: Any) -> Any:
        """What verifiers says in the place of a call's result; None where the call may be made."""
        request = {"tool_call_id": id, "name": name, "arguments": arguments}
        async with self._http.post(str(self._gate), json=request) as answer:
            answer.raise_for_status()
            decision = await answer.json()
        if decision["action"] == "stop":
            raise RuntimeError(decision["reason"])
        return bound_tool_message(decision["message"]) if decision["action"] == "deny" else None


def _arguments(text: Any) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return text
