"""What the proxy costs: its CPU per turn beyond `model.chat`, for agents of Claude Code's size.

    python -m benchmarks.proxy [--messages 10 100 1000] [--agents 1 256] [--turns 4]

64 kB of tools and messages of about 1 kB, streamed, by the Messages dialect: at 100 messages a request has 160 kB. The
clients are in a process of their own, and all agents ask at once. In place of `model.chat` stands one that answers at
once, so that all CPU of this process is the proxy's: the connection, the request's headers and body, its reading, the
turn, and its answer. Each agent's first request brings its whole history and is not counted; the counted ones are the
next turns, which bring two messages more each. `per kB` is what each further kB adds that was seen before, between
this row and the one above it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from typing import Any

import aiohttp

from benchmarks.dialects import answer
from benchmarks.kit.agents import ClaudeCode, question
from rollout.chat.messages import Message
from rollout.config import EngineConfig
from rollout.dialects.types import Call
from rollout.loop.collector import infrequent_full_gc
from rollout.play.model import Asking, RolloutModel
from rollout.play.session import Ask
from rollout.proxy.endpoints import HttpEndpoints
from rollout.records import Route, Turn
from rollout.transport import ServerInfo

#: What a turn and a further kB may cost.
MOST_MS, MOST_US_PER_KB = 2.0, 4.0


class _Session:
    """What the proxy sees of a session."""

    server = ServerInfo(dialect="vllm", model="our-model", token_route="/inference/v1/generate")

    def __init__(self) -> None:
        self.turns: list[Turn] = []


class _AnswersAtOnce(Asking):
    """A rollout whose model answers at once: a call of a tool, of about 1 kB."""

    def __init__(self) -> None:
        self.session = _Session()  # type: ignore[assignment]  # all of it that is asked here

    async def turn(self, ask: Ask) -> tuple[Message, int]:
        turns = self.session.turns
        turns.append(Turn(route=Route.TOKEN_IN, prompt_tokens=1, completion_tokens=1))
        call = Call(model="", messages=[], tools=ask.tools)
        return answer(call, len(turns)).message, len(turns) - 1


async def measured(messages: int, agents: int, turns: int) -> tuple[float, float]:
    """(ms of CPU of a turn, kB of its request)."""
    async with HttpEndpoints(EngineConfig()) as endpoints:
        opened = [endpoints.open(RolloutModel(_AnswersAtOnce())) for _ in range(agents)]
        arguments = ["--clients", opened[0].base_url, "--messages", str(messages), "--turns", str(turns)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.proxy", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([each.api_key for each in opened]).encode() + b"\n")
        await process.stdout.readline()  # every agent's history was read
        with infrequent_full_gc():
            before = time.process_time()
            process.stdin.write(b"go\n")
            size = float(await process.stdout.readline())
            took = time.process_time() - before
        process.stdin.close()
        await process.wait()
    return 1e3 * took / (agents * turns), size / 1e3


async def play(url: str, keys: list[str], messages: int, turns: int) -> None:
    """The clients."""
    agents = [ClaudeCode() for _ in keys]
    for agent in agents:
        for at in range(1, messages - 1, 2):
            agent.messages.append({"role": "assistant", "content": [{"type": "text", "text": question(at)}]})
            agent.messages.append({"role": "user", "content": [{"type": "text", "text": question(at + 1)}]})
    size = 0
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def turn(agent: ClaudeCode, key: str, body: bytes) -> None:
            async with session.post("/v1/messages", data=body, headers={"x-api-key": key}) as response:
                agent.answered(_content(await response.read()))

        for number in range(turns + 1):
            bodies = [agent.body() for agent in agents]
            size = len(bodies[0])
            if number == 1:
                print("ready", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
            await asyncio.gather(*map(turn, agents, keys, bodies))
    print(size, flush=True)


def _content(stream: bytes) -> list[dict[str, Any]]:
    """The blocks of a streamed answer, as Anthropic's SDK puts them together."""
    blocks: list[dict[str, Any]] = []
    parts: dict[int, str] = {}
    names = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
    for line in stream.split(b"\n"):
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            if name := names.get(delta["type"]):
                block[name] = block.get(name, "") + delta[name]
            else:
                parts[event["index"]] = parts.get(event["index"], "") + delta["partial_json"]
    for at, text in parts.items():
        blocks[at]["input"] = json.loads(text)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, nargs="*", default=[10, 100, 1_000])
    parser.add_argument("--agents", type=int, nargs="*", default=[1, 256])
    parser.add_argument("--turns", type=int, default=4, help="counted turns of each agent")
    parser.add_argument("--clients", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients:
        keys = json.loads(sys.stdin.readline())
        asyncio.run(play(options.clients, keys, options.messages[0], options.turns))
        return
    print(
        f"| agents | messages | kB | ms of CPU, {MOST_MS:g} at 100 messages | µs per kB, {MOST_US_PER_KB:g} at most |"
    )
    print("|---|---|---|---|---|")
    before: tuple[float, float] | None = None
    for agents, messages in itertools.product(options.agents, options.messages):
        turns = options.turns if agents > 16 else 8 * options.turns  # a process' clock is coarse
        cost, size = min(asyncio.run(measured(messages, agents, turns)) for _ in range(2))
        more = "" if before is None or size < before[1] else f"{1e3 * (cost - before[0]) / (size - before[1]):.2f}"
        print(f"| {agents} | {messages} | {size:.0f} | {cost:.2f} | {more} |", flush=True)
        before = cost, size


if __name__ == "__main__":
    main()
