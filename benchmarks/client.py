"""The client's own cost: user and system CPU per turn, against a server that costs nothing to wait for.

    python -m benchmarks.client [--mode tito --mode mito] [--repeats 3] [--shape 64x8 ...] [--check | --record]
    python -m benchmarks.client --families [--only qwen3 ...] [--repeats 3] [--contexts 600,5000,20000] [--record]

In the same run, in turn: our engine, and the floor, which is a bare loop of aiohttp and msgspec that encodes, sends
and decodes the same bodies without any of our logic. Completions of 32 tokens, replies of 400 characters, Qwen3's
format. Each figure is the least of its repeats: what else a machine does can only add to it. Read the ratio: absolute
times move from machine to machine, and the ratio by a third. The calls of a turn, which Python counts, are the same on
every machine and differ by the versions of Python and of the packages alone.

`--check` fails where a turn makes more calls by a tenth than `--record` wrote into `ratios.json`, or where its ratio is
worse by more than half and stays so when it is measured again. `--families` measures one turn behind the other with
every family of the kit, at prompts of several lengths: see `benchmarks/families.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
from transformers import AutoTokenizer

from benchmarks.kit.fake_server import MODEL, Script
from envs.echo import filler
from rollout import Engine, EngineConfig, Env, Message, Step, user
from rollout.loop.collector import infrequent_full_gc
from rollout.records import Rollout
from rollout.request import MessagePrompt, Request, TokenPrompt
from transports.embedded import MODEL_DIR
from transports.vllm.wire import CHAT, GENERATE, chat_body, generate_body

#: Rollouts by turns, all at once, and the CPU per turn to reach, ms. The reference client took 10.6, 7.3, 19.8, 11.4.
SHAPES = {(64, 8): 0.5, (16, 32): 0.5, (4, 128): 0.7, (512, 4): 0.5}
COMPLETION_TOKENS = 32
#: What ratios and calls were when somebody last looked, by mode and shape; and how much more is too much.
RATIOS = Path(__file__).with_name("ratios.json")
TOO_MUCH = 1.5
TOO_MANY = 1.1
#: How often a row that looks worse is measured again before it counts: noise passes, a slower client does not.
SECOND_LOOKS = 3
REPLY = filler(400)
OPENING = "Begin."


class Replies(Env):
    """The same reply again and again."""

    def __init__(self, turns: int) -> None:
        self._turns = turns

    async def reset(self, task: Any) -> list[Message]:
        self.turn = 0
        return [user(OPENING)]

    async def step(self, message: Message) -> Step:
        self.turn += 1
        return Step(messages=[user(REPLY)], done=self.turn == self._turns)


def make_script(context: int = 0, tokens: int = COMPLETION_TOKENS) -> Script:
    """What the server answers: an ordinary sentence of so many tokens, its stop token included.

    `context` is how many tokens the server says that the first prompt has, where that is more than it has.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL_DIR))
    ids = tokenizer.encode(filler(12 * tokens))[: tokens - 1]
    opening = [{"role": "user", "content": OPENING}]
    prompt = tokenizer.apply_chat_template(opening, add_generation_prompt=True, return_dict=False)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = tokenizer.decode(ids)
    turn = [{"role": "assistant", "content": text}, {"role": "user", "content": REPLY}]
    later = tokenizer.apply_chat_template([*opening, *turn], add_generation_prompt=True, return_dict=False)
    # The reply's own text and the next generation prompt: what comes behind the stop token of the turn.
    behind = later[len(later) - later[::-1].index(stop, later[::-1].index(stop) + 1) :]
    prompt = [*([5] * max(0, context - len(prompt))), *prompt]
    return Script(prompt_ids=prompt, completion_ids=[*ids, stop], added_ids=[*ids, stop, *behind], text=text)


