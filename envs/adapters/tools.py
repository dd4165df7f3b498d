"""Tools of MCP servers: the model calls them for the tasks of a file, and a function of the user's judges.

    rollout run 'mcp:python server.py' --tasks tasks.jsonl -a judge=judges.py:judge
    rollout run 'mcp:http://localhost:8000/mcp | uvx some-server' --tasks tasks.jsonl -a judge=judges.py:judge

    def judge(task, messages):                # the whole conversation, tools' results among it; may be asynchronous
        return float(task["answer"] in messages[-1].text)

Each rollout has a session of its own with each server: a command is started for it, and ended with it. A session is
held by a task that is the session's own, so what breaks in it (a server that dies, say) is an error of the call under
way, and its rollout's failure: no reward is given for what the infrastructure broke. What a server refuses is told to
the model: arguments that do not fit, a tool that raises.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

from envs.adapters.common import function, package
from rollout.chat.messages import Message, ToolCall, system, tool, user
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import ConfigError, MessageError
from rollout.process.threads import Threads

#: Judges' calls at once.
_JUDGES = 32

#: What the protocol says where a call is not to be told to the model: a connection that closed, a call that took long.
_BROKEN = ("CONNECTION_CLOSED", "REQUEST_TIMEOUT")


class ServerFailed(Exception):
    """A server of tools that cannot be reached, or is gone."""


class Mcp(Env):
    """Answer a file's tasks with the tools of MCP servers; the reward is a function of task and conversation."""

    @classmethod
    @asynccontextmanager
    async def setup(cls) -> AsyncIterator[Threads]:
        """The package is imported before the first deadline runs; judges have threads of their own."""
        threads = Threads(_JUDGES)
        try:
            await threads.run(package, "mcp", "mcp", "mcp")
            yield threads
        finally:
            threads.close()

    def __init__(
        self,
        servers: str,
        judge: str,
        prompt: str = "prompt",
        system: str = "",
        timeout_s: float = 30.0,
        output_chars: int = 20_000,
        env: str = "",
    ) -> None:
        """The arguments of `-a`.

        `servers` are commands and addresses with ` | ` between them; a command is split as a shell would, and no shell
        sees it. `judge` is `file.py:function` or `module:function`. `prompt` is the task's key with the user message,
        text or a list of messages, and `system` a message before it. `timeout_s` bounds a server's start, and each
        call. Of what a tool gives, the first `output_chars` are told. `env` names, with commas, variables of ours that
        a command is given beside PATH, HOME and the like. Raises ConfigError.
        """
        package("mcp", "mcp", "mcp")
        if timeout_s <= 0 or output_chars < 1:
            raise ConfigError(f"mcp: timeout_s and output_chars must be above 0, not {timeout_s:g} and {output_chars}")
        names = [name.strip() for name in env.split(",") if name.strip()]
        variables = {name: os.environ[name] for name in names if name in os.environ}
        self._servers = [_Server(place, timeout_s, variables) for place in _places(servers)]
        self._judge = function("judge", judge)
        self.prompt, self.system, self.output_chars = prompt, system, output_chars
        self.tools: list[dict[str, Any]] = []
        self._of: dict[str, _Server] = {}
        """The server that has a tool."""
        self._task: Task = {}
        self._metrics = {"tool_calls": 0.0, "tool_errors": 0.0}

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """None: servers have tools, and no tasks."""
        raise ConfigError("mcp: has no tasks of its own: give a file of them, --tasks FILE.jsonl")

    async def reset(self, task: Task) -> Sequence[MessageLike]:
        """Opens the sessions, and says the task's prompt."""
        value = task.get(self.prompt)
        if not isinstance(value, str | list) or not value:
            raise ConfigError(
                f"an mcp task needs {self.prompt!r}, text or a list of messages: name another by -a prompt="
            )
        self._task = task
        for server in self._servers:
            for found in await server.open():
                if found.name in self._of:
                    raise ConfigError(f"mcp: two servers have a tool {found.name!r}")
                self._of[found.name] = server
                self.tools.append(_tool_spec(found))
        opening: list[MessageLike] = [system(self.system)] if self.system else []
        return [*opening, *([user(value)] if isinstance(value, str) else value)]

    async def step(self, message: Message) -> Step:
        """Makes the calls of one turn; an answer without any is the last."""
        if not message.tool_calls and not message.malformed_tool_calls:
            return Step(done=True, metrics=dict(self._metrics))
        replies: list[MessageLike] = [tool(await self._call(call), call=call) for call in message.tool_calls]
        if message.malformed_tool_calls:
            self._metrics["tool_errors"] += len(message.malformed_tool_calls)
            reasons = ", ".join(sorted({call.reason for call in message.malformed_tool_calls}))
            replies.append(user(f"error: a tool call could not be read ({reasons})"))
        return Step(messages=replies, metrics=dict(self._metrics))

    async def _call(self, call: ToolCall) -> str:
        self._metrics["tool_calls"] += 1
        if (server := self._of.get(call.name)) is None:
            failed, text = True, f"error: no tool named {call.name[:60]!r}; there are {', '.join(self._of)}"
        else:
            try:
                failed, text = await server.call(call.name, call.parsed_arguments())
            except MessageError as error:
                failed, text = True, f"error: {error}"
        self._metrics["tool_errors"] += failed
        left_out = len(text) - self.output_chars
        return f"{text[: self.output_chars]}\n[{left_out} characters left out]" if left_out > 0 else text

    async def score(self, messages: list[Message]) -> float:
        """What the judge says of the whole conversation."""
        given = await self.shared.run(self._judge, self._task, messages)
        reward = await given if inspect.isawaitable(given) else given
        if not isinstance(reward, bool | int | float):
            raise TypeError(f"the judge gave {type(reward).__name__}, not a number")
        return float(reward)

    async def close(self) -> None:
        """Ends the sessions, and the commands that were started for them."""
        await asyncio.gather(*(server.close() for server in self._servers))


