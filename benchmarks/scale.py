"""How far one machine goes: many rollouts at once, memory at rest, long trajectories and contexts, several processes.

    python -m benchmarks.scale [many rest written context processes mocker ...]

Each figure stands beside what is to be reached. The server is the one of `benchmarks.client`, which only answers; for
`mocker` it is Dynamo's frontend with a mocker at speed 1 (`python -m tests.live.install dynamo`). Every measurement has
a process of its own, so that peaks of memory are its own.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.client import (
    COMPLETION_TOKENS,
    Cost,
    bodies_of,
    engine_config,
    engine_cost,
    fake_server,
    floor_cpu_s,
    make_script,
)
from rollout import EngineConfig, Rollout, user
from rollout.chat.messages import Message
from rollout.records import Route, Turn
from rollout.request import IDS, WeightSpan
from rollout.store.folder import RunFolder
from rollout.tokens.trajectory import LOGPROBS, Node
from transports.embedded import MODEL_DIR

Row = tuple[str, str, str]


def _alone(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def _played(config: EngineConfig, rollouts: int, turns: int) -> Cost:
    """In this process, which may open as many connections as it is let."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return asyncio.run(engine_cost(config, rollouts, turns))


def _at_once(config: Callable[[int], EngineConfig], counts: Sequence[int], turns: int, where: str) -> Iterator[Row]:
    costs = {count: _alone(_played, config(count), count, turns) for count in counts}
    most, cost = counts[-1], costs[counts[-1]]
    yield f"{most:,} x {turns} at once{where}: loop lag p99", f"{1e3 * cost.lag_p99_s:.0f} ms", "under 50 ms, no error"
    memory = ", ".join(f"{count:,}: {found.peak_rss_mb:.0f} MB" for count, found in costs.items())
    (first, a), (last, b) = (counts[0], costs[counts[0]]), (most, cost)
    each = 1e3 * (b.peak_rss_mb - a.peak_rss_mb) / (last - first)
    yield f"memory by rollouts at once{where}", f"{memory}; {each:.0f} kB a rollout", "linear"


def many() -> Iterator[Row]:
    """Thousands at once, against the server that only answers."""
    with fake_server(make_script()) as url:
        yield from _at_once(lambda count: engine_config(url, count, "tito"), (1_024, 2_048, 4_096), 4, "")


def mocker() -> Iterator[Row]:
    """A thousand at once, against a model of a GPU server."""
    from tests.live.servers import dynamo_mocker

    def config(url: str, count: int) -> EngineConfig:
        sampling = {"ignore_eos": True, "min_tokens": COMPLETION_TOKENS}
        return EngineConfig(
            base_url=url, tokenizer=str(MODEL_DIR), concurrency=count, max_tokens=COMPLETION_TOKENS, sampling=sampling
        )

    with tempfile.TemporaryDirectory() as logs, dynamo_mocker(MODEL_DIR, Path(logs), speedup_ratio=1.0) as server:
        yield from _at_once(lambda count: config(server.url, count), (250, 500, 1_000), 4, ", Dynamo's mocker")


def rest() -> Iterator[Row]:
    """What finished rollouts take."""
    with fake_server(make_script()) as url:
        for turns in (8, 128):
            rollout = _alone(_played, engine_config(url, 4, "tito"), 4, turns).rollout
            tokens = sum(len(node.ids) for node in rollout.nodes)
            sampled = sum(len(node.ids) for node in rollout.nodes if node.sampled)
            name = f"a finished rollout of {turns} turns, {tokens:,} tokens, {sampled:,} sampled"
            yield name, f"{bytes_at_rest(rollout) / tokens:.1f} bytes a token", "at most 24"


def bytes_at_rest(rollout: Rollout) -> int:
    """What ids, logprobs, masks and versions take, with the nodes that hold them; texts are not counted."""
    total = sys.getsizeof(rollout.nodes) + sys.getsizeof(rollout.leaves)
    for node in rollout.nodes:
        total += sum(map(sys.getsizeof, (node, node.ids, node.logprobs, node.digest)))
        if node.weight_versions:
            total += sys.getsizeof(node.weight_versions) + sum(map(sys.getsizeof, node.weight_versions))
    return total


