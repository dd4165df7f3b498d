"""The socket that a proxy listens on, its address, and the server on it: uvicorn, inside a task of ours."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio

from rollout.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

#: Connections that wait to be taken.
_BACKLOG = 2048

#: Seconds for which an idle connection stays open: an agent's tools may run for long between two turns.
_KEEP_ALIVE_S = 600


def listen(host: str, port: int, further: int = 0, *, named: str = "proxy_host or proxy_port") -> socket.socket:
    """Listens on a port, 0 for any that is free; else on the first free one of it and the `further` next ones.

    Raises ConfigError, which tells to change what the two are `named`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for each in range(port, port + further + 1 if port else 1):
        try:
            return socket.create_server((host, min(each, 65535)), family=family, backlog=_BACKLOG)
        except (OSError, UnicodeError) as error:
            failed = error
    number = getattr(failed, "errno", None) or 0
    reason = os.strerror(number) if number > 0 else str(failed).rstrip(".")
    raise ConfigError(f"cannot listen on {host}:{port}: {reason}; give another {named}") from failed


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def base_url(listener: socket.socket, host: str, address: str | None) -> str:
    """Where programs find it: at the address that is advertised, else where it listens."""
    port = listener.getsockname()[1]
    if address is not None:
        url = address if "://" in address else f"http://{address}"
        url = url.rstrip("/")
        rest = url.partition("://")[2]
        has_port = rest.rpartition("]")[2].count(":") > 0 or "/" in rest
        return url if has_port or url.startswith("https://") else f"{url}:{port}"
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serves until it is cancelled."""
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to whoever has the event loop."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server: Any = Server(config)
    try:
        await server.serve(sockets=[listener])
    finally:
        server.force_exit = True
        with anyio.CancelScope(shield=True):
            if server.started:
                await server.shutdown(sockets=[listener])
        listener.close()
