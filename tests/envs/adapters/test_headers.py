"""Headers from variables: each goes to its own server, and no value is ever said."""

from __future__ import annotations

import pytest

from envs.adapters.headers import headers_of, without_password
from rollout.errors import ConfigError

ONE, TWO = "http://one:8000/mcp", "http://two:9000/mcp"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cret\n")
    monkeypatch.setenv("BROKEN", "s3cret\nX-Other: 1")
    monkeypatch.delenv("LACKING", raising=False)


def test_a_value_is_that_of_its_variables() -> None:
    """Text may stand around them; the line's end that a file of secrets leaves is no part of a value."""
    assert headers_of("mcp", "Authorization: Bearer $TOKEN", [ONE]) == {ONE: {"Authorization": "Bearer s3cret"}}
    assert headers_of("mcp", "X-A: ${TOKEN}-a | X-B: $TOKEN", [ONE]) == {ONE: {"X-A": "s3cret-a", "X-B": "s3cret"}}
    assert headers_of("mcp", "", [ONE, TWO]) == {ONE: {}, TWO: {}}


def test_a_header_goes_to_its_own_server() -> None:
    """Of several servers each is told only what names its address."""
    found = headers_of("mcp", f"{TWO} Authorization: Bearer $TOKEN", [ONE, TWO])
    assert found == {ONE: {}, TWO: {"Authorization": "Bearer s3cret"}}


@pytest.mark.parametrize(
    ("given", "addresses", "words"),
    [
        ("Authorization: Bearer abc", [ONE], "names no variable"),
        ("Authorization: Bearer $LACKING", [ONE], r"takes \$LACKING, which is not set"),
        ("Authorization: $BROKEN", [ONE], r"\$BROKEN has characters"),
        ("X: $TOKEN", [ONE, TWO], "there are several servers"),
        ("X: $TOKEN", [], "there is no server over HTTP"),
        ("http://three/mcp X: $TOKEN", [ONE], "none of the servers'"),
        ("Bearer $TOKEN", [ONE], "not of the form"),
    ],
)
def test_mistakes_are_one_line_without_a_value(given: str, addresses: list[str], words: str) -> None:
    """Each says what is wanted, by the names of headers and variables."""
    with pytest.raises(ConfigError, match=words) as raised:
        headers_of("mcp", given, addresses)
    assert "\n" not in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert "abc" not in str(raised.value)


@pytest.mark.parametrize("address", ["http://bob:S3CRET@one:8000/mcp", "https://S3CRET@one", "ws://a@S3CRET@one/x"])
def test_an_address_has_no_password(address: str) -> None:
    """It would be kept with the run, as every argument is. The error does not say it either."""
    with pytest.raises(ConfigError, match="has a user or a password in it") as refused:
        without_password("mcp", address)
    assert "S3CRET" not in str(refused.value)
    assert without_password("mcp", "http://one:8000/users/@me?to=a@b") == "http://one:8000/users/@me?to=a@b"
