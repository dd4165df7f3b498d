"""What a turn costs the client with each family of the kit, and how that grows with the context.

    python -m benchmarks.client --families [--only qwen3 ...] [--repeats 3] [--contexts 600,5000,20000] [--record]

A conversation of a family goes through the real session, codec and transport to the fake server, one turn behind the
other, until its prompt is longer than the longest context: replies of 400 characters, as a user's message and as the
result of a tool, and the family's own way to say 32 tokens and to call. CPU is measured around the bridge, around
reading the answer, and around the whole turn; and around a bare loop that sends the same bodies, in the same run. The
first conversation pays for what is found out once, and is left out of the rest. A figure is the median of a few turns
at that context, and the least of the repeats: what else a machine does can only add to it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.client import BareAnswer, fake_server
from benchmarks.kit.fake_server import MODEL, Script
from benchmarks.kit.families import Family, all_families, make_family
from benchmarks.kit.shapes import TOOLS, calls
from envs.echo import filler
from rollout.chat.messages import Message, user
from rollout.codec.local import LocalCodec
from rollout.codec.types import Bridged, Context, Declined, Previous
from rollout.config import EngineConfig
from rollout.loop.collector import infrequent_full_gc
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.records import Route
from rollout.request import MessagePrompt, Reply, Request
from rollout.transport import Transport, TransportConfig
from transports.vllm.transport import open as open_vllm
from transports.vllm.wire import CHAT, GENERATE, chat_body, generate_body

CONTEXTS = (600, 5_000, 20_000)
COMPLETION_TOKENS = 32
REPLY = filler(400)

#: Turns behind a context that are measured.
_WINDOW = 6

#: Turns in all, where nothing else ends a conversation: a family that is not extended has prompts that do not grow.
_MOST_TURNS = 400

PAGE = Path(__file__).with_name("FAMILIES.md")
HEAD = """# What a turn costs the client, by family

Made by `python -m benchmarks.client {command}` at commit {commit}, Linux, {cores} cores that others used, too.

Milliseconds of CPU at prompts of so many ids; the bare loop sends and decodes the same bodies without any of our
logic, in the same run. *Grows* is bridge and reading at the longest prompt over those at the shortest; *once* is what
the first conversation paid for proofs and patterns; *token-in* the share of later turns. How it is measured:
`benchmarks/families.py`.
"""

#: A family whose bridge and reading cost so many times more at the longest context than at the shortest is not flat.
GROWS = 1.5


class Cost(msgspec.Struct):
    """CPU of one turn, seconds."""

    ids: int
    """Of its prompt."""
    bridge_s: float
    read_s: float
    turn_s: float
    request: Request


class Metered(LocalCodec):
    """Adds up what bridging and reading cost."""

    bridge_s = read_s = 0.0

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        started = time.process_time()
        found = await super().extend(previous, tail, context)
        self.bridge_s += time.process_time() - started
        return found

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message:
        started = time.process_time()
        message = await super().parse(prompt_ids, completion_ids, context)
        self.read_s += time.process_time() - started
        return message


class Kept(Transport):
    """Keeps the last request, for the bare loop to send again."""

    request: Request

    def __init__(self, inner: Transport) -> None:
        self.info, self._inner = inner.info, inner

    async def generate(self, request: Request) -> Reply:
        self.request = request
        return await self._inner.generate(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def completions(family: Family, called: bool) -> list[list[int]]:
    """What the model samples, turn after turn: one where all are the same, else one for each call id."""
    opening, tools = [user("Begin.")], TOOLS if called else []
    if not called:
        text = family.tokenizer.decode(family.tokenizer.encode(REPLY)[: COMPLETION_TOKENS - 1])
        return [family.sampled(opening, Message("assistant", text.strip()), tools)]
    made = []
    for number in range(_MOST_TURNS):
        said = calls("weather")
        numbered = msgspec.structs.replace(said.tool_calls[0], id=f"call{number:05d}")
        made.append(family.sampled(opening, msgspec.structs.replace(said, tool_calls=(numbered,)), tools))
        if number == 1 and made[0] == made[1]:
            return made[:1]
    return made


class Table:
    """One family's turns, with calls or without: what they cost at each context, ms."""

    def __init__(self, name: str, called: bool, contexts: Sequence[int]) -> None:
        self.name, self.called, self.contexts = name, called, contexts
        self.bridge, self.read, self.turn, self.floor = ([float("inf")] * len(contexts) for _ in range(4))
        self.once_ms = 0.0
        """What the first conversation's bridges cost beyond another's: what is proved and learnt once."""
        self.token_in = 0.0
        """Share of later turns."""

    @property
    def growth(self) -> float:
        """Bridge and reading at the longest context, of those at the shortest."""
        return (self.bridge[-1] + self.read[-1]) / (self.bridge[0] + self.read[0])

    async def measure(self, repeats: int) -> None:
        """Plays a conversation that pays for what is found out once, and then so many that are measured."""
        family = make_family(self.name)
        tools, made = TOOLS if self.called else [], completions(family, self.called)
        prompt = family.render([user("Begin.")], tools)
        added = [*made[0], *family.tokenizer.encode(REPLY)]
        script = Script(prompt_ids=prompt, added_ids=added, completion_ids=made[0], text="x", later=made[1:])
        with fake_server(script) as url:
            transport = Kept(await open_vllm(TransportConfig(base_url=url)))
            codec = Metered(family.lane, self.name)
            config = EngineConfig(max_tokens=COMPLETION_TOKENS)
            model = ServedModel(transport=transport, info=transport.info, codec=codec, config=config)
            with infrequent_full_gc():
                first = await self._play(model, codec, transport, tools)
                for _ in range(repeats):
                    costs = await self._play(model, codec, transport, tools)
                    await self._take(costs, url)
            self.once_ms = 1e3 * sum(one.bridge_s - two.bridge_s for one, two in zip(first, costs, strict=False))
            await transport.aclose()

    async def _play(
        self, model: ServedModel, codec: Metered, kept: Kept, tools: Sequence[Mapping[str, Any]]
    ) -> list[Cost]:
        session = Session(model, self.name)
        messages, costs, until = [user("Begin.")], list[Cost](), _WINDOW
        while until and len(costs) < _MOST_TURNS:
            before, started = (codec.bridge_s, codec.read_s), time.process_time()
            message = await session.turn(messages, tools=tools)
            turn_s = time.process_time() - started
            ids = session.turns[-1].prompt_tokens
            costs.append(Cost(ids, codec.bridge_s - before[0], codec.read_s - before[1], turn_s, kept.request))
            messages = [*messages, message, *self._answer(message, len(costs))]
            until -= ids >= self.contexts[-1]
        later = session.turns[1:]
        self.token_in = sum(turn.route is Route.TOKEN_IN for turn in later) / len(later)
        session.close()
        return costs

    def _answer(self, message: Message, number: int) -> list[Message]:
        if not self.called:
            return [user(REPLY)]
        ids = [call.id for call in message.tool_calls] or [f"call{number:05d}"]
        return [Message("tool", REPLY, tool_call_id=one, name="weather") for one in ids]

    async def _take(self, costs: Sequence[Cost], url: str) -> None:
        """Takes what is less than before."""
        async with aiohttp.ClientSession() as session:
            for at, context in enumerate(self.contexts):
                start = next((i for i, cost in enumerate(costs) if cost.ids >= context), len(costs) - _WINDOW)
                window = costs[max(1, start) : max(1, start) + _WINDOW]
                for kept, values in (
                    (self.bridge, [cost.bridge_s for cost in window]),
                    (self.read, [cost.read_s for cost in window]),
                    (self.turn, [cost.turn_s for cost in window]),
                    (self.floor, [await floor_s(session, url, cost.request) for cost in window]),
                ):
                    kept[at] = min(kept[at], 1e3 * statistics.median(values))

    def markdown(self) -> str:
        ratios = [turn / floor for turn, floor in zip(self.turn, self.floor, strict=True)]
        cells = [
            self.name,
            *(f"{value:.2f}" for value in self.bridge),
            *(f"{value:.2f}" for value in self.read),
            *(f"{value:.2f}" for value in self.turn),
            *(f"{value:.1f}" for value in ratios),
            f"{self.growth:.1f}" if self.growth < GROWS else f"**{self.growth:.1f}**",
            f"{max(0.0, self.once_ms):.0f}",
            f"{100 * self.token_in:.0f}%",
        ]
        return f"| {' | '.join(cells)} |"


