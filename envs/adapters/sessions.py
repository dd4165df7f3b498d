"""Sessions with MCP servers: one of a rollout's own, or one that all rollouts of a process share.

A session is held by a task that is the session's own, so what breaks in it (a server that dies, say) is an error of
the call under way. One that is gone stays gone for whoever has it: what the server knew is lost with it. Only a rollout
that begins is given a new one.
"""

from __future__ import annotations

import asyncio
import contextvars
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import IO, Any

import msgspec

from envs.adapters.common import one_line, package
from envs.adapters.headers import shown
from rollout.errors import ConfigError

#: What the protocol says where a call is not to be told to the model: a connection that closed, a call that took long.
_CLOSED, _LATE = "CONNECTION_CLOSED", "REQUEST_TIMEOUT"

#: How soon a shared server must list its tools after a call took too long, in seconds: else it hangs, and is replaced.
_PROBE_S = 5.0


class ServerFailed(Exception):
    """A server of tools that cannot be reached, or is gone."""


class Server(msgspec.Struct, frozen=True):
    """Where a server is, and how it is reached."""

    place: str
    """A command, which is split as a shell would, or an address."""
    limit_s: float
    """For its start, and for each call."""
    variables: Mapping[str, str] = {}
    """What a command is given beside PATH, HOME and the like."""
    headers: Mapping[str, str] = {}
    """What an address is sent with each request."""

    @property
    def is_http(self) -> bool:
        return is_address(self.place)

    @property
    def shown(self) -> str:
        """Its name in an error's words, without what may be a secret: an address' user and query, a command's
        options."""
        if self.is_http:
            return shown(self.place)
        return " ".join(shlex.split(self.place)[:2])

    def transport(self, printed: IO[str]) -> Any:
        """What the package's client takes; what a command prints as errors goes to a file."""
        if self.is_http:
            return _over_http(self.place, self.headers, self.limit_s) if self.headers else self.place
        command, *args = shlex.split(self.place)
        mcp = package("mcp", "mcp", "mcp")
        parameters = mcp.StdioServerParameters(command=command, args=args, env=dict(self.variables))
        return package("mcp", "mcp.client.stdio", "mcp").stdio_client(parameters, errlog=printed)

    def __repr__(self) -> str:
        return f"Server({self.shown!r})"  # a header's value is never logged


def is_address(place: str) -> bool:
    """Whether a server is reached over HTTP."""
    return place.startswith(("http://", "https://"))


def places(servers: str) -> list[str]:
    """Commands and addresses with ` | ` between them. Raises ConfigError for a command that is not there."""
    found = [place.strip() for place in servers.split(" | ") if place.strip()]
    for place in found:
        if is_address(place):
            continue
        try:
            command = (shlex.split(place) or [""])[0]
        except ValueError as error:
            raise ConfigError(f"mcp: a command cannot be split into arguments: {error}") from error
        if shutil.which(command) is None:
            raise ConfigError(f"mcp: there is no command {command!r}: name a program, or an address http://...")
    if not found:
        raise ConfigError("mcp: names no server: mcp:COMMAND or mcp:http://HOST/mcp")
    return found


@asynccontextmanager
async def _over_http(url: str, headers: Mapping[str, str], limit_s: float) -> AsyncIterator[Any]:
    httpx = package("mcp", "httpx2", "mcp")
    client = httpx.AsyncClient(headers=dict(headers), timeout=httpx.Timeout(limit_s, read=None))
    async with (
        client,
        package("mcp", "mcp.client.streamable_http", "mcp").streamable_http_client(url, http_client=client) as streams,
    ):
        yield streams


