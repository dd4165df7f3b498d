"""One client: what may pass is tried again, what may not is said, and a cancelled call closes its request."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpx
import pytest

from rollout.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    ModelNotFound,
    NotSent,
    PromptTooLong,
    RequestRefused,
    RequestTimeout,
    ServerBusy,
    TransportError,
)
from tests.live.servers import free_port
from transports.http.client import ASK_S, HttpClient

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
    made, waits, _ = client(httpx.Response(429, headers={"retry-after": "700"}), 200, timeout_s=90)
    with pytest.raises(ServerBusy):
        await made.post("/v1/x", {})
    assert waits == []


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
        with anyio.fail_after(60):
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


def redirect(location: str) -> httpx.Response:
    return httpx.Response(308, headers={"location": location})


async def test_a_redirect_is_not_followed_but_named() -> None:
    """A key would be sent elsewhere; a secret in the location is not shown."""
    made, waits, _ = client(redirect("https://me:secret@elsewhere.example/v1?key=secret"))
    with pytest.raises(RequestRefused, match=r"308: it redirects to https://elsewhere\.example/v1, which") as caught:
        await made.post("/v1/x", {})
    assert "secret" not in str(caught.value)
    assert waits == []


async def test_a_password_in_the_address_is_sent_and_shown_nowhere() -> None:
    """It goes into the same header as a key, of which there can be one."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=request.headers["authorization"]))
    made = HttpClient("http://me:secret@x/v1", transport=transport)
    assert (await made.post("/v1/x", {})).body == b'"Basic bWU6c2VjcmV0"'
    assert made.base_url == "http://x"
    assert "secret" not in repr(made)
    with pytest.raises(ConfigError, match="http://x: the address has a password and there is an API key") as caught:
        HttpClient("http://me:secret@x", api_key="sk-key")
    assert "secret" not in str(caught.value) + repr(caught.value.__dict__)


async def test_without_a_deadline_retries_end_by_their_number() -> None:
    """Whoever asks has a deadline of its own."""
    made, waits, seen = client(*[503] * 3, retries=2, timeout_s=None)
    with pytest.raises(ServerBusy):
        await made.post("/v1/x", {})
    assert (len(seen), len(waits)) == (3, 2)


async def test_a_closed_client_says_so() -> None:
    """It opens no connection again, by whatever it is asked."""
    made, _, seen = client(200)
    await made.aclose()
    await made.aclose()
    for ask in (made.post("/x", {}), made.get("/x"), made.tell("/x", {}, timeout_s=1)):
        with pytest.raises(ConnectionFailed, match="closed"):
            await ask
    assert seen == []


async def test_closing_ends_what_waits_for_its_next_attempt() -> None:
    """Nobody goes on trying over connections that are gone."""
    tried = 0

    async def sleep(seconds: float) -> None:
        await made.aclose()

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal tried
        tried += 1
        return httpx.Response(503)

    made = HttpClient("http://x", transport=httpx.MockTransport(handle), sleep=sleep)
    with pytest.raises(ConnectionFailed, match="closed"):
        await made.post("/x", {})
    assert tried == 1


@asynccontextmanager
async def busy_server() -> AsyncIterator[tuple[str, list[str]]]:
    """Its address and the paths that were asked for; what is posted to /v1/x is never answered."""
    seen: list[str] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    path = (await stream.receive()).split()[1].decode()
                    seen.append(path)
                    if path == "/v1/x":
                        await anyio.sleep_forever()
                    await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}", seen
        group.cancel_scope.cancel()


async def test_full_connections_do_not_keep_the_server_from_being_heard() -> None:
    """However many prompts fill the pool, what concerns the server itself is answered at once."""
    async with busy_server() as (url, seen):
        made = HttpClient(url, max_connections=2)
        async with anyio.create_task_group() as prompts:
            for _ in range(4):
                prompts.start_soon(made.post, "/v1/x", {})
            while seen.count("/v1/x") < 2:
                await anyio.lowlevel.checkpoint()
            with anyio.fail_after(60):
                for _ in range(3):
                    await made.get("/health")
                    await made.tell("/pause", {}, timeout_s=60)
            assert seen.count("/v1/x") == 2
            prompts.cancel_scope.cancel()
        await made.aclose()


async def test_a_question_has_a_deadline_of_its_own() -> None:
    """A silent server is found out within seconds, whatever a prompt may take."""
    assert ASK_S <= 10
    async with busy_server() as (url, _):
        made = HttpClient(url, timeout_s=None)
        with pytest.raises(RequestTimeout, match=r"no answer within 0\.1 s"):
            await made.get("/v1/x", timeout_s=0.1)
        await made.aclose()


async def test_a_question_that_could_not_be_sent_says_so() -> None:
    """A name that is not found here says nothing of the server."""
    made = HttpClient("http://nowhere.invalid")
    with pytest.raises(NotSent):
        await made.get("/health")
    await made.aclose()
