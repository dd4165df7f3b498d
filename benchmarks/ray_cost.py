"""What a rollout costs the engine's process, and what the worker that plays it: where one engine is the limit of many.

    python -m benchmarks.ray_cost [--launch local --launch ray] [--rollouts 256] [--repeats 3]

Two workers play against the server of `benchmarks.client`, which only answers; with `ray` they are actors of a cluster
that is started for it, so this runs where Ray is (`make live-ray` installs it). The engine's CPU is its process's own,
a worker's what workers say of theirs; each is the least of its repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from benchmarks.client import Replies, engine_config, fake_server, make_script, warm_up
from rollout import Engine
from rollout.loop.collector import infrequent_full_gc

#: Turns of a rollout, and tokens that each samples: as on the embedded model, and 8,000 tokens with its replies.
SIZES = {"embedded model's": (8, 32), "8,000 tokens": (8, 925)}

#: What the engine may take of what a worker takes.
MOST_SHARE = 0.25

HEAD = ("launch", "rollouts", "tokens", "engine, ms", "worker, ms", "share, 0.25 at most", "engine's limit")


class Cost(NamedTuple):
    """CPU of one rollout, in seconds."""

    engine_s: float
    worker_s: float
    tokens: int
    """Of its longest branch."""


async def measure(settings: dict[str, Any], url: str, turns: int, rollouts: int, repeats: int) -> Cost:
    """The least of each."""
    config = msgspec.structs.replace(engine_config(url, 64, "tito", processes=2), **settings)
    engines, workers, tokens = [], [], 0
    async with Engine(config, partial(Replies, turns)) as engine:
        pool = engine._pool
        assert pool is not None
        while engine.stats().processes < config.processes:  # noqa: ASYNC110  # Ray's come one after the other
            await asyncio.sleep(0.1)
        await warm_up(engine, rollouts)
        with infrequent_full_gc():
            for _ in range(repeats):
                before, started = sum(part.cpu_s for part in pool.played()), time.process_time()
                async for group in engine.stream([{"n": n} for n in range(rollouts)]):
                    (rollout,) = group.rollouts
                    assert rollout.ok, rollout.failure
                engines.append((time.process_time() - started) / rollouts)
                await asyncio.sleep(0.6)  # workers say four times a second what they took
                workers.append((sum(part.cpu_s for part in pool.played()) - before) / rollouts)
                tokens = max(len(sample.token_ids) for sample in rollout.samples())
    return Cost(min(engines), min(workers), tokens)


@contextlib.contextmanager
def launched(launch: str) -> Iterator[dict[str, Any]]:
    """The settings of a way to start workers."""
    if launch == "local":
        yield {}
        return
    from tests.live.ray.cluster import cluster

    with cluster() as running:
        yield {"launch": "ray", "ray_address": running.address, "ray_num_cpus": 0.5}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", choices=["local", "ray"], action="append")
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    worst = 0.0
    for launch in options.launch or ["local", "ray"]:
        with launched(launch) as settings:
            for name, (turns, tokens) in SIZES.items():
                with fake_server(make_script(tokens=tokens)) as url:
                    cost = asyncio.run(measure(settings, url, turns, options.rollouts, options.repeats))
                share = cost.engine_s / cost.worker_s
                worst = max(worst, share)
                rate = 1 / cost.engine_s
                limit = f"{rate:,.0f} rollouts/s, {rate * cost.tokens:,.0f} tokens/s"
                cells = [launch, name, f"{cost.tokens:,}", f"{1e3 * cost.engine_s:.2f}", f"{1e3 * cost.worker_s:.2f}"]
                print(f"| {' | '.join([*cells, f'{share:.2f}', limit])} |", flush=True)
    return int(worst > MOST_SHARE)


if __name__ == "__main__":
    raise SystemExit(main())