@contextlib.contextmanager
def fake_server(script: Script) -> Iterator[str]:
    """The server in its own process."""
    command = [sys.executable, "-m", "benchmarks.kit.fake_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(script).decode() + "\n")
        process.stdin.flush()
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


class Cost(NamedTuple):
    """What a run took."""

    cpu_s: float
    """Of all the client's processes, but for their start."""
    wall_s: float
    rollout: Rollout
    """One of those that were played."""
    lag_p99_s: float
    """How late the event loop was."""
    peak_rss_mb: float


def engine_config(url: str, rollouts: int, mode: str, processes: int = 1) -> EngineConfig:
    """All rollouts at once."""
    return EngineConfig(
        transport="vllm",
        base_url=url,
        tokenizer=str(MODEL_DIR),
        mode=mode,  # type: ignore[arg-type]  # argparse has checked it
        concurrency=rollouts,
        max_tokens=COMPLETION_TOKENS,
        processes=processes,
    )


async def warm_up(engine: Engine, rollouts: int) -> None:
    """Opens connections and meets the code for the first time, before any clock starts."""
    async for _ in engine.stream([{"n": n} for n in range(min(16 * engine.config.processes, rollouts))]):
        pass


async def play_cost(engine: Engine, rollouts: int, turns: int) -> Cost:
    """Plays conversations of the same replies, all at once."""
    with infrequent_full_gc():
        before, wall, last = engine.stats().cpu_s, time.perf_counter(), None
        async for group in engine.stream([{"n": n} for n in range(rollouts)]):
            (last,) = group.rollouts
            assert last.ok, last.failure
            assert len(last.turns) == turns
        wall_s, stats = time.perf_counter() - wall, engine.stats()
    assert last is not None
    return Cost(stats.cpu_s - before, wall_s, last, stats.loop_lag_p99_s, stats.peak_rss_mb)


async def engine_cost(config: EngineConfig, rollouts: int, turns: int) -> Cost:
    """The same, with an engine of its own."""
    async with Engine(config, partial(Replies, turns)) as engine:
        await warm_up(engine, rollouts)
        return await play_cost(engine, rollouts, turns)


class BareAnswer(msgspec.Struct):
    """What a bare loop reads: the ids and their logprobs."""

    choices: list[Any]


def bodies_of(rollout: Rollout) -> list[tuple[str, dict[str, Any]]]:
    """The paths and bodies of a rollout's requests, as our transport makes them."""
    bodies = []
    tree = rollout.trajectory
    for number, turn in enumerate(rollout.turns):
        ids, _ = tree.turn_ids(turn.node)
        token_in = turn.route == "token_in"
        messages = rollout.messages[: 1 + 2 * number]
        request = Request(
            prompt=TokenPrompt(ids) if token_in else MessagePrompt(messages=messages),
            request_id="r",
            session_id="s",
            max_tokens=COMPLETION_TOKENS,
        )
        bodies.append((GENERATE, generate_body(request, MODEL)) if token_in else (CHAT, chat_body(request, MODEL)))
    return bodies


async def floor_cpu_s(url: str, rollouts: int, bodies: Sequence[tuple[str, dict[str, Any]]]) -> float:
    """CPU of the same requests without any of our logic."""
    encode, decoder = msgspec.json.encode, msgspec.json.Decoder(BareAnswer)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=rollouts)) as session:

        async def play(bodies: Sequence[tuple[str, dict[str, Any]]]) -> None:
            for path, body in bodies:
                async with session.post(url + path, data=encode(body), headers=headers) as answer:
                    decoder.decode(await answer.read())

        await asyncio.gather(*(play(bodies[:2]) for _ in range(min(16, rollouts))))
        with infrequent_full_gc():
            started = time.process_time()
            await asyncio.gather(*(play(bodies) for _ in range(rollouts)))
        return time.process_time() - started


class Recorded(msgspec.Struct):
    """What a row was when somebody last looked."""

    ratio: float
    calls: int


async def calls_of(engine: Engine, rollouts: int, turns: int) -> int:
    """The calls of a turn: of Python's functions and of those in C, in the thread of the event loop."""
    profile = cProfile.Profile()
    profile.enable()
    await play_cost(engine, rollouts, turns)
    profile.disable()
    calls: int = sum(entry.callcount for entry in profile.getstats())
    return round(calls / (rollouts * turns))