class Session:
    """A session with one server, held open by a task of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.tools: list[Any] = []
        self.gone = False
        """Whether the server has died, or hangs."""
        self._end = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[Any] | None = None

    async def open(self) -> list[Any]:
        """Its tools. Raises ServerFailed."""
        self._opened = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(self._opened), name=f"session with {self.server.shown}")
        try:
            async with asyncio.timeout(self.server.limit_s):
                await self._opened
                self.tools = await self._listed()
        except TimeoutError as error:
            limit_s = self.server.limit_s
            raise ServerFailed(f"{self.server.shown} did not start within {limit_s:g} s (timeout_s)") from error
        except ServerFailed:
            raise
        except Exception as error:
            raise ServerFailed(f"{self.server.shown} lists no tools: {_said(error)}") from error
        return self.tools

    async def _listed(self) -> list[Any]:
        assert self._opened is not None
        client = self._opened.result()
        page = await client.list_tools()
        found = list(page.tools)
        while page.next_cursor:
            page = await client.list_tools(cursor=page.next_cursor)
            found += page.tools
        return found

    async def _hold(self, opened: asyncio.Future[Any]) -> None:
        """Opens the session, keeps it until it is to end, and leaves it, in one and the same task."""
        mcp = package("mcp", "mcp", "mcp")
        with tempfile.TemporaryFile("w+", errors="replace") as printed:
            try:
                transport = self.server.transport(printed)
                async with mcp.Client(transport, read_timeout_seconds=self.server.limit_s) as client:
                    if not opened.done():
                        opened.set_result(client)
                    await self._end.wait()
            except Exception as error:
                if not opened.done():
                    hint = ": is it an MCP server, and does it want a header (headers)?" if self.server.is_http else ""
                    said = f"{self.server.shown} cannot be used: {_said(error)}{_last(printed)}{hint}"
                    opened.set_exception(ServerFailed(said))
            finally:
                self.gone = True

    async def call(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        """Whether the call failed, and what the model is told of it. Raises ServerFailed."""
        assert self._opened is not None
        if self.gone:
            raise ServerFailed(f"{self.server.shown} is gone, and what it knew of this rollout with it")
        types = package("mcp", "mcp_types", "mcp")
        error_type = package("mcp", "mcp", "mcp").MCPError
        try:
            result = await self._opened.result().call_tool(name, arguments)
        except error_type as error:
            if error.error.code in [getattr(types, code) for code in (_CLOSED, _LATE)]:
                self.gone = error.error.code == getattr(types, _CLOSED)
                raise ServerFailed(f"{self.server.shown} is gone in a call of {name}: {_said(error)}") from error
            return True, f"error: {_said(error)}"
        except Exception as error:
            self.gone = True
            raise ServerFailed(f"{self.server.shown} failed in a call of {name}: {_said(error)}") from error
        return bool(result.is_error), "\n".join(_text(block) for block in result.content)

    async def probe(self) -> None:
        """Sees whether it still answers; one that does not is gone."""
        try:
            async with asyncio.timeout(_PROBE_S):
                await self._listed()
        except Exception:
            self.gone = True

    async def close(self) -> None:
        """Returns once the session is left. One that is not open yet, and may never be, is not waited for."""
        self._end.set()
        if self._holder is not None:
            if self._opened is None or not self._opened.done() or self._opened.cancelled():
                self._holder.cancel()
            await asyncio.wait([self._holder])


class Shared:
    """Sessions that the rollouts of a process share: one with each server, opened when it is first wanted.

    What it starts belongs to who made it, not to the rollout that happened to want it first.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._opening: dict[tuple[Any, ...], asyncio.Task[Session]] = {}

    async def session(self, server: Server) -> Session:
        """The session with a server; a new one where that is gone. Raises ServerFailed, to all that waited for it."""
        key = (server.place, server.limit_s, *sorted(server.variables.items()), *sorted(server.headers.items()))
        opening = self._opening.get(key)
        if opening is None or (opening.done() and _ended(opening)):
            opening = self._opening[key] = self._started(self._opened, server, opening)
            opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(opening)
        except ServerFailed as error:
            raise ServerFailed(str(error)) from error

    def _started(self, work: Callable[..., Any], *args: Any) -> asyncio.Task[Session]:
        task: asyncio.Task[Session] = self._context.run(lambda: asyncio.create_task(work(*args)))
        return task

    async def _opened(self, server: Server, before: asyncio.Task[Session] | None) -> Session:
        if before is not None and not before.cancelled() and before.exception() is None:
            await before.result().close()
        session = Session(server)
        try:
            await session.open()
        except BaseException:
            await session.close()
            raise
        return session

    async def close(self) -> None:
        """Ends them all."""
        for opening in self._opening.values():
            opening.cancel()
        if self._opening:
            await asyncio.wait(self._opening.values())
        held = [task.result() for task in self._opening.values() if not task.cancelled() and not task.exception()]
        await asyncio.gather(*(session.close() for session in held))


def _ended(opening: asyncio.Task[Session]) -> bool:
    return opening.cancelled() or opening.exception() is not None or opening.result().gone


def _text(block: Any) -> str:
    return block.text if block.type == "text" else f"[{block.type} left out]"


def _said(error: BaseException) -> str:
    """What an error says in one line; that of the first in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return one_line(error)[:300]


def _last(printed: IO[str]) -> str:
    """The last line that a command printed as an error."""
    printed.seek(0)
    lines = printed.read()[-2_000:].strip().splitlines()
    return f" (it printed: {lines[-1]:.200})" if lines else ""