class _Server:
    """A session with one server, held open by a task of its own."""

    def __init__(self, place: str, limit_s: float, variables: dict[str, str]) -> None:
        self.place = place
        self._shown = _shown(place)
        self._limit_s, self._variables = limit_s, variables
        self._end = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[Any] | None = None

    async def open(self) -> list[Any]:
        """Its tools. Raises ServerFailed."""
        self._opened = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(self._opened), name=f"session with {self._shown}")
        try:
            async with asyncio.timeout(self._limit_s):
                client = await self._opened
                found: list[Any] = []
                page = await client.list_tools()
                found += page.tools
                while page.next_cursor:
                    page = await client.list_tools(cursor=page.next_cursor)
                    found += page.tools
        except TimeoutError as error:
            raise ServerFailed(f"{self._shown} did not start within {self._limit_s:g} s (timeout_s)") from error
        except ServerFailed:
            raise
        except Exception as error:
            raise ServerFailed(f"{self._shown} lists no tools: {_said(error)}") from error
        return found

    async def _hold(self, opened: asyncio.Future[Any]) -> None:
        """Opens the session, keeps it until it is to end, and leaves it, in one and the same task."""
        mcp = package("mcp", "mcp", "mcp")
        with tempfile.TemporaryFile("w+", errors="replace") as printed:
            try:
                async with mcp.Client(self._transport(mcp, printed), read_timeout_seconds=self._limit_s) as client:
                    if not opened.done():
                        opened.set_result(client)
                    await self._end.wait()
            except Exception as error:
                if not opened.done():
                    opened.set_exception(ServerFailed(f"{self._shown} cannot be used: {_said(error)}{_last(printed)}"))

    def _transport(self, mcp: Any, printed: IO[str]) -> Any:
        if self.place.startswith(("http://", "https://")):
            return self.place
        command, *args = shlex.split(self.place)
        parameters = mcp.StdioServerParameters(command=command, args=args, env=self._variables)
        return package("mcp", "mcp.client.stdio", "mcp").stdio_client(parameters, errlog=printed)

    async def call(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        """Whether the call failed, and what the model is told of it. Raises ServerFailed."""
        assert self._opened is not None
        types = package("mcp", "mcp_types", "mcp")
        error_type = package("mcp", "mcp", "mcp").MCPError
        try:
            result = await self._opened.result().call_tool(name, arguments)
        except error_type as error:
            if error.error.code in [getattr(types, code) for code in _BROKEN]:
                raise ServerFailed(f"{self._shown} is gone in a call of {name}: {_said(error)}") from error
            return True, f"error: {_said(error)}"
        except Exception as error:
            raise ServerFailed(f"{self._shown} failed in a call of {name}: {_said(error)}") from error
        return bool(result.is_error), "\n".join(_text(block) for block in result.content)

    async def close(self) -> None:
        """Returns once the session is left."""
        self._end.set()
        if self._holder is not None:
            await asyncio.wait([self._holder])


def _places(servers: str) -> list[str]:
    """Raises ConfigError for a command that is not there."""
    places = [place.strip() for place in servers.split(" | ") if place.strip()]
    for place in places:
        if place.startswith(("http://", "https://")):
            continue
        try:
            command = (shlex.split(place) or [""])[0]
        except ValueError as error:
            raise ConfigError(f"mcp: a command cannot be split into arguments: {error}") from error
        if shutil.which(command) is None:
            raise ConfigError(f"mcp: there is no command {command!r}: name a program, or an address http://...")
    if not places:
        raise ConfigError("mcp: names no server: mcp:COMMAND or mcp:http://HOST/mcp")
    return places


def _shown(place: str) -> str:
    """A server in an error's words, without what may be a secret: an address' user and query, a command's options."""
    if place.startswith(("http://", "https://")):
        scheme, _, rest = place.partition("?")[0].partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return " ".join(shlex.split(place)[:2])


def _tool_spec(found: Any) -> dict[str, Any]:
    """A tool as chat templates take it."""
    spec = {"name": found.name, "description": found.description or "", "parameters": found.input_schema}
    return {"type": "function", "function": spec}


def _text(block: Any) -> str:
    return block.text if block.type == "text" else f"[{block.type} left out]"


def _said(error: BaseException) -> str:
    """What an error says in one line; that of the first in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _last(printed: IO[str]) -> str:
    """The last line that a command printed as an error."""
    printed.seek(0)
    lines = printed.read()[-2_000:].strip().splitlines()
    return f" (it printed: {lines[-1]:.200})" if lines else ""
