"""The socket, and the address that programs are told."""

from __future__ import annotations

import contextlib

import pytest

from rollout.errors import ConfigError
from rollout.proxy.listen import base_url, is_loopback, listen


@pytest.mark.parametrize(
    ("host", "address", "told"),
    [
        ("127.0.0.1", None, "http://127.0.0.1:PORT"),
        ("::1", None, "http://[::1]:PORT"),
        ("127.0.0.1", "gw", "http://gw:PORT"),
        ("127.0.0.1", "gw:9000", "http://gw:9000"),
        ("127.0.0.1", "[fe80::1]", "http://[fe80::1]:PORT"),
        ("127.0.0.1", "[fe80::1]:9", "http://[fe80::1]:9"),
        ("127.0.0.1", "http://gw", "http://gw:PORT"),
        ("127.0.0.1", "https://gw/", "https://gw"),
        ("127.0.0.1", "http://gw/rollouts", "http://gw/rollouts"),
    ],
)
def test_programs_are_told_an_address_with_a_port(host: str, address: str | None, told: str) -> None:
    """Where it listens, or what is advertised; a gateway's own port and path stay as they are."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert base_url(listener, host, address) == told.replace("PORT", str(port))


def test_a_host_that_is_none_is_said() -> None:
    """By the settings that name it."""
    with pytest.raises(ConfigError, match=r"cannot listen on no such host:0: .* proxy_host"):
        listen("no such host", 0)


def test_loopback_is_told_from_the_network() -> None:
    """By the address, or the one name that it has everywhere."""
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.7", "gw", "")))
