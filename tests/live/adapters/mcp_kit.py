"""Real MCP servers for tests, over stdio and HTTP, and an environment that has them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from envs.adapters.tools import Mcp
from rollout.chat.messages import Message
from rollout.registry import env_factory
from tests.live.adapters.live_server import free_port, serving

SERVER = Path(__file__).with_name("mcp_server.py")

JUDGES = """
def judge(task, messages):
    return float(str(task.get("answer")) in messages[-1].text)
"""


def calling(name: str, **arguments: Any) -> Message:
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    return Message.of({"role": "assistant", "content": "", "tool_calls": calls})


def stdio(mode: str = "stdio", prefix: str = "") -> str:
    return f"mcp:{sys.executable} {SERVER} {mode} {prefix}".strip()


@contextmanager
def http_server(key: str = "") -> Iterator[str]:
    """The address of a server that wants a key, where one is given."""
    port = free_port()
    command = [sys.executable, str(SERVER), "http", str(port)]
    with serving(command, port, {**os.environ, "KEY": key}):
        yield f"http://127.0.0.1:{port}/mcp"


@asynccontextmanager
async def opened(spec: str, common: Any = None, **given: str) -> AsyncIterator[Any]:
    """An environment with what it shares, which is closed whatever happens."""
    env: Any = env_factory(spec, {"judge": "judges.py:judge", **given})()
    async with nullcontext(common) if common is not None else Mcp.setup() as env.shared:
        try:
            yield env
        finally:
            await env.close()


async def first_tool(env: Any, message: Message) -> str:
    step = await env.step(message)
    return str(step.messages[0].text)
