"""Resources servers of NeMo Gym: a session is seeded, the model calls the server's tools, and the server verifies.

    rollout run nemo-gym:http://localhost:8001 -a data=example.jsonl
    rollout run nemo-gym:http://localhost:8001 --tasks train.jsonl

A task is a row of the server's data set: `responses_create_params` holds the messages and the tools, and whatever else
it has is for the server. A rollout goes as the package's simple_agent plays it; servers that have `reset` and `step` in
place of `verify` as its gymnasium_agent does. Rewards are the server's own.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio.to_thread
import msgspec

from envs.adapters.common import beginning, unknown_tool, unread
from envs.adapters.headers import headers_of, shown, without_password
from envs.adapters.nemo import Resources, Session, call_id, described, output_item, response, rows, said_items
from rollout.chat.messages import Message, ToolCall, tool, user
from rollout.dialects.memory import Memory
from rollout.dialects.responses import Responses
from rollout.dialects.types import DialectError
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import ConfigError, MessageError

#: Connections to a server at most, in a process.
_CONNECTIONS = 1024

#: Seconds that an idle connection is kept: much less than servers do, or one would be closed under a request, of which
#: nobody could tell whether it was carried out.
_IDLE_S = 2.0

#: Numbers of a verification that become metrics, at most.
_METRICS = 16


class Common(msgspec.Struct, frozen=True):
    """What the rollouts of a process share."""

    client: aiohttp.ClientSession
    server: Resources


class NemoGym(Env):
    """Play the tasks of a NeMo Gym resources server with its tools; rewards are its own."""

    @classmethod
    @asynccontextmanager
    async def setup(cls, url: str, headers: str = "", timeout_s: float = 120.0) -> AsyncIterator[Common]:
        """The connections, and what the server says of itself."""
        sent = headers_of("nemo-gym", headers, [url])[url]
        server = await anyio.to_thread.run_sync(described, url.rstrip("/"), sent, timeout_s)
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=_IDLE_S)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, headers=sent, cookie_jar=jar) as client:
            yield Common(client, server)

    def __init__(
        self,
        url: str,
        data: str = "",
        tools: str = "auto",
        timeout_s: float = 120.0,
        output_chars: int = 20_000,
        headers: str = "",
    ) -> None:
        """The arguments of `-a`.

        `url` is the server's. `data` is a file of its data set, a row a line, of which tasks are drawn. The `tools`
        are those of the row; where it names none at all, the server's endpoints (auto), or none (row). `timeout_s`
        bounds each call. Of what a tool gives the first `output_chars` are told. `headers`: `Authorization: Bearer
        $TOKEN`, where TOKEN is a variable of ours. Raises ConfigError.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"nemo-gym:{url:.80} is no address: start the server, and name it by http://HOST:PORT")
        without_password("nemo-gym", url)
        if tools not in ("auto", "row"):
            raise ConfigError(f"nemo-gym: tools={tools!r} must be auto (the row's, else the server's) or row")
        if timeout_s <= 0 or output_chars < 1:
            raise ConfigError("nemo-gym: timeout_s and output_chars must be above 0")
        self.url, self.data, self.timeout_s, self.output_chars = url.rstrip("/"), data, timeout_s, output_chars
        self._headers = headers_of("nemo-gym", headers, [url])[url]
        self._offered = tools
        self.tools: Any = ()
        self._session: Any = None
        self._row: dict[str, Any] = {}
        self._said: list[dict[str, Any]] = []
        """What the model said and was answered, in the items of a response."""
        self._verified = False
        self._metrics = {"tool_calls": 0.0, "tool_errors": 0.0}

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` rows of the data, or as many as there are."""
        described(self.url, self._headers, self.timeout_s)
        if not self.data:
            raise ConfigError(
                "nemo-gym: a server has no tasks of its own: give rows of its data set, -a data=FILE.jsonl or --tasks"
            )
        draw = random.Random(seed)
        drawn = rows(self.data, lambda count: draw.sample(range(count), min(n, count)))
        if not drawn or not all(isinstance(row, dict) and "responses_create_params" in row for row in drawn):
            raise ConfigError(f"nemo-gym: data={self.data}: a row must have 'responses_create_params'")
        return drawn

    def preflight(self, task: Task) -> None:
        """The server is asked what it is, and the row is read."""
        described(self.url, self._headers, self.timeout_s)
        _read(_params_of(task))

    async def reset(self, task: Task) -> Sequence[MessageLike]:
        """Seeds a session, and says what the row has."""
        params = _params_of(task)
        self._row = dict(task)
        self._session = Session(self.shared.client, self.url, self.timeout_s)
        server: Resources = self.shared.server
        begun = await self._session.ask("reset" if server.steps else "seed_session", self._row)
        opening, self.tools = _read(params)
        if params.get("tools") is None and self._offered == "auto" and not server.steps:
            self.tools = list(server.tools)
        seen = begun.get("observation") if server.steps else None
        return [*opening, user(seen)] if seen else opening

    async def step(self, message: Message) -> Step:
        """Makes the calls of one turn; an answer without any, or one that was cut off, is verified."""
        at, cut = len(self._said), self.finish_reason == "length"
        items = said_items(message, at)
        self._said += items
        if self.shared.server.steps:
            return await self._stepped(message, items, cut)
        if cut or not (message.tool_calls or message.malformed_tool_calls):
            reward = await self._verify(cut)
            return Step(done=True, reward=reward, metrics=dict(self._metrics))
        replies: list[MessageLike] = []
        for number, call in enumerate(message.tool_calls):
            text = await self._call(call)
            self._said.append(output_item(call_id(call, at, number), text))
            replies.append(tool(beginning(text, self.output_chars), call=call))
        if message.malformed_tool_calls:
            self._metrics["tool_errors"] += len(message.malformed_tool_calls)
            replies.append(self._told(unread(message)))
        return Step(messages=replies, metrics=dict(self._metrics))

    def _told(self, text: str) -> Message:
        self._said.append({"type": "message", "role": "user", "content": text})
        return user(text)

    async def _call(self, call: ToolCall) -> str:
        self._metrics["tool_calls"] += 1
        known = [each["function"]["name"] for each in self.tools]
        if call.name not in known:  # its name is a path, and not every path is the model's to ask
            failed, text = True, unknown_tool(call.name, known)
        else:
            try:
                failed, text = await self._session.tool(call.name, call.parsed_arguments())
            except MessageError as error:
                failed, text = True, f"error: {error}"
        self._metrics["tool_errors"] += failed
        return text

    async def _stepped(self, message: Message, items: list[dict[str, Any]], cut: bool) -> Step:
        """One turn of a server that steps: it makes the calls itself."""
        self._verified = True  # rewards come with the steps
        said = response(items, self._row["responses_create_params"], cut=cut)
        found = await self._session.ask("step", {**self._row, "response": said})
        done = bool(found.get("terminated") or found.get("truncated"))
        outputs = {each["call_id"]: each["output"] for each in (found.get("info") or {}).get("tool_outputs", [])}
        replies: list[MessageLike] = []
        for number, call in enumerate(message.tool_calls):
            self._metrics["tool_calls"] += 1
            name = call_id(call, len(self._said) - len(items), number)
            replies.append(tool(beginning(outputs.get(name, ""), self.output_chars), call=call))
        if seen := found.get("observation"):
            replies.append(user(seen))
        if not done and not replies:
            raise ConfigError(f"nemo-gym: {shown(self.url)} goes on without an observation, to which nothing is said")
        return Step(
            messages=[] if done else replies,
            done=done,
            reward=float(found.get("reward") or 0),
            metrics=dict(self._metrics),
        )

    async def score(self, messages: list[Message]) -> float | None:
        """Verifies a conversation that ended at a limit; else the steps have the reward."""
        return None if self._verified or not self._said else await self._verify(cut=True)

    async def _verify(self, cut: bool) -> float:
        self._verified = True
        said = response(self._said, self._row["responses_create_params"], cut=cut)
        found = await self._session.ask("verify", {**self._row, "response": said})
        if not isinstance(reward := found.get("reward"), bool | int | float):
            raise ConfigError(f"nemo-gym: {shown(self.url)} verified without a reward")
        numbers = {key: float(each) for key, each in found.items() if isinstance(each, bool | int | float)}
        more = [key for key in numbers if key != "reward" and key not in self._row][:_METRICS]
        self._metrics.update({key: numbers[key] for key in more})
        return float(reward)


def _params_of(task: Task) -> dict[str, Any]:
    """What a row asks a model for. Raises ConfigError."""
    params = task.get("responses_create_params")
    if not isinstance(params, dict):
        raise ConfigError("a nemo-gym task is a row of the server's data set: it needs 'responses_create_params'")
    return params


def _read(params: dict[str, Any]) -> tuple[list[MessageLike], Sequence[Any]]:
    """The messages and the tools of a row, which is a request of the Responses API. Raises ConfigError."""
    kept = {key: params[key] for key in ("input", "tools", "instructions") if params.get(key)}
    try:
        call = Responses().read(msgspec.json.encode(kept), Memory())
    except (DialectError, MessageError) as error:
        raise ConfigError(f"nemo-gym: responses_create_params cannot be read: {error}") from error
    return list(call.messages), list(call.tools)
