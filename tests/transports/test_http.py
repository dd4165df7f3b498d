"""One client: what may pass is tried again, what may not is said, and a cancelled call closes its request."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anyio
import httpx
import pytest

from rollout.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    ModelNotFound,
    PromptTooLong,
    RequestRefused,
    RequestTimeout,
    ServerBusy,
    TransportError,
)
from tests.live.servers import free_port
from transports.http import HttpClient, error_of, normalize_url, retry_after_s

Handler = Callable[[httpx.Request], httpx.Response]


def client(*answers: Any, **options: Any) -> tuple[HttpClient, list[float], list[httpx.Request]]:
    """A client whose server gives these answers in turn: a status, a response, or an exception."""
    waits: list[float] = []
    seen: list[httpx.Request] = []
    left = list(answers)

    async def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(answer, json={"ok": True})

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    transport = httpx.MockTransport(handle)
    made = HttpClient("http://x", transport=transport, sleep=sleep, chance=random.Random(0), **options)
    return made, waits, seen


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    """These statuses are retried, with growing waits, and counted by cause."""
    made, waits, seen = client(status, status, 200)
    answer = await made.post("/v1/x", {"a": 1})
    assert answer.status == 200
    assert len(seen) == 3
    assert len(waits) == 2
    assert made.retries == {str(status): 2}


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ConnectTimeout("slow")]
)
async def test_broken_connections_are_tried_again(error: Exception) -> None:
    """A connection that fails is opened again."""
    made, waits, _ = client(error, 200)
    assert (await made.post("/v1/x", {})).status == 200
    assert len(waits) == 1


async def test_retries_end() -> None:
    """After the last attempt the fault is raised, with the server's words and the cause."""
    made, _, seen = client(*[httpx.Response(503, json={"error": {"message": "no room"}})] * 3, retries=2)
    with pytest.raises(ServerBusy, match="503: no room"):
        await made.post("/v1/x", {})
    assert len(seen) == 3
    made, _, _ = client(httpx.ConnectError("refused"), retries=0)
    with pytest.raises(ConnectionFailed, match="refused") as caught:
        await made.post("/v1/x", {})
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


async def test_waits_have_jitter_under_a_growing_ceiling() -> None:
    """Each wait is between nothing and a ceiling that doubles."""
    made, waits, _ = client(*[500] * 5, 200, retries=9)
    await made.post("/v1/x", {})
    assert all(0 <= wait <= 0.5 * 2**attempt for attempt, wait in enumerate(waits))
    assert len(set(waits)) == len(waits)


async def test_retry_after_is_honoured() -> None:
    """The server's own wait is the least that is waited."""
    made, waits, _ = client(httpx.Response(429, headers={"retry-after": "7"}), 200)
    await made.post("/v1/x", {})
    assert waits[0] >= 7


async def test_a_wait_beyond_the_deadline_is_not_waited() -> None:
    """Where the server asks for more time than there is, the fault is raised at once."""
    made, waits, _ = client(httpx.Response(429, headers={"retry-after": "700"}), 200, timeout_s=60)
    with pytest.raises(ServerBusy):
        await made.post("/v1/x", {})
    assert waits == []


def test_retry_after_has_two_forms() -> None:
    """A number of seconds, or a date; anything else is no wait."""
    assert retry_after_s("2.5") == 2.5
    assert 50 < retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=60))) <= 60
    assert retry_after_s("soon") == retry_after_s(None) == retry_after_s("-3") == 0


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "bad top_p"}}, RequestRefused),
        (401, {"error": "Unauthorized"}, AuthenticationFailed),
        (403, {}, AuthenticationFailed),
        (404, {"error": {"message": "The model `x` does not exist."}}, ModelNotFound),
        (404, {"detail": "Not Found"}, RequestRefused),
        (400, {"message": "This model's maximum context length is 4096 tokens."}, PromptTooLong),
        (400, {"error": {"message": "prompt is longer than the maximum model length of 4096"}}, PromptTooLong),
        (422, {"detail": [{"loc": ["body", "x"]}]}, RequestRefused),
    ],
)
async def test_a_refusal_is_not_tried_again(status: int, body: Any, kind: type[TransportError]) -> None:
    """Each refusal has its kind and keeps the server's words."""
    made, waits, _ = client(httpx.Response(status, json=body))
    with pytest.raises(kind) as caught:
        await made.post("/v1/x", {})
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert waits == []


def test_long_or_odd_bodies_give_one_short_line() -> None:
    """An error page of HTML or of megabytes is shortened to a line."""
    message = str(error_of(500, b"<html>\n" + b"x" * 10_000_000 + b"\xff", "/v1/x"))
    assert len(message) < 500
    assert "\n" not in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"headers": {"x-team": "a\nb"}}, "header 'x-team' has a value"),
        ({"headers": {"x-team": "naïve"}}, "header 'x-team' has a value"),
        ({"headers": {"x-team": 5}}, "header 'x-team' has a value"),
        ({"headers": {"x team": "a"}}, "header 'x team' has no name"),
        ({"headers": {"": "a"}}, "header '' has no name"),
        ({"api_key": "secret\n"}, "the API key holds a line break"),
    ],
)
def test_a_header_that_cannot_be_sent_is_named_at_the_start(options: dict[str, Any], said: str) -> None:
    """A caller's header that no request could carry is a setting that cannot be used, and no secret is shown."""
    with pytest.raises(ConfigError, match=said) as refused:
        client(**options)
    assert "secret" not in str(refused.value)


async def test_the_key_goes_into_one_header_only() -> None:
    """The key is sent, and is in no repr and no error."""
    made, _, seen = client(401, api_key="sk-secret")
    with pytest.raises(AuthenticationFailed) as caught:
        await made.post("/v1/x", {})
    assert seen[0].headers["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in repr(made) + str(caught.value) + repr(caught.value.__dict__)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "h:1"])
def test_addresses_are_taken_as_people_give_them(url: str) -> None:
    """With or without scheme, slash or /v1."""
    assert normalize_url(url) == "http://h:1"


async def test_a_deadline_is_over_the_whole_request() -> None:
    """A server that never answers is given up, over a real connection."""

    async def silent(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, silent)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        made = HttpClient(f"http://127.0.0.1:{port}", timeout_s=0.2)
        with pytest.raises(RequestTimeout, match=r"0\.2 s"):
            await made.post("/v1/x", {})
        await made.aclose()
        group.cancel_scope.cancel()


async def test_cancelling_closes_the_request() -> None:
    """The server sees the connection end when the caller is cancelled."""
    arrived, gone = anyio.Event(), anyio.Event()

    async def watching(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            arrived.set()
            try:
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                gone.set()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, watching)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        made = HttpClient(f"http://127.0.0.1:{port}")
        async with anyio.create_task_group() as calls:
            calls.start_soon(made.post, "/v1/x", {})
            await arrived.wait()
            calls.cancel_scope.cancel()
        with anyio.fail_after(10):
            await gone.wait()
        await made.aclose()
        group.cancel_scope.cancel()


async def test_nobody_there_is_a_failed_connection() -> None:
    """A closed port is named with the address."""
    url = f"http://127.0.0.1:{free_port()}"
    made = HttpClient(url, retries=0)
    with pytest.raises(ConnectionFailed, match=url):
        await made.get("/v1/models")
    await made.aclose()
