"""`--metrics-port`: a command's numbers where Prometheus finds them, while it plays."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.to_thread

from rollout.errors import ConfigError, not_installed
from rollout.observe.stats import Stats

#: What is listened on where nothing else is said.
LOOPBACK = "127.0.0.1"


@contextlib.asynccontextmanager
async def serving_metrics(
    stats: Callable[[], Stats], port: int | None, host: str, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Serves what `stats` gives, which is read on this loop; without a port nothing.

    Raises ConfigError where it cannot: the package is missing, the port is taken or is none.
    """
    if port is None:
        if host != LOOPBACK:
            raise ConfigError(f"--metrics-host {host} has no effect without --metrics-port: give a port, too")
        yield
        return
    if not 0 <= port <= 65535:
        raise ConfigError(f"--metrics-port is a number from 0 (any that is free) to 65535, not {port}")
    if not host:
        raise ConfigError("--metrics-host is empty: 127.0.0.1 is this machine, 0.0.0.0 whoever reaches it")
    try:
        from rollout.observe.prometheus import StatsCollector, serve
    except ImportError as error:
        raise not_installed("--metrics-port", error.name, "metrics") from error
    server = contextlib.ExitStack()
    # In threads: a host's name may have to be looked up, and the server takes half a second to end.
    url = await anyio.to_thread.run_sync(server.enter_context, serve(StatsCollector(stats), port=port, host=host))
    try:
        say(f"metrics: {url}")
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(server.close)
