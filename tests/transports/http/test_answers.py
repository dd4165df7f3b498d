"""What an answer means that is no success: one short line, and a wait that is a number."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, formatdate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import MalformedReply, RequestRefused, ServerBusy
from transports.http.answers import RETRY_AFTER_MAX_S, error_of, hidden_status, retry_after_s, server_message
from transports.http.client import Answer, decode


def seconds(value: str) -> float:
    return retry_after_s({"retry-after": value})


def test_retry_after_in_every_form() -> None:
    """Seconds, milliseconds, or a date with a zone or without; anything else is no wait."""
    assert seconds("2.5") == 2.5
    assert retry_after_s({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after_s({"retry-after-ms": "soon", "retry-after": "9"}) == 9
    assert 50 < seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=60))) <= 60
    assert 50 < seconds(formatdate(time.time() + 60)) <= 60  # "-0000": a date without a zone
    assert 50 < seconds(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert seconds("soon") == seconds("-3") == seconds("nan") == seconds("") == retry_after_s({}) == 0
    assert seconds(formatdate(time.time() - 60)) == 0
    assert seconds("1e300") == seconds("inf") == seconds("Fri, 31 Dec 9999 23:59:59 GMT") == RETRY_AFTER_MAX_S


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [+-]?\d*[A-Z]*", fullmatch=True))
def test_any_header_is_a_wait(value: str) -> None:
    """A server's header never raises, and never waits for ever."""
    assert 0 <= seconds(value) <= RETRY_AFTER_MAX_S
    assert 0 <= retry_after_s({"retry-after-ms": value}) <= RETRY_AFTER_MAX_S


def test_long_or_odd_bodies_give_one_short_line() -> None:
    """An error page of HTML or of megabytes is shortened to a line."""
    message = str(error_of(500, b"<html>\n" + b"x" * 10_000_000 + b"\xff", "/v1/x"))
    assert len(message) < 500
    assert "\n" not in message


def test_a_gateways_page_is_said_by_its_title() -> None:
    """HTML in an error, and where JSON belongs."""
    page = b"<!DOCTYPE html>\n<html><head><title>502 Bad\n Gateway</title></head><body><h1>nginx</h1></body></html>"
    assert (
        str(error_of(502, page, "/x"))
        == "/x: 502: a web page (502 Bad Gateway), as a gateway or another program sends it"
    )
    with pytest.raises(MalformedReply, match=r"cannot be read: a web page \(502 Bad Gateway\)"):
        decode(msgspec.json.Decoder(dict), Answer(200, page, 0.0), "/x")


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 100_000, b"nul"])
def test_what_is_no_json_is_a_malformed_reply(body: bytes) -> None:
    """Whatever the bytes are, nothing else is raised."""
    with pytest.raises(MalformedReply, match="/x: the answer cannot be read"):
        decode(msgspec.json.Decoder(dict), Answer(200, body, 0.0), "/x")


@given(
    st.binary()
    | st.recursive(
        st.none() | st.text(),
        lambda inner: st.dictionaries(st.sampled_from(["error", "message", "detail", "code"]), inner),
    ).map(msgspec.json.encode)
)
def test_any_body_has_a_line(body: bytes) -> None:
    """No server's words raise."""
    assert "\n" not in server_message(body)
    assert hidden_status(body) is None or isinstance(hidden_status(body), int)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"text": "error", "output_ids": [5]}', None),
        (b'{"prompt": "error"}', None),
        (b'{"error": null, "output_ids": [5]}', None),
        (b'{"error": "busy"}', 500),
        (b'{"error": {"message": "no", "code": 400}}', 400),
        (b'{"object": "error", "message": "no", "code": 404}', 404),
    ],
)
def test_an_error_that_came_as_a_success_is_known(body: bytes, status: int | None) -> None:
    """And an answer whose text is this word is none: a model may sample it."""
    assert hidden_status(body) == status


def test_nested_errors_are_no_end() -> None:
    """A body of a hundred thousand brackets."""
    assert len(server_message(b'{"error":' * 100_000)) <= 400
    assert hidden_status(b'{"error":' * 100_000) is None


def test_a_redirect_names_where_to() -> None:
    """It is a refusal, not to be tried again."""
    error = error_of(301, b"", "/v1/models", {"location": "https://b/v1/models"})
    assert type(error) is RequestRefused
    assert "it redirects to https://b/v1/models" in str(error)
    assert type(error_of(503, b"", "/x")) is ServerBusy
