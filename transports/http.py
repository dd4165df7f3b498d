"""One HTTP client for every dialect: deadlines, retries, and what an answer means. `pool` carries the bytes.

Bodies are bytes that msgspec made; answers are bytes that msgspec reads. Everything that can go wrong becomes a
`TransportError` here, with its cause, and nowhere else.

Proxies and cookies from the environment are not used: a model server is reached directly, and keeps no state
in cookies. The API key goes into one header and nowhere else.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx
import msgspec
import structlog

from rollout.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    MalformedReply,
    ModelNotFound,
    PromptTooLong,
    RequestRefused,
    RequestTimeout,
    ServerBusy,
    TransportError,
)
from rollout.transport import Traffic
from transports.pool import AiohttpPool, HttpxPool, Pool, Unreachable

#: Answers that may differ next time. Other 4xx would be the same again.
RETRY_STATUSES = frozenset({408, 409, 425, 429})
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0

#: How vLLM says that a prompt does not fit (seen on 0.31 and 0.32, completions and chat).
_TOO_LONG = ("maximum model length", "maximum context length", "longer than the maximum", "context length of")

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

#: What msgspec raises for bytes that are no JSON. Two of them are Python's own: no UTF-8, and lists within lists.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_log = structlog.get_logger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """What came back, whole."""

    status: int
    body: bytes
    elapsed_s: float
    """The last attempt's time and all waits before it."""


class HttpClient:
    """Sends bodies to one server. Shared by all rollouts; one connection pool."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        connect_timeout_s: float = 10.0,
        retries: int = 4,
        max_connections: int = 4096,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        """`transport` takes the connections' place (a server in process); `sleep` and `chance` are the backoff's."""
        self.base_url = normalize_url(base_url)
        self.retries: Counter[str] = Counter()
        """Retries by cause: a status, or an exception's name."""
        self.traffic = Traffic()
        self._timeout_s = timeout_s
        self._attempts = retries + 1
        self._sleep = sleep
        self._chance = chance or random.Random()
        self._limits = max_connections, connect_timeout_s
        self._headers = {"content-type": "application/json", **checked_headers(headers or {})}
        if api_key:
            if not _is_sendable(api_key):
                raise ConfigError("the API key holds a line break or characters that no header takes: give it anew")
            self._headers["authorization"] = f"Bearer {api_key}"
        self._given = transport
        self._pool: Pool | None = None

    def __repr__(self) -> str:
        return f"<HttpClient {self.base_url} {sum(self.retries.values())} retries>"

    async def get(self, path: str, *, retries: int | None = None) -> Answer:
        """GET. Raises TransportError for every status of 400 and above."""
        return await self._with_retries("GET", path, None, {}, retries)

    async def post(
        self, path: str, body: Any, *, headers: Mapping[str, str] | None = None, retries: int | None = None
    ) -> Answer:
        """POST of a JSON body. Raises TransportError for every status of 400 and above."""
        return await self._with_retries("POST", path, msgspec.json.encode(body), headers or {}, retries)

    async def aclose(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.aclose()

    async def _with_retries(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str], retries: int | None
    ) -> Answer:
        attempts = self._attempts if retries is None else retries + 1
        started = time.perf_counter()
        deadline = started + self._timeout_s
        attempt = 0
        while True:
            attempt += 1
            try:
                left_s = max(1e-3, deadline - time.perf_counter())
                status, body, retry_after = await self._once(method, path, content, headers, left_s)
                fault = None if status < 400 else error_of(status, body, path)
            except TimeoutError as error:
                raise RequestTimeout(f"{self.base_url}{path}: no answer within {self._timeout_s:g} s") from error
            except Unreachable as error:
                cause = error.__cause__ or error
                retry_after, fault = None, ConnectionFailed(f"{self.base_url}{path}: {_reason(cause)}")
                fault.__cause__ = cause
            if fault is None:
                return Answer(status, body, time.perf_counter() - started)
            wait = self._wait_s(attempt, retry_after)
            if not fault.retryable or attempt >= attempts or time.perf_counter() + wait >= deadline:
                raise fault
            self._note_retry(fault, path, wait)
            await self._sleep(wait)

    async def _once(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, bytes, str | None]:
        pool = self._pool or self._open()
        self.traffic.sent += len(content or b"")
        status, body, retry_after = await pool.send(method, self.base_url + path, content, headers, timeout_s)
        self.traffic.received += len(body)
        return hidden_status(body) or status if status < 400 else status, body, retry_after

    def _open(self) -> Pool:
        # Opened at first use: connections belong to the event loop that runs then.
        if self._given is not None:
            self._pool = HttpxPool(self._headers, self._given)
        else:
            max_connections, connect_s = self._limits
            self._pool = AiohttpPool(self._headers, max_connections=max_connections, connect_timeout_s=connect_s)
        return self._pool

    def _wait_s(self, attempt: int, retry_after: str | None) -> float:
        """Full jitter over an exponential ceiling; at least what the server asked for."""
        ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (attempt - 1))
        return max(self._chance.uniform(0, ceiling), retry_after_s(retry_after))

    def _note_retry(self, fault: TransportError, path: str, wait_s: float) -> None:
        cause = str(fault.status) if fault.status is not None else type(fault.__cause__ or fault).__name__
        first = cause not in self.retries
        self.retries[cause] += 1
        (_log.warning if first else _log.debug)(
            "retry", path=path, cause=cause, error=str(fault), wait_s=round(wait_s, 2)
        )


def checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The caller's headers. Raises ConfigError for one that cannot be sent, by its name: values may be secret."""
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"header {name!r} has no name that can be sent: letters, digits and - only")
        if not isinstance(value, str) or not _is_sendable(value):
            raise ConfigError(f"header {name!r} has a value that cannot be sent: printable ASCII on one line only")
    return headers


def _is_sendable(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


def normalize_url(url: str) -> str:
    """A server's root from what people give: with or without scheme, slash, or /v1."""
    url = url.strip().rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    return url.removesuffix("/v1")


def retry_after_s(value: str | None) -> float:
    """Seconds from a Retry-After header, which is a number or a date; 0 where it is neither."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def decode(decoder: msgspec.json.Decoder[Any], answer: Answer, path: str) -> Any:
    """Reads an answer. Raises MalformedReply where it is not the JSON that this route answers."""
    try:
        return decoder.decode(answer.body)
    except UNREADABLE as error:
        start = answer.body[:200].decode("utf-8", "replace")
        raise MalformedReply(f"{path}: the answer cannot be read: {error}", status=answer.status, body=start) from error


def error_of(status: int, body: bytes, path: str) -> TransportError:
    """The error that a status and its body are."""
    text = server_message(body)
    message = f"{path}: {status}: {text}" if text else f"{path}: {status}"
    kind: type[TransportError] = RequestRefused
    if _retryable(status):
        kind = ServerBusy
    elif status in (401, 403):
        kind = AuthenticationFailed
    elif status == 404 and "model" in text.lower():
        kind = ModelNotFound
    elif status in (400, 413, 422) and any(phrase in text.lower() for phrase in _TOO_LONG):
        kind = PromptTooLong
    return kind(message, status=status, body=body[:500].decode("utf-8", "replace"))


def hidden_status(body: bytes) -> int | None:
    """The status of an error object that came as a success, as gateways send it; None where there is none.

    500 where it names no status: whoever made it did not know either.
    """
    if b'"error"' not in body[:100]:
        return None
    try:
        value = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    if not isinstance(value, dict) or "choices" in value:
        return None
    found = value.get("error")
    codes = (found.get("code"), value.get("code")) if isinstance(found, dict) else (value.get("code"),)
    return next((code for code in codes if isinstance(code, int) and 400 <= code < 600), 500)


def server_message(body: bytes) -> str:
    """What the server says went wrong, in the forms that vLLM, Dynamo and FastAPI have, in one short line."""
    try:
        value = msgspec.json.decode(body)
    except UNREADABLE:
        value = body.decode("utf-8", "replace")
    while isinstance(value, dict):
        value = next((value[key] for key in ("error", "message", "detail") if value.get(key)), "")
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return " ".join(text.split())[:400]


def _retryable(status: int) -> bool:
    return status in RETRY_STATUSES or status >= 500


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return f"the connection failed: {text}"
