"""Addresses are taken as people give them, refused in one line, and shown without what is secret in them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.address import basic_auth, is_loopback, server_url, shown_url
from rollout.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://h:1", "http://h:1"),
        ("http://h:1/", "http://h:1"),
        ("http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        (" h:1 ", "http://h:1"),
        ("h", "http://h"),
        ("localhost:8000/v1/chat/completions", "http://localhost:8000"),
        ("https://gateway.example/team/v1", "https://gateway.example/team"),
        ("HTTP://H:1", "http://h:1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://user:pa%40ss@h:1/v1", "http://h:1"),
        ("my_server:8000", "http://my_server:8000"),
    ],
)
def test_addresses_are_taken_as_people_give_them(given: str, root: str) -> None:
    """With or without scheme, slash, /v1 or a route."""
    assert server_url(given) == root


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("http://127.0.0.1:99999", "port is a number from 1 to 65535"),
        ("http://127.0.0.1:abc", "port is a number"),
        ("http://127.0.0.1:-1", "port is a number"),
        ("http://127.0.0.1:0", "port is a number"),
        ("http://[::1", "IPv6"),
        ("http://::1:8000", "port|host"),
        ("http://", "names no host|must begin"),
        ("", "names no host|must begin"),
        ("http://:8000", "names no host"),
        ("ftp://h:1", "must begin with http://"),
        ("http:/h:1", "must begin with http://"),
        ("http:h", "must begin with http://"),
        ("http://a b:1", "no host name|space"),
        ("http://a..b:1", "no host name"),
        ("http://h:1/v1?key=secret", "query"),
        ("http://h:1#secret", "query"),
        ("http://user:secret@h:99999", "port"),
        ("http://user:secret@h:1?q", "query"),
        ("http://user:secret@:1", "host"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(given: str, said: str) -> None:
    """The line names the address and what is wrong, and shows no secret."""
    with pytest.raises(ConfigError, match=said) as caught:
        server_url(given)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_goes_into_the_header_alone() -> None:
    """It may be written with percent signs, and is shown nowhere."""
    header = basic_auth("http://me:p%40ss%2Fword@h:1")
    assert header == "Basic " + base64.b64encode(b"me:p@ss/word").decode()
    assert basic_auth("h:1") is None
    assert shown_url("http://me:p%40ss@h:1/v1") == "http://h:1/v1"
    assert shown_url("me:pass@h:1") == "h:1"
    assert shown_url("http://me:pa/ss@h:1") == "http://h:1"
    assert shown_url("http://h:1?key=abc#x") == "http://h:1"


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Nothing else is raised, and what is taken is taken again as it is."""
    shown_url(text)
    try:
        root = server_url(text)
    except ConfigError:
        return
    assert server_url(root) == root
    assert basic_auth(root) is None


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789/?#@:%.", min_size=1))
def test_a_password_is_never_shown(rest: str) -> None:
    """Whatever is in it: written as it should be, or not."""
    assert "SECRET" not in shown_url(f"http://me:SECRET{rest}@h:1")
    with pytest.raises(ConfigError) as caught:
        server_url(f"http://me:SECRET{rest}@h:99999")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "is_it"),
    [
        ("http://127.0.0.1:8000", True),
        ("localhost:8000/v1", True),
        ("http://[::1]:8000", True),
        ("http://0.0.0.0:8000", True),
        ("http://10.0.0.7:8000", False),
        ("http://gpu-127.0.0.1.example:8000", False),
    ],
)
def test_this_machine_alone_is_told_from_others(url: str, is_it: bool) -> None:
    """What a worker of another host could not reach by the same address."""
    assert is_loopback(url) is is_it
