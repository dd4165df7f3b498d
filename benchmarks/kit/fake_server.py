"""A server that does nothing but answer well-formed bodies, as fast as it can, in vLLM's dialect.

    python -m benchmarks.kit.fake_server

Reads one JSON line, `Script`, from standard input, answers its port on standard output, and ends with its parent.
Every completion is the same, and so is what a turn adds to a prompt. Nothing is decoded that need not be.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import msgspec

MODEL = "fake"
GENERATE = b"/inference/v1/generate"


class Script(msgspec.Struct):
    """What it answers."""

    prompt_ids: list[int]
    """Of the first message-in prompt."""
    added_ids: list[int]
    """What a completion and the reply to it add to a prompt: the ids that token-in would send."""
    completion_ids: list[int]
    text: str
    later: list[list[int]] = []
    """What the second, third and later turns of a conversation sample, where that is not the same."""


class Answers:
    """The bodies, made once."""

    def __init__(self, script: Script) -> None:
        usage = {"prompt_tokens": 100, "completion_tokens": len(script.completion_ids)}
        whole, first = script.completion_ids, script.completion_ids[:1]
        self.models = _ok({"data": [{"id": MODEL, "owned_by": "vllm", "max_model_len": 1_000_000}]})
        self.version = _ok({"version": "0.0-fake"})
        self.openapi = _ok({"paths": {"/inference/v1/generate": {}, "/v1/chat/completions": {}}})
        self.well = _ok({})
        self.generate_one = _ok(_generated(first, usage))
        self._generate = [_ok(_generated(ids, usage)) for ids in script.later or [whole]]
        self._next = 0
        self._script, self._usage = script, usage
        self._chats: dict[tuple[int, bool], bytes] = {}

    def of(self, path: bytes, body: bytes) -> bytes:
        """The answer to a request. A probe asks for one token or two, and the first is its stop token."""
        short = b'"max_tokens":1,' in body or b'"max_tokens":2,' in body or b'"max_tokens":1}' in body
        if path == GENERATE:
            return self.generate_one if short or b'"max_tokens":2}' in body else self._later()
        if path == b"/v1/chat/completions":
            self._next = 0
            return self._chat(body.count(b'"role"') // 2, short)
        if path == b"/v1/models":
            return self.models
        if path == b"/version":
            return self.version
        return self.openapi if path == b"/openapi.json" else self.well

    def _later(self) -> bytes:
        """The next completion. With several, one conversation is played at a time, and begins by a chat."""
        made = self._generate[self._next % len(self._generate)]
        self._next += 1
        return made

    def _chat(self, turn: int, short: bool) -> bytes:
        """The answer to a conversation of so many turns, made at its first time."""
        if (made := self._chats.get((turn, short))) is None:
            script = self._script
            ids = script.completion_ids[:1] if short else script.completion_ids
            prompt = script.prompt_ids + turn * script.added_ids
            made = self._chats[turn, short] = _ok(_chatted(ids, script.text, prompt, self._usage))
        return made


class Connection(asyncio.Protocol):
    """One connection: httptools parses, the answer goes out when the body is whole."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        parts, self._parts = self._parts, []
        # What tells a probe from a turn is at neither end alone: the ids are in between.
        whole = self._path != GENERATE or sum(map(len, parts)) < 2_000
        body = b"".join(parts) if whole else parts[-1][-1_000:]
        self._transport.write(self._answers.of(self._path, body))


def _generated(ids: list[int], usage: dict[str, int]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [
        {"token": f"token_id:{i}", "logprob": -0.5, "bytes": None, "token_id": i} for i in ids
    ]
    choice = {"index": 0, "token_ids": ids, "finish_reason": "stop", "logprobs": {"content": content}}
    return {"request_id": "r", "choices": [choice], "usage": usage}


def _chatted(ids: list[int], text: str, prompt_ids: list[int], usage: dict[str, int]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []} for _ in ids]
    message = {"role": "assistant", "content": text}
    choice = {
        "index": 0,
        "message": message,
        "token_ids": ids,
        "finish_reason": "stop",
        "logprobs": {"content": content},
    }
    return {"id": "r", "choices": [choice], "usage": usage, "prompt_token_ids": prompt_ids}


def _ok(body: dict[str, Any]) -> bytes:
    content = msgspec.json.encode(body)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _main() -> None:
    loop = asyncio.get_running_loop()
    line = await loop.run_in_executor(None, sys.stdin.readline)
    answers = Answers(msgspec.json.decode(line, type=Script))
    server = await loop.create_server(lambda: Connection(answers), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the parent closes it
    server.close()


if __name__ == "__main__":
    asyncio.run(_main())
