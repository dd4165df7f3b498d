"""Where workers of other hosts connect to. Each is known by its one-time secret: see `rollout.workers.handshake`."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from rollout.errors import ConfigError
from rollout.log import get_logger
from rollout.workers.handshake import Refused, greet, prove
from rollout.workers.socket_channel import READ_AHEAD, SocketChannel

#: How long whoever connects may take to say who it is.
GREETING_S = 10.0

#: Connections at most that have not said yet who they are: further ones are closed at once.
MOST_STRANGERS = 64

#: After so many seconds without a word the system asks whether the other host is there still, so often, so many times.
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))

_log = get_logger(__name__)


class HostChannel(SocketChannel):
    """A channel to another host's worker, whose end others may wait for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.ended = asyncio.Event()
        """Set once nothing more comes."""

    async def receive(self) -> bytes | bytearray | None:
        """See `Channel`."""
        frame = await super().receive()
        if frame is None:
            self.ended.set()
        return frame


class Rendezvous:
    """Listens on one address of this host."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.port = 0
        self._server: asyncio.Server | None = None
        self._awaited: dict[int, tuple[bytes, asyncio.Future[HostChannel]]] = {}
        self._strangers = 0

    def __repr__(self) -> str:
        return f"<Rendezvous at {self.host}:{self.port}, {len(self._awaited)} awaited>"

    async def open(self, port: int) -> None:
        """0 takes a free one. Raises ConfigError where it cannot listen there."""
        try:
            self._server = await asyncio.start_server(self._come, self.host, port, limit=READ_AHEAD)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self.host}:{port} for workers of other hosts: {error.strerror or error}; "
                "ray_listen is an address of this host, as the others reach it"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    def await_worker(self, number: int, secret: bytes) -> asyncio.Future[HostChannel]:
        """The channel of a worker, once it has come. Who cancels the future awaits it no more."""
        future: asyncio.Future[HostChannel] = asyncio.get_running_loop().create_future()
        self._awaited[number] = secret, future
        future.add_done_callback(lambda _: self._awaited.pop(number, None))
        return future

    def close(self) -> None:
        """Nobody is awaited any more; channels stay."""
        if self._server is not None:
            self._server.close()
        for _, future in list(self._awaited.values()):
            future.cancel()

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._strangers >= MOST_STRANGERS:
            writer.transport.abort()
            return
        self._strangers += 1
        try:
            async with asyncio.timeout(GREETING_S):
                number = await greet(reader, writer, self._secret_of)
            _, future = self._awaited.pop(number, (b"", None))
            if future is None or future.done():  # it was given up meanwhile, or came twice
                raise Refused("it is not awaited any more")
            keep_alive(writer)
            future.set_result(HostChannel(reader, writer))
        except (Refused, OSError, EOFError) as error:  # TimeoutError is an OSError
            writer.transport.abort()
            peer = writer.get_extra_info("peername")
            _log.warning("connection_refused", peer=peer and peer[0], why=str(error) or "it did not say who it is")
        finally:
            self._strangers -= 1

    def _secret_of(self, number: int) -> bytes | None:
        awaited = self._awaited.get(number)
        return awaited[0] if awaited is not None else None


async def connect(host: str, port: int, number: int, secret: bytes) -> SocketChannel:
    """The worker's end. Raises Refused, OSError."""
    async with asyncio.timeout(GREETING_S):
        reader, writer = await asyncio.open_connection(host, port, limit=READ_AHEAD)
        try:
            await prove(reader, writer, number, secret)
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, EOFError):
                raise Refused("the engine hung up: it does not await this worker") from error
            raise
    keep_alive(writer)
    return SocketChannel(reader, writer)


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Has a connection end whose other host has gone without a word, where nothing is being sent."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        with contextlib.suppress(AttributeError, OSError):  # as far as this system has them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
