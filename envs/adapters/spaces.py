"""OpenEnv servers by their own client: reset, step, tools; a session with the server is a rollout's own.

    rollout run openenv:http://localhost:8000
    rollout run openenv:http://localhost:8000 -a action=mine.py:action -a observe=mine.py:observe

    def action(message):                      # what the server's step takes; ValueError says what is wrong with it
        return {"move": message.text.split()[-1]}

    def observe(observation, first):          # what the model is told: text, or messages
        return observation["board"]

Where the server's actions are calls of tools, the model has its tools, and a turn without a call ends the rollout.
Otherwise an answer is an action: its text where an action is one text, else a JSON object in it. Rewards are the
server's own, and add up.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from envs.adapters.actions import action_of, asked_for, told, tool_text
from envs.adapters.common import beginning, function, package, seeds, unread
from envs.adapters.headers import headers_of, shown, without_password
from envs.adapters.places import Places
from envs.adapters.space import Described, SpaceFailed, SpaceFull, Wrong, described, listed, opened
from rollout.chat.messages import Message, ToolCall, system, tool, user
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import ConfigError, MessageError
from rollout.process.threads import Threads

#: Calls at once of the user's functions.
_THREADS = 32


class Common(msgspec.Struct, frozen=True):
    """What the rollouts of a process share."""

    threads: Threads
    server: Described
    places: Places


class OpenEnv(Env):
    """Play an episode of an OpenEnv server, an action or its tools' calls an answer; rewards are its own."""

    @classmethod
    @asynccontextmanager
    async def setup(cls, url: str, headers: str = "", timeout_s: float = 60.0) -> AsyncIterator[Common]:
        """The package is imported, and the server asked what it is, before the first deadline runs."""
        threads = Threads(_THREADS)
        try:
            await threads.run(package, "openenv", "openenv.core", "openenv")
            server = await threads.run(described, url, headers_of("openenv", headers, [url])[url], timeout_s)
            yield Common(threads, server, Places(shown(url)))
        finally:
            threads.close()

    def __init__(
        self,
        url: str,
        action: str = "",
        observe: str = "",
        system: str = "",
        split: str = "train",
        invalid: int = 3,
        timeout_s: float = 60.0,
        wait_s: float = 600.0,
        output_chars: int = 20_000,
        headers: str = "",
    ) -> None:
        """The arguments of `-a`.

        `url` is the server's. `action` and `observe` are functions, `file.py:name` or `module:name`. `system` is a
        message before the first. Of a server that lists tasks, those of `split` are played; any other is given seeds.
        So many answers in a row without an action (`invalid`) end the episode. `timeout_s` bounds a connection, and
        each call; `wait_s` how long a rollout waits for a session where the server has no more. Of an observation the
        first `output_chars` are told. `headers`: `Authorization: Bearer $TOKEN`, where TOKEN is a variable of ours.
        Raises ConfigError.
        """
        package("openenv", "openenv.core", "openenv")
        if not url.startswith(("http://", "https://", "ws://", "wss://")):
            raise ConfigError(f"openenv:{url:.80} is no address: start the server, and name it by http://HOST:PORT")
        without_password("openenv", url)
        if min(timeout_s, wait_s, output_chars, invalid) <= 0:
            raise ConfigError("openenv: timeout_s, wait_s, output_chars and invalid must be above 0")
        self.url, self.system, self.split, self.invalid = url, system, split, invalid
        self.timeout_s, self.wait_s, self.output_chars = timeout_s, wait_s, output_chars
        self._headers = headers_of("openenv", headers, [url])[url]
        self._action = function("action", action, "message") if action else None
        self._observe = function("observe", observe, "observation", "first") if observe else None
        self.tools: list[dict[str, Any]] = []
        self._session: Any = None
        self._carried = 0.0
        """The reward of the reset, which the first step gives."""
        self._wrong = 0
        self._metrics = {"steps": 0.0, "invalid": 0.0, "session_wait_s": 0.0}

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` of the server's tasks, where it lists any, each with a seed; else `n` seeds."""
        described(self.url, self._headers, self.timeout_s)
        count = listed(self.url, self._headers, self.timeout_s, self.split)
        each = seeds(n, seed)
        if count is None:
            return ({"seed": number} for number in each)
        drawn = random.Random(seed).sample(range(count), min(n, count))
        return (
            {"split": self.split, "index": index, "seed": number} for index, number in zip(drawn, each, strict=False)
        )

    def preflight(self, task: Task) -> None:
        """The server is asked what it is."""
        described(self.url, self._headers, self.timeout_s)

    async def reset(self, task: Task) -> Sequence[MessageLike]:
        """Opens a session, and an episode in it. The task is what the server's reset takes."""
        result = await self._begun(task)
        if result.done:
            raise SpaceFailed(f"{shown(self.url)}: the episode was over when it began")
        self._carried = float(result.reward or 0)
        opening: list[MessageLike] = [system(self.system)] if self.system else []
        if self._observe is not None:
            return [*opening, *_messages(await self._called(self._observe, result.observation, True))]
        prompt = task.get("prompt")
        parts = [prompt] if isinstance(prompt, str) and prompt else []
        parts.append(beginning(told(result.observation), self.output_chars))
        if self._action is None and not self.tools:
            parts.append(asked_for(self.shared.server.action))
        return [*opening, user("\n\n".join(part for part in parts if part))]

    async def _begun(self, task: Task) -> Any:
        said = ""

        async def attempt() -> Any:
            nonlocal said
            self._session = opened(self.url, self._headers, self.timeout_s)
            try:
                if self.shared.server.has_tools and self._action is None:
                    self.tools = await self._session.tools()
                return await self._session.begin(task)
            except SpaceFull as error:
                said = str(error)
                await self._end()
                return None

        result, waited = await self.shared.places.taken(attempt, lambda: said, self.wait_s)
        self._metrics["session_wait_s"] = waited
        return result

    async def step(self, message: Message) -> Step:
        """Takes the actions of one answer; one that has none is told so, and changes nothing."""
        if self.tools:
            return await self._call_tools(message)
        try:
            if self._action is not None:
                action = await self._called(self._action, message)
            else:
                action = action_of(message.text, self.shared.server.action, self.shared.server.checker)
            if action is None:
                return self._step(done=True)
            result = await self._session.act(action)
        except (ValueError, Wrong) as error:
            return self._not_understood(str(error))
        self._wrong = 0
        self._metrics["steps"] += 1
        answers = [] if result.done else await self._told(result.observation)
        return self._step(answers, done=result.done, reward=float(result.reward or 0))

    async def _told(self, observation: Any) -> Sequence[MessageLike]:
        if self._observe is not None:
            return _messages(await self._called(self._observe, observation, False))
        return [user(beginning(told(observation), self.output_chars))]

    async def _call_tools(self, message: Message) -> Step:
        """Makes the calls of one turn, each a step of the server's; an answer without any is the last."""
        if not message.tool_calls and not message.malformed_tool_calls:
            return self._step(done=True)
        replies: list[MessageLike] = []
        reward, done = 0.0, False
        for call in message.tool_calls:
            if done:
                break
            text, gained, done = await self._call(call)
            reward += gained
            replies.append(tool(beginning(text, self.output_chars), call=call))
        if message.malformed_tool_calls:
            self._metrics["invalid"] += len(message.malformed_tool_calls)
            replies.append(user(unread(message)))
        return self._step([] if done else replies, done=done, reward=reward)

    async def _call(self, call: ToolCall) -> tuple[str, float, bool]:
        """What the model is told of a call, its reward, and whether it ended the episode."""
        try:
            result = await self._session.call(call.name, call.parsed_arguments())
        except (MessageError, Wrong) as error:
            self._metrics["invalid"] += 1
            return f"error: {error}", 0.0, False
        failed, text = tool_text(result.observation)
        self._metrics["steps"] += 1
        self._metrics["invalid"] += failed
        return text, float(result.reward or 0), bool(result.done)

    def _step(self, messages: Sequence[MessageLike] = (), *, done: bool = False, reward: float = 0.0) -> Step:
        carried, self._carried = self._carried, 0.0
        return Step(messages=messages, done=done, reward=reward + carried, metrics=dict(self._metrics))

    def _not_understood(self, why: str) -> Step:
        self._wrong += 1
        self._metrics["invalid"] += 1
        done = self._wrong >= self.invalid
        return self._step([] if done else [user(why)], done=done)

    async def _called(self, given: Any, *args: Any) -> Any:
        said = await self.shared.threads.run(given, *args)
        return await said if inspect.isawaitable(said) else said

    async def close(self) -> None:
        """Ends the session, which another rollout may be waiting for."""
        if self._session is not None:
            try:
                await self._end()
            finally:
                self.shared.places.left()

    async def _end(self) -> None:
        session, self._session = self._session, None
        await session.close()


def _messages(given: Any) -> Sequence[MessageLike]:
    """What a user's function tells the model."""
    if isinstance(given, str):
        return [user(given)]
    return given if isinstance(given, list | tuple) else [given]
