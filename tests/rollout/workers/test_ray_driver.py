"""What an address must be before Ray is asked to join it: Ray itself tries for minutes, and says little."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rollout.workers import ray_driver

#: How a gRPC server greets: a frame of settings, which here has none.
GREETING = b"\0\0\0\4\0\0\0\0\0"


@contextmanager
def listening(says: bytes | None) -> Iterator[str]:
    """The address of what says this to whoever connects, and hangs up; None is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):  # whoever asked has left
                if says is not None:
                    connection.sendall(says)
                    connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0\0\0", b"SSH-2.0-x\r\n", None])
def test_what_is_no_head_is_said(says: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another service at the port, such as the dashboard, and one that says nothing: within seconds, by its address."""
    monkeypatch.setattr(ray_driver, "_ANSWER_S", 0.2)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with listening(says) as address, pytest.raises(ConnectionError, match=f"what listens at {address} is no Ray head"):
        ray_driver._must_answer(address)


def test_what_may_be_a_head_is_asked_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """It greets as gRPC does; with TLS nothing is known of it before Ray has asked."""
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with listening(GREETING) as address:
        ray_driver._must_answer(address)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with listening(b"\x15\3\3\0\2\2\x46") as address:
        ray_driver._must_answer(address)


@pytest.mark.parametrize("address", ["local", "10.0.0.1", "10.0.0.1:", ":6379", "head:port", ""])
def test_what_is_no_address_is_said(address: str) -> None:
    """`local` is Ray's word for a new cluster, which nobody asked for."""
    with pytest.raises(ValueError, match="a cluster's address is HOST:PORT"):
        ray_driver._must_answer(address)


def test_nothing_there_is_said() -> None:
    """Also at a port that none can be."""
    for address in ("127.0.0.1:9", "127.0.0.1:99999"):
        with pytest.raises(ConnectionError, match=f"nothing answers at {address}"):
            ray_driver._must_answer(address)
