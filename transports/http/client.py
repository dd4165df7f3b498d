"""One HTTP client for every dialect: connections, deadlines, retries. `pool` carries the bytes, `answers` reads them.

Bodies are bytes that msgspec made; answers are bytes that msgspec reads. Everything that can go wrong becomes a
`TransportError` here, with its cause, and nowhere else.

Prompts have one pool of connections, and may fill it for minutes. What is asked and told of the server itself
(health, metrics, pause, weights, abort) goes over other connections, whose number has no limit, with deadlines of its
own: the busiest server is heard, and can be told to stop.

Proxies and cookies from the environment are not used: a model server is reached directly, and keeps no state
in cookies. The API key and a password in the address go into one header and nowhere else.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import httpx
import msgspec

from rollout.address import basic_auth, server_url
from rollout.errors import (
    ConfigError,
    ConnectionFailed,
    MalformedReply,
    NotSent,
    RequestTimeout,
    TransportError,
)
from rollout.log import get_logger
from rollout.transport import Traffic
from transports.http.answers import UNREADABLE, error_of, hidden_status, retry_after_s, server_message
from transports.http.patience import answered_within
from transports.http.pool import MOST_BYTES, AiohttpPool, HttpxPool, Pool, Received, TooLarge, Unreachable

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0

#: A question to the server itself: it is answered at once, or something is wrong.
ASK_S = 10.0

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_log = get_logger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """What came back, whole."""

    status: int
    body: bytes
    elapsed_s: float
    """The last attempt's time and all waits before it."""


class _Call(msgspec.Struct, frozen=True):
    """One request to be made until it is answered."""

    method: str
    path: str
    content: bytes | None
    headers: Mapping[str, str]
    retries: int
    timeout_s: float | None
    """Over all attempts; None is no limit."""
    own_connection: bool
    """Whether it goes beside the prompts."""