async def floor_s(session: aiohttp.ClientSession, url: str, request: Request) -> float:
    """CPU of sending and decoding the same body without any of our logic."""
    by_messages = isinstance(request.prompt, MessagePrompt)
    path, body = (CHAT, chat_body(request, MODEL)) if by_messages else (GENERATE, generate_body(request, MODEL))
    started = time.process_time()
    headers = {"content-type": "application/json"}
    async with session.post(url + path, data=msgspec.json.encode(body), headers=headers) as answer:
        msgspec.json.decode(await answer.read(), type=BareAnswer)
    return time.process_time() - started


def head(contexts: Sequence[int]) -> str:
    """The table's first lines."""
    names = ["bridge, ms", "read, ms", "turn, ms", "turn, in bare loops"]
    columns = [f"{name}, at {context:,}" for name in names for context in contexts]
    cells = ["family", *columns, "grows", "once, ms", "token-in"]
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def names() -> list[str]:
    """Every family of the kit."""
    return list(itertools.chain.from_iterable(all_families().values()))


def shown(text: str) -> str:
    """Prints a line at once, and gives it back."""
    print(text, flush=True)
    return text


def run(only: Sequence[str], contexts: Sequence[int], repeats: int, *, record: bool = False) -> int:
    """Measures and prints, family by family, and says what is not flat. `record` writes what was printed to `PAGE`."""
    lines, measured = list[str](), list[Table]()
    for called, title in ((False, "Replies of a user"), (True, "Results of a tool, behind answers that call it")):
        lines.append(shown(f"\n## {title}\n\n{head(contexts)}"))
        for name in only or names():
            table = Table(name, called, contexts)
            asyncio.run(table.measure(repeats))
            measured.append(table)
            lines.append(shown(table.markdown()))
    lines.append(shown(f"\n{summary(measured)}"))
    if record:
        PAGE.write_text(
            HEAD.format(command=shlex.join(sys.argv[1:]), commit=commit(), cores=os.cpu_count())
            + "\n".join(lines)
            + "\n"
        )
    return 0


def summary(measured: Sequence[Table]) -> str:
    """The least and the most of what extends, and what grows."""
    extended = [one for one in measured if one.token_in]
    bridge, read = (
        [value for one in extended for value in one.bridge],
        [value for one in extended for value in one.read],
    )
    steep = [f"{one.name}{' with calls' if one.called else ''}" for one in measured if one.growth >= GROWS]
    costs = (
        f"A bridge takes {min(bridge):.2f} to {max(bridge):.2f} ms, reading {min(read):.2f} to {max(read):.2f}. "
        if bridge
        else ""
    )
    return f"{costs}Growing by {GROWS:g} or more: {', '.join(steep) or 'none'}."


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=PAGE.parent, capture_output=True, text=True, check=False).stdout.strip()