def long_rollout(turns: int, sampled: int, added: int) -> Rollout:
    """A finished rollout of so many turns, with so many tokens sampled and added in each."""
    rollout = Rollout(id="long", task_id="long", task_index=0, member=0)
    for _ in range(turns):
        said = user("And now? " * (added // 3)), Message("assistant", "Fine. " * (sampled // 2))
        parent = len(rollout.nodes) - 1
        prompt = Node(parent=parent, message=said[0], ids=array(IDS, range(added)), digest=bytes(16))
        answer = Node(
            parent=parent + 1,
            message=said[1],
            ids=array(IDS, range(sampled)),
            sampled=True,
            logprobs=array(LOGPROBS, [-0.1234567 * (i % 7) for i in range(sampled)]),
            weight_versions=(WeightSpan("1", 0, sampled),),
            digest=bytes(16),
        )
        rollout.nodes += [prompt, answer]
        rollout.messages += said
        rollout.leaves.append(len(rollout.nodes) - 1)
        rollout.turns.append(Turn(route=Route.TOKEN_IN, node=rollout.leaves[-1], completion_tokens=sampled))
    return rollout


async def _longest_stall_s(turns: int, sampled: int, added: int) -> float:
    """How long the loop stood still, at most, while a rollout was written and freed."""
    stalls = [0.0]

    async def tick() -> None:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(0)
            stalls.append(time.perf_counter() - asked)

    rollouts = [long_rollout(turns, sampled, added)]
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "run")
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.05)  # the first looks are of a loop that has just begun
        stalls.clear()
        await run.write(rollouts[0])
        rollouts.clear()
        await asyncio.sleep(0)
        ticking.cancel()
        run.close()
    return max(stalls)


def written() -> Iterator[Row]:
    """Long trajectories, written and freed while the loop runs."""
    for turns, sampled, added in ((800, 50, 75), (10, 5_000, 5_000)):
        found = statistics.median(asyncio.run(_longest_stall_s(turns, sampled, added)) for _ in range(5))
        name = f"{turns * (sampled + added):,} tokens in {turns} turns, written and freed: longest stall of the loop"
        yield name, f"{1e3 * found:.1f} ms", "at most 20 ms"


def context() -> Iterator[Row]:
    """Turns behind a very long prompt."""
    rollouts, turns, length = 4, 16, 128 * 1024
    with fake_server(make_script(length)) as url:
        ours, floors = [], []
        for _ in range(3):
            cost = _alone(_played, engine_config(url, rollouts, "tito"), rollouts, turns)
            ours.append(1e3 * cost.cpu_s / (rollouts * turns))
            floors.append(1e3 * asyncio.run(floor_cpu_s(url, rollouts, bodies_of(cost.rollout))) / (rollouts * turns))
    client, floor = statistics.median(ours), statistics.median(floors)
    found = f"{client:.2f} ms, bare loop {floor:.2f} ms: {client - floor:.2f} ms beyond it"
    yield f"CPU of a turn behind {length:,} tokens", found, "at most 15 ms beyond the bare loop"


def processes() -> Iterator[Row]:
    """The same work in one process and in two, on a machine whose cores the server shares."""
    rollouts, turns = 256, 32
    rates: dict[int, list[float]] = {1: [], 2: []}
    cpus: dict[int, list[float]] = {1: [], 2: []}
    with fake_server(make_script()) as url:
        for _ in range(3):
            for count in rates:
                cost = _alone(_played, engine_config(url, rollouts, "tito", count), rollouts, turns)
                rates[count].append(rollouts * turns / cost.wall_s)
                cpus[count].append(1e3 * cost.cpu_s / (rollouts * turns))
    ratio = statistics.median(two / one for one, two in zip(*rates.values(), strict=True))
    one, two = (statistics.median(rates[count]) for count in rates)
    yield (
        f"{rollouts} x {turns}: turns a second",
        f"{one:,.0f} in one process, {two:,.0f} in two: {ratio:.2f} times",
        "near 2",
    )
    one, two = (statistics.median(cpus[count]) for count in cpus)
    yield "CPU of a turn, all processes together", f"{one:.2f} ms in one, {two:.2f} ms in two", "the same"


SECTIONS = {function.__name__: function for function in (many, rest, written, context, processes, mocker)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(SECTIONS)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {names}; all but mocker if not given")
    chosen = parser.parse_args(argv).sections or [name for name in SECTIONS if name != "mocker"]
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {sorted(unknown)[0]!r}; there are: {names}")
    print("| what | found | to reach |\n|---|---|---|")
    for name in chosen:
        for row in SECTIONS[name]():
            print(f"| {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