class HttpClient:
    """Sends bodies to one server. Shared by all rollouts."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float | None = 600.0,
        connect_timeout_s: float = 10.0,
        retries: int = 4,
        max_connections: int = 4096,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        """`timeout_s` None leaves the deadline of prompts to the caller. Raises ConfigError for a wrong address.

        `transport` takes the connections' place (a server in process); `sleep` and `chance` are the backoff's.
        """
        self.base_url = server_url(base_url)
        """Without user and password."""
        self.retries: Counter[str] = Counter()
        """Retries by cause: a status, or an exception's name."""
        self.traffic = Traffic()
        """Of prompts and their answers."""
        self._timeout_s = timeout_s
        self._retries = retries
        self._sleep = sleep
        self._chance = chance or random.Random()
        self._limits = max_connections, connect_timeout_s
        self._headers = {
            "content-type": "application/json",
            **checked_headers(headers or {}),
            **_authorization(base_url, api_key),
        }
        self._given = HttpxPool(self._headers, transport) if transport is not None else None
        self._pools: dict[bool, Pool] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<HttpClient {self.base_url} {sum(self.retries.values())} retries>"

    async def post(
        self,
        path: str,
        body: Any,
        *,
        headers: Mapping[str, str] | None = None,
        retries: int | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """POST of a prompt. Raises TransportError for every status of 300 and above."""
        retries = self._retries if retries is None else retries
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return await self._answer(
            _Call("POST", path, msgspec.json.encode(body), headers or {}, retries, timeout_s, own_connection=False)
        )

    async def get(self, path: str, *, retries: int = 0, timeout_s: float = ASK_S) -> Answer:
        """Asks the server about itself, whatever is in flight. Raises TransportError, and NotSent."""
        return await self._answer(_Call("GET", path, None, {}, retries, timeout_s, own_connection=True))

    async def tell(self, path: str, body: Any, *, timeout_s: float, retries: int = 0) -> Answer:
        """Tells the server what concerns all of it, whatever is in flight. Raises TransportError, and NotSent."""
        content = msgspec.json.encode(body)
        return await self._answer(_Call("POST", path, content, {}, retries, timeout_s, own_connection=True))

    async def aclose(self) -> None:
        """May be called twice. What is asked for later raises ConnectionFailed."""
        self._closed = True
        pools, self._pools = list(self._pools.values()), {}
        if self._given is not None:
            pools, self._given = [self._given], None
        for pool in pools:
            await pool.aclose()

    async def _answer(self, call: _Call) -> Answer:
        started = time.perf_counter()
        attempt = 0
        while True:
            attempt += 1
            left_s = None
            if call.timeout_s is not None:
                left_s = max(1e-3, started + call.timeout_s - time.perf_counter())
            received, fault = await self._attempt(call, left_s)
            if received is not None and fault is None:
                return Answer(received.status, received.body, time.perf_counter() - started)
            assert fault is not None
            asked_s = retry_after_s(received.headers) if received is not None else 0.0
            wait_s = self._wait_s(attempt, asked_s)
            late = call.timeout_s is not None and time.perf_counter() + wait_s >= started + call.timeout_s
            if not fault.retryable or attempt > call.retries or late or self._closed:
                raise fault
            self._note_retry(fault, call, wait_s)
            await self._sleep(wait_s)

    async def _attempt(self, call: _Call, left_s: float | None) -> tuple[Received | None, TransportError | None]:
        """(what came, what is wrong with it). Raises RequestTimeout, and MalformedReply for an endless answer."""
        where = self.base_url + call.path
        try:
            received = await self._once(call, left_s)
        except TimeoutError as error:
            raise RequestTimeout(f"{where}: no answer within {call.timeout_s:g} s") from error
        except TooLarge as error:
            raise MalformedReply(f"{where}: the answer has more than {MOST_BYTES / 2**30:g} GiB") from error
        except Unreachable as error:
            fault = (ConnectionFailed if error.sent else NotSent)(f"{where}: {error}")
            fault.__cause__ = error.__cause__
            return None, fault
        status = hidden_status(received.body) or received.status if received.status < 300 else received.status
        return received, None if status < 300 else error_of(status, received.body, call.path, received.headers)

    async def _once(self, call: _Call, left_s: float | None) -> Received:
        pool = self._pool(call.own_connection)
        url = self.base_url + call.path
        if call.own_connection:
            with answered_within(left_s or ASK_S):
                return await pool.send(call.method, url, call.content, call.headers, None)
        self.traffic.sent += len(call.content or b"")
        received = await pool.send(call.method, url, call.content, call.headers, left_s)
        self.traffic.received += len(received.body)
        return received

    def _pool(self, own_connection: bool) -> Pool:
        """Opened at first use: connections belong to the event loop that runs then."""
        if self._closed:
            raise ConnectionFailed(f"{self.base_url}: this transport was closed")
        if self._given is not None:
            return self._given
        if (pool := self._pools.get(own_connection)) is None:
            most, connect_s = self._limits
            pool = self._pools[own_connection] = AiohttpPool(
                self._headers,
                max_connections=0 if own_connection else most,
                connect_timeout_s=None if own_connection else connect_s,
            )
        return pool

    def _wait_s(self, attempt: int, asked_s: float) -> float:
        """Full jitter over an exponential ceiling; at least what the server asked for."""
        ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (attempt - 1))
        return max(self._chance.uniform(0, ceiling), asked_s)

    def _note_retry(self, fault: TransportError, call: _Call, wait_s: float) -> None:
        cause = str(fault.status) if fault.status is not None else type(fault.__cause__ or fault).__name__
        first = cause not in self.retries
        self.retries[cause] += 1
        (_log.warning if first and not call.own_connection else _log.debug)(
            "retry", path=call.path, cause=cause, error=str(fault), wait_s=round(wait_s, 2)
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


def _authorization(base_url: str, api_key: str | None) -> dict[str, str]:
    """The header of the key, or of the address' password. Raises ConfigError where both are given."""
    basic = basic_auth(base_url)
    if basic is not None and api_key:
        raise ConfigError(f"{server_url(base_url)}: the address has a password and there is an API key: give one")
    if basic is not None:
        return {"authorization": basic}
    if not api_key:
        return {}
    if not _is_sendable(api_key):
        raise ConfigError("the API key holds a line break or characters that no header takes: give it anew")
    return {"authorization": f"Bearer {api_key}"}


def decode(decoder: msgspec.json.Decoder[Any], answer: Answer, path: str) -> Any:
    """Reads an answer. Raises MalformedReply where it is not the JSON that this route answers."""
    try:
        return decoder.decode(answer.body)
    except UNREADABLE as error:
        start = answer.body[:200].decode("utf-8", "replace")
        said = server_message(answer.body) if answer.body.lstrip().startswith(b"<") else str(error)
        raise MalformedReply(f"{path}: the answer cannot be read: {said}", status=answer.status, body=start) from error
