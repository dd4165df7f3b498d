"""What carries one request's bytes and brings back one answer's: aiohttp's connections, or a server in process.

aiohttp is called by itself. httpx's own pool scans all its connections on every request (7.6 ms of CPU at 800
connections), and httpx over aiohttp's takes 0.3 ms a request, of which aiohttp's part is 0.1.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import anyio
import httpx

#: Idle connections are closed before the server does so, under a request: vLLM does after 5 s
#: (VLLM_HTTP_TIMEOUT_KEEP_ALIVE), and a trainer's step is often longer.
IDLE_CONNECTION_S = 4.0

#: aiohttp writes larger bodies in pieces if they are given as a file, and warns if they are not.
_LARGE_BYTES = 2**20

#: No answer of a model server is larger; what is would fill the memory.
MOST_BYTES = 2**30

#: What the operating system says when it is this machine that cannot send: files, ports, memory or network are lacking.
_OURS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH}
)

if TYPE_CHECKING:
    import aiohttp


class Received(NamedTuple):
    """An answer, whole."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    """Names in any case."""


class Unreachable(Exception):
    """No answer came; the cause is the library's own error."""

    @property
    def sent(self) -> bool:
        """Whether it may have left this machine. Where it has not, nothing is known of the server."""
        cause = self.__cause__
        error = getattr(cause, "os_error", cause)
        return not isinstance(error, socket.gaierror) and getattr(error, "errno", None) not in _OURS

    def __str__(self) -> str:
        cause = self.__cause__
        error = getattr(cause, "os_error", None) or getattr(cause, "certificate_error", None) or cause
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {error.verify_message or error}"
        if isinstance(error, ssl.SSLError):
            return f"TLS failed ({error.reason or error}): does it speak http, not https?"
        number = getattr(error, "errno", None) or 0
        said = os.strerror(number) if number > 0 else getattr(error, "strerror", None)
        text = said or str(error) or type(error).__name__
        text = " ".join(text.split())[:300]
        return f"the connection failed: {text[:1].lower()}{text[1:]}"


class TooLarge(Exception):
    """The answer has more than `MOST_BYTES`."""


class Pool(Protocol):
    """Connections to one server."""

    async def send(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str], timeout_s: float | None
    ) -> Received:
        """Raises Unreachable, TooLarge, and TimeoutError where the answer is not there in time; None is no limit."""
        ...

    async def aclose(self) -> None: ...


class AiohttpPool:
    """Connections of aiohttp's, kept open. Belongs to the event loop in which it was made."""

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        max_connections: int,
        connect_timeout_s: float | None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """`max_connections` of 0 is no limit."""
        import aiohttp  # imported here: a run on the embedded model needs none of it
        from yarl import URL

        connector = aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=IDLE_CONNECTION_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )
        self._connect_s, self._most_bytes = connect_timeout_s, most_bytes
        self._make_timeout = aiohttp.ClientTimeout
        self._unlimited = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        """Where the caller has a deadline of its own, as prompts have."""
        self._client_error = aiohttp.ClientError
        self._parse_url = URL
        self._urls: dict[str, URL] = {}

    def __repr__(self) -> str:
        return f"<AiohttpPool {len(self._urls)} urls>"

    async def send(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str], timeout_s: float | None
    ) -> Received:
        """See `Pool`."""
        if (target := self._urls.get(url)) is None:
            target = self._urls[url] = self._parse_url(url)
        data = io.BytesIO(content) if content is not None and len(content) >= _LARGE_BYTES else content
        timeout = self._unlimited
        if timeout_s is not None:
            timeout = self._make_timeout(total=timeout_s, sock_connect=self._connect_s)
        try:
            async with self._session.request(
                method, target, data=data, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                return Received(response.status, await self._read(response), response.headers)
        except (self._client_error, OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not self._session.closed:
                raise
            if isinstance(error, TimeoutError) and not isinstance(error, self._client_error):
                raise  # the whole request's; a connection's is one of aiohttp's errors
            raise Unreachable from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The body, unpacked. Raises TooLarge."""
        length = response.content_length
        if length is not None and length <= self._most_bytes and "content-encoding" not in response.headers:
            return await response.read()
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > self._most_bytes:
                raise TooLarge
        return b"".join(parts)

    async def aclose(self) -> None:
        """See `Pool`."""
        await self._session.close()


class HttpxPool:
    """A transport of httpx's: a server in process (ASGITransport), or a caller's own."""

    def __init__(self, headers: Mapping[str, str], transport: httpx.AsyncBaseTransport) -> None:
        self._client = httpx.AsyncClient(transport=transport, headers=headers, timeout=None, trust_env=False)

    async def send(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str], timeout_s: float | None
    ) -> Received:
        """See `Pool`."""
        try:
            with anyio.fail_after(timeout_s):
                response = await self._client.request(method, url, content=content, headers=dict(headers))
        except httpx.HTTPError as error:
            raise Unreachable from error
        return Received(response.status_code, response.content, response.headers)

    async def aclose(self) -> None:
        """See `Pool`."""
        await self._client.aclose()
