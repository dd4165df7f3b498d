"""A real server as the conformance suite takes its subjects."""

from __future__ import annotations

from typing import Any

from rollout.transport import Transport, TransportConfig
from tests.live.servers import Server, free_port
from tests.transports.contract import Subject
from transports import auto


class Live(Subject):
    """A server that several tests share: it is left as it was found."""

    def __init__(self, server: Server, **config: Any) -> None:
        self.url = server.url
        self._config = config

    async def open(self, **config: Any) -> Transport:
        return await auto.open(TransportConfig(base_url=self.url, **self._config, **config))

    async def open_nowhere(self) -> Transport:
        return await auto.open(TransportConfig(base_url=f"http://127.0.0.1:{free_port()}"))
