"""What being watched costs a turn: the counters that it adds to, and a scrape each second while it is played.

    python -m benchmarks.metrics [--rounds 6] [--rollouts 64] [--turns 16] [--check]

Against the server of `benchmarks.client`, which only answers. In each round, in turn: the engine plays unwatched, and
with `rollout.observe.prometheus` scraped once a second, fifteen times as often as Prometheus does. A round's ratio is
that of the CPU of both; the median of the rounds is printed, beside the spread, which is the machine's. What a turn
adds to the counters cannot be left out of a run, so it is timed alone: `Played.add_turn` and `Tally.answer`, 100,000
times.

`--check` fails where the counters take more than 2% of a turn, or a scrape's CPU at Prometheus' usual 15 seconds does.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
import urllib.request
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import anyio
import anyio.to_thread

from benchmarks.client import Replies, engine_config, fake_server, make_script, play_cost, warm_up
from rollout import Engine
from rollout.observe.prometheus import StatsCollector, serve
from rollout.observe.stats import Played
from rollout.records import Route, Turn
from rollout.servers.tally import Tally

#: What being watched may take of a turn's CPU.
MOST_SHARE = 0.02

#: Seconds between two scrapes, here and as Prometheus has it.
EVERY_S, USUAL_S = 1.0, 15.0

_COUNTED = 100_000


class Costs(NamedTuple):
    """CPU, seconds."""

    turn_s: float
    """Of one turn, unwatched."""
    counters_s: float
    """Of what a turn adds to the counters."""
    scrape_s: float
    """Of one scrape."""
    ratios: list[float]
    """Watched by unwatched, round by round."""


def counters_s() -> float:
    """The least of five tries: what else the machine does can only add to it."""
    turn = Turn(route=Route.TOKEN_IN, prompt_tokens=900, completion_tokens=32, cached_tokens=800, request_s=0.5)
    played, tally, least = Played(), Tally(), float("inf")
    for _ in range(5):
        started = time.process_time()
        for _ in range(_COUNTED):
            played.add_turn(turn)
            tally.answer(0.5)
        least = min(least, (time.process_time() - started) / _COUNTED)
    return least


async def scraped(engine: Engine, url: str) -> None:
    """Scrapes until it is cancelled."""
    while True:
        await anyio.to_thread.run_sync(_get, url)
        await anyio.sleep(EVERY_S)


def _get(url: str) -> None:
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()


async def measured(url: str, rounds: int, rollouts: int, turns: int) -> Costs:
    """One engine, which plays unwatched and watched, in turn."""
    unwatched: list[float] = []
    watched: list[float] = []
    async with Engine(engine_config(url, rollouts, "tito"), partial(Replies, turns)) as engine:
        await warm_up(engine, rollouts)
        with serve(StatsCollector(engine.stats), port=0) as metrics:
            for _ in range(rounds):
                unwatched.append((await play_cost(engine, rollouts, turns)).cpu_s)
                async with anyio.create_task_group() as beside:
                    beside.start_soon(scraped, engine, metrics)
                    watched.append((await play_cost(engine, rollouts, turns)).cpu_s)
                    beside.cancel_scope.cancel()
            started = time.process_time()
            for _ in range(20):
                await anyio.to_thread.run_sync(_get, metrics)
            scrape_s = (time.process_time() - started) / 20
    ratios = [with_it / without for with_it, without in zip(watched, unwatched, strict=True)]
    return Costs(min(unwatched) / (rollouts * turns), counters_s(), scrape_s, ratios)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--check", action="store_true", help="fail where it takes more than 2%% of a turn")
    options = parser.parse_args(argv)
    with fake_server(make_script()) as url:
        costs = asyncio.run(measured(url, options.rounds, options.rollouts, options.turns))
    share, usual = costs.counters_s / costs.turn_s, costs.scrape_s / USUAL_S
    print("| what | CPU | of a turn's, or of a core |\n|---|---|---|")
    print(f"| a turn, unwatched | {1e6 * costs.turn_s:,.0f} µs | |")
    print(f"| its counters | {1e6 * costs.counters_s:.2f} µs | {share:.2%} |")
    print(f"| a scrape, both ends | {1e3 * costs.scrape_s:.1f} ms | {usual:.3%} of a core at one in {USUAL_S:g} s |")
    spread = f"{min(costs.ratios):.3f} to {max(costs.ratios):.3f}"
    print(f"| watched by unwatched, a scrape each second | ratio {statistics.median(costs.ratios):.3f} | {spread} |")
    if options.check and max(share, usual) > MOST_SHARE:
        print(f"being watched takes more than {MOST_SHARE:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
