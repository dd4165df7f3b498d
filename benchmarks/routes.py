"""Why a mode is slower on a server: what one prompt costs it by each route, and what more of a prompt costs.

    python -m benchmarks.routes [vllm | embedded] [--at-once 16] [--rounds 4] [--lengths 300,500,600]

`rollout bench` plays conversations, in which the two modes have prompts of other lengths: templates drop earlier
reasoning, and token-in keeps what was sampled. Here both have the same prompt: one message, and the ids that the
server makes of it; each mode in turn, each round with a cache salt of its own, 32 tokens each. CPU is the server's, of
each of its processes, read from /proc: on a machine that others use, too, it says more than time does. For the
embedded model, which has no process of its own, it is this one's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from rollout.chat.messages import user
from rollout.request import MessagePrompt, Request, TokenPrompt
from rollout.transport import Transport, TransportConfig
from tests.live.servers import vllm_server
from transports.embedded import MODEL_DIR
from transports.embedded.transport import open as open_embedded
from transports.vllm.transport import open as open_vllm

TOKENS = 32
_TICKS_MS = 1e3 / os.sysconf("SC_CLK_TCK")


class Round(msgspec.Struct, frozen=True):
    """One mode's requests, all at once."""

    wall_ms: float
    """Per request, of all that ran beside it."""
    cpu_ms: Mapping[str, float]
    """Per request, by process."""
    cached: float
    """Share of the prompt."""

    @property
    def total_ms(self) -> float:
        return sum(self.cpu_ms.values())


def cpu_by_process(session: int) -> dict[str, float]:
    """User and system time of a session's processes, by name, ms."""
    found: defaultdict[str, float] = defaultdict(float)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            if int(fields[3]) == session:
                found[name] += _TICKS_MS * (int(fields[11]) + int(fields[12]))
    return dict(found)


@contextlib.asynccontextmanager
async def opened(kind: str) -> AsyncIterator[tuple[Transport, int | None]]:
    """The server, and the session of its processes; None where it has none."""
    if kind == "embedded":
        transport = await open_embedded(TransportConfig())
        yield transport, None
        await transport.aclose()
        return
    with tempfile.TemporaryDirectory() as folder, vllm_server(MODEL_DIR, Path(folder)) as server:
        transport = await open_vllm(TransportConfig(base_url=server.url))
        yield transport, server.pids[0]
        await transport.aclose()


async def play(
    transport: Transport, session: int | None, prompt: TokenPrompt | MessagePrompt, at_once: int, salt: str
) -> Round:
    """So many requests at once, four times: the first fill the cache, as a conversation's turn before did."""

    cached: list[float] = []

    async def one(number: int) -> None:
        reply = await transport.generate(
            Request(
                prompt=prompt,
                request_id=f"{salt}-{number}",
                session_id=salt,
                max_tokens=TOKENS,
                sampling={"min_tokens": TOKENS, "ignore_eos": True, "seed": number},
                cache_salt=salt,
            )
        )
        cached.append((reply.cached_tokens or 0) / (reply.prompt_tokens or len(reply.prompt_ids or [1])))

    def spent() -> dict[str, float]:
        return {"client and model": 1e3 * time.process_time()} if session is None else cpu_by_process(session)

    await one(0)
    before, started, requests = spent(), time.perf_counter(), 4 * at_once
    for part in range(4):
        await asyncio.gather(*(one(1 + part * at_once + at) for at in range(at_once)))
    wall, after = time.perf_counter() - started, spent()
    cpu = {name: (value - before.get(name, 0.0)) / requests for name, value in after.items()}
    return Round(1e3 * wall / requests, cpu, statistics.mean(cached[1:]))


def rows(name: str, length: int, pairs: Sequence[tuple[Round, Round]]) -> Iterator[str]:
    """Token-in, message-in, and their ratio, by round."""
    processes = dict.fromkeys(process for round in pairs[0] for process in round.cpu_ms if round.cpu_ms[process] > 0.05)
    for process in (*processes, "all"):
        cpu = [[one.total_ms if process == "all" else one.cpu_ms.get(process, 0.0) for one in pair] for pair in pairs]
        ratios = sorted(ids / messages for ids, messages in cpu if messages)
        ids, messages = (statistics.median(one[at] for one in cpu) for at in (0, 1))
        yield (
            f"| {name} | {length} | {process} | {ids:.2f} | {messages:.2f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    walls = sorted(ids.wall_ms / messages.wall_ms for ids, messages in pairs)
    shares = (f"{statistics.mean(pair[at].cached for pair in pairs):.0%} cached" for at in (0, 1))
    ratio = f"{statistics.median(walls):.2f} ({walls[0]:.2f} to {walls[-1]:.2f})"
    yield f"| {name} | {length} | time | {' | '.join(shares)} | {ratio} |"


async def measure(kind: str, lengths: Sequence[int], at_once: int, rounds: int) -> None:
    async with opened(kind) as (transport, session):
        print("| server | ids of the prompt | of it | token-in, ms of CPU a request | message-in | ratio, by round |")
        print("|---|---|---|---|---|---|", flush=True)
        for length in lengths:
            words = MessagePrompt(messages=[user("word " * (length - 10))])
            ids = TokenPrompt(await transport.tokenize(words, add_generation_prompt=True))
            pairs = []
            for number in range(rounds + 1):
                modes: list[TokenPrompt | MessagePrompt] = [ids, words]
                order = modes if number % 2 else modes[::-1]
                made = [
                    await play(transport, session, prompt, at_once, f"{length}-{number}-{at}")
                    for at, prompt in enumerate(order)
                ]
                if number:  # the first warms up
                    pairs.append((made[0], made[1]) if order is modes else (made[1], made[0]))
            print("\n".join(rows(kind, len(ids.ids), pairs)), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=["vllm", "embedded"], default="vllm")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--lengths", default="300,500,600", help="ids of a prompt, about")
    options = parser.parse_args(argv)
    lengths = [int(one) for one in options.lengths.split(",")]
    asyncio.run(measure(options.kind, lengths, options.at_once, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
