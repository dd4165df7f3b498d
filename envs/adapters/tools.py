"""Tools of MCP servers: the model calls them for the tasks of a file, and a function of the user's judges.

    rollout run 'mcp:python server.py' --tasks tasks.jsonl -a judge=judges.py:judge
    rollout run 'mcp:http://localhost:8000/mcp | uvx some-server' --tasks tasks.jsonl -a judge=judges.py:judge

    def judge(task, messages):                # the whole conversation, tools' results among it; may be asynchronous
        return float(task["answer"] in messages[-1].text)

Each rollout has a session of its own with each server: a command is started for it, and ended with it. With
`-a session=shared` one session with each server serves all rollouts of a worker: they see what the others did to it.
What breaks in a session is its rollouts' failure: no reward is given for what the infrastructure broke. What a server
refuses is told to the model: arguments that do not fit, a tool that raises.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from envs.adapters.common import beginning, function, package, reward, unknown_tool, unread
from envs.adapters.headers import headers_of, without_password
from envs.adapters.sessions import Server, ServerFailed, Session, Shared, is_address, places
from rollout.chat.messages import Message, ToolCall, system, tool, user
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import ConfigError, MessageError
from rollout.process.threads import Threads

#: Judges' calls at once.
_JUDGES = 32


class Common(msgspec.Struct, frozen=True):
    """What the rollouts of a process share."""

    judges: Threads
    sessions: Shared | None = None
    """None where each rollout has sessions of its own."""


class Mcp(Env):
    """Answer a file's tasks with the tools of MCP servers; the reward is a function of task and conversation."""

    @classmethod
    @asynccontextmanager
    async def setup(cls, session: str = "rollout") -> AsyncIterator[Common]:
        """The package is imported before the first deadline runs; judges have threads of their own."""
        threads = Threads(_JUDGES)
        common = Common(threads, Shared() if session == "shared" else None)
        try:
            await threads.run(package, "mcp", "mcp", "mcp")
            yield common
        finally:
            if common.sessions is not None:
                await common.sessions.close()
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
        session: str = "rollout",
        headers: str = "",
    ) -> None:
        """The arguments of `-a`.

        `servers` are commands and addresses with ` | ` between them; a command is split as a shell would, and no shell
        sees it. `judge` is `file.py:function` or `module:function`. `prompt` is the task's key with the user message,
        text or a list of messages, and `system` a message before it. `timeout_s` bounds a server's start, and each
        call. Of what a tool gives, the first `output_chars` are told. `env` names, with commas, variables of ours that
        a command is given beside PATH, HOME and the like. `session` is a rollout's own, or shared by all of a worker.
        `headers` are for addresses: `Authorization: Bearer $TOKEN`, where TOKEN is a variable of ours. Raises
        ConfigError.
        """
        package("mcp", "mcp", "mcp")
        if timeout_s <= 0 or output_chars < 1:
            raise ConfigError(f"mcp: timeout_s and output_chars must be above 0, not {timeout_s:g} and {output_chars}")
        if session not in ("rollout", "shared"):
            raise ConfigError(f"mcp: session={session!r} must be rollout (one of its own each) or shared")
        names = [name.strip() for name in env.split(",") if name.strip()]
        variables = {name: os.environ[name] for name in names if name in os.environ}
        named = places(servers)
        sent = headers_of("mcp", headers, [without_password("mcp", place) for place in named if is_address(place)])
        self._servers = [Server(place, timeout_s, variables, sent.get(place, {})) for place in named]
        self._shared = session == "shared"
        self._sessions: list[Session] = []
        self._judge = function("judge", judge, "task", "messages")
        self.prompt, self.system, self.output_chars = prompt, system, output_chars
        self.tools: list[dict[str, Any]] = []
        self._of: dict[str, Session] = {}
        """The session with the server that has a tool."""
        self._task: Task = {}
        self._metrics = {"tool_calls": 0.0, "tool_errors": 0.0}

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """None: servers have tools, and no tasks."""
        raise ConfigError("mcp: has no tasks of its own: give a file of them, --tasks FILE.jsonl")

    async def preflight(self, task: Task) -> None:
        """Every server is started, or reached, and asked for its tools once. Raises ConfigError."""
        self._shared = False
        try:
            await self.reset(task)
        except ServerFailed as error:
            raise ConfigError(f"mcp: {error}") from error

    async def reset(self, task: Task) -> Sequence[MessageLike]:
        """Opens the sessions, and says the task's prompt."""
        value = task.get(self.prompt)
        if not isinstance(value, str | list) or not value:
            raise ConfigError(
                f"an mcp task needs {self.prompt!r}, text or a list of messages: name another by -a prompt="
            )
        self._task = task
        for server in self._servers:
            session = await self._session(server)
            for found in session.tools:
                if found.name in self._of:
                    raise ConfigError(
                        f"mcp: two servers have a tool {found.name!r}: {self._of[found.name].server.shown} and "
                        f"{server.shown}: play one of them, or give the tool another name there"
                    )
                self._of[found.name] = session
                self.tools.append(_tool_spec(found))
        opening: list[MessageLike] = [system(self.system)] if self.system else []
        return [*opening, *([user(value)] if isinstance(value, str) else value)]

    async def _session(self, server: Server) -> Session:
        if self._shared:
            held: Session = await self.shared.sessions.session(server)
            return held
        session = Session(server)
        self._sessions.append(session)
        await session.open()
        return session

    async def step(self, message: Message) -> Step:
        """Makes the calls of one turn; an answer without any is the last."""
        if not message.tool_calls and not message.malformed_tool_calls:
            return Step(done=True, metrics=dict(self._metrics))
        replies: list[MessageLike] = [tool(await self._call(call), call=call) for call in message.tool_calls]
        if message.malformed_tool_calls:
            self._metrics["tool_errors"] += len(message.malformed_tool_calls)
            replies.append(user(unread(message)))
        return Step(messages=replies, metrics=dict(self._metrics))

    async def _call(self, call: ToolCall) -> str:
        self._metrics["tool_calls"] += 1
        if (session := self._of.get(call.name)) is None:
            failed, text = True, unknown_tool(call.name, self._of)
        else:
            try:
                failed, text = await session.call(call.name, call.parsed_arguments())
            except MessageError as error:
                failed, text = True, f"error: {error}"
            except ServerFailed:
                if self._shared and not session.gone:
                    await session.probe()
                raise
        self._metrics["tool_errors"] += failed
        return beginning(text, self.output_chars)

    async def score(self, messages: list[Message]) -> float:
        """What the judge says of the whole conversation."""
        given = await self.shared.judges.run(self._judge, self._task, messages)
        return reward("the judge", await given if inspect.isawaitable(given) else given)

    async def close(self) -> None:
        """Ends the rollout's own sessions, and the commands that were started for them."""
        await asyncio.gather(*(session.close() for session in self._sessions))


def _tool_spec(found: Any) -> dict[str, Any]:
    """A tool as chat templates take it."""
    spec = {"name": found.name, "description": found.description or "", "parameters": found.input_schema}
    return {"type": "function", "function": spec}