class Row:
    """What a turn costs in one mode and shape, ms, by repeat: ours and the floor's, in turn."""

    def __init__(self, url: str, mode: str, rollouts: int, turns: int) -> None:
        self.url, self.mode, self.rollouts, self.turns = url, mode, rollouts, turns
        self.ours: list[float] = []
        self.floors: list[float] = []
        self.lags: list[float] = []
        """The loop's lag, ms: the 99th percentile."""
        self.calls = 0
        """Of a turn."""

    @property
    def name(self) -> str:
        return f"{self.mode} {self.rollouts}x{self.turns}"

    @property
    def ratio(self) -> float:
        """Ours in bare loops."""
        return round(min(self.ours) / min(self.floors), 2)

    async def measure(self, repeats: int) -> None:
        """Adds repeats: one engine plays, and a bare loop, and the engine again."""
        config, turns = engine_config(self.url, self.rollouts, self.mode), self.rollouts * self.turns
        async with Engine(config, partial(Replies, self.turns)) as engine:
            await warm_up(engine, self.rollouts)
            bodies: list[tuple[str, dict[str, Any]]] = []
            for _ in range(repeats):
                cost = await play_cost(engine, self.rollouts, self.turns)
                self.ours.append(1e3 * cost.cpu_s / turns)
                if not bodies:  # making them blocks the loop, which is not ours to answer for
                    self.lags.append(1e3 * cost.lag_p99_s)
                    bodies = bodies_of(cost.rollout)
                self.floors.append(1e3 * await floor_cpu_s(self.url, self.rollouts, bodies) / turns)
            self.calls = await calls_of(engine, self.rollouts, self.turns)

    def markdown(self) -> str:
        pairs = [ours / floor for ours, floor in zip(self.ours, self.floors, strict=True)]
        reach = SHAPES.get((self.rollouts, self.turns))
        cells = [
            self.mode,
            f"{self.rollouts} x {self.turns}",
            f"{min(self.ours):.2f}",
            f"{min(self.floors):.2f}",
            f"{self.ratio:.1f}",
            f"{min(pairs):.1f} to {max(pairs):.1f}",
            f"{reach:g} ms, ratio 4" if reach else "",
            f"{self.calls:,}",
            f"{statistics.median(self.lags):.0f}",
        ]
        return f"| {' | '.join(cells)} |"


HEAD = (
    "mode",
    "rollouts x turns",
    "client, ms/turn",
    "bare loop, ms/turn",
    "ratio",
    "pairs",
    "reach",
    "calls",
    "loop lag p99, ms",
)


def is_slower(row: Row, recorded: Mapping[str, Recorded]) -> bool:
    """By more than half than it was; or never recorded."""
    return row.name not in recorded or row.ratio > TOO_MUCH * recorded[row.name].ratio


def faults_of(row: Row, recorded: Mapping[str, Recorded]) -> list[str]:
    """What of a row is worse than recorded."""
    if row.name not in recorded:
        return [f"{row.name}: never recorded"]
    was = recorded[row.name]
    found = [f"{row.name}: {row.ratio:.1f} bare loops, recorded {was.ratio}"] if is_slower(row, recorded) else []
    if row.calls > TOO_MANY * was.calls:
        found.append(f"{row.name}: {row.calls} calls a turn, recorded {was.calls}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["tito", "mito"], action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", action="append", help="rollouts x turns, such as 64x8")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is much worse than recorded")
    parser.add_argument(
        "--record", action="store_true", help="write the ratios for later checks, or the families' page"
    )
    parser.add_argument(
        "--families", action="store_true", help="a turn of each family of the kit: benchmarks/families.py"
    )
    parser.add_argument("--only", action="append", metavar="FAMILY", help="of the families, this one")
    parser.add_argument("--contexts", default="600,5000,20000", help="ids of a prompt at which families are measured")
    options = parser.parse_args(argv)
    if options.families:
        from benchmarks import families  # it takes from this module

        if unknown := set(options.only or ()) - set(families.names()):
            parser.error(f"no family {sorted(unknown)[0]!r}; there are: {', '.join(families.names())}")
        contexts = [int(one) for one in options.contexts.split(",")]
        return families.run(options.only or (), contexts, options.repeats, record=options.record)
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shape or ()] or list(SHAPES)
    recorded = msgspec.json.decode(RATIOS.read_bytes(), type=dict[str, Recorded]) if RATIOS.exists() else {}
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    with fake_server(make_script()) as url:
        rows = [Row(url, mode, *shape) for mode, shape in itertools.product(options.mode or ["tito", "mito"], shapes)]
        for row in rows:
            asyncio.run(row.measure(options.repeats))
            for _ in range(SECOND_LOOKS if options.check else 0):
                if is_slower(row, recorded):
                    asyncio.run(row.measure(options.repeats))
            print(row.markdown(), flush=True)
    if options.record:
        found = {row.name: Recorded(row.ratio, row.calls) for row in rows}
        RATIOS.write_bytes(msgspec.json.format(msgspec.json.encode(recorded | found), indent=2) + b"\n")
    if options.check and (faults := [fault for row in rows for fault in faults_of(row, recorded)]):
        print("\n".join(["worse than recorded:", *faults]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
