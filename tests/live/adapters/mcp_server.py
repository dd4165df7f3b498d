"""A real MCP server for tests: its tools, over stdio or HTTP.

python mcp_server.py stdio|breaks|sleeps [PREFIX]    # standard input and output; each start is a line of `pids`
python mcp_server.py http PORT                       # wants the header `X-Key: $KEY`, where KEY is set
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from mcp.server import MCPServer

calls = 0


def add(a: int, b: int) -> int:
    """Add two numbers."""
    global calls
    calls += 1
    if a == 13:
        raise ValueError("unlucky")
    if a == 66:
        os._exit(3)
    return a + b + 1000 * (calls - 1)


async def hang() -> int:
    """Never answers, and lets nothing else be answered."""
    time.sleep(600)  # noqa: ASYNC251  # the whole server is to hang
    return 0


def pid() -> int:
    """The process."""
    return os.getpid()


def main(mode: str, more: str = "") -> None:
    server = MCPServer("sums")
    for tool in (add, pid, hang) if mode == "hangs" else (add, pid):
        server.add_tool(tool, name=f"{'' if mode == 'http' else more}{tool.__name__}")
    if mode == "http":
        import uvicorn

        from tests.live.adapters.with_key import only_with_key

        app: Any = server.streamable_http_app()
        if key := os.environ.get("KEY"):
            app = only_with_key(app, key)
        uvicorn.run(app, port=int(more), log_level="warning")
    elif mode == "breaks":
        sys.exit("no licence")
    elif mode == "sleeps":
        with open("pids", "a") as pids:
            print(os.getpid(), file=pids)
        time.sleep(600)
    else:
        with open("pids", "a") as pids:
            print(os.getpid(), file=pids)
        server.run("stdio")


if __name__ == "__main__":
    main(*sys.argv[1:])
