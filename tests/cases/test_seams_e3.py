"""Case seams/e3: a summary that several threads add to."""

from __future__ import annotations

import sys
import threading

from envs.echo import Echo
from rollout import Engine, EngineConfig
from rollout.cli.summary import Summary
from rollout.records import Rollout
from transports.scripted import ScriptedTransport, reply

THREADS, TIMES = 8, 20


async def test_counts_are_exact_under_threads() -> None:
    """No rollout, turn or sample is lost where rollouts are added by several threads at once."""
    rollout = await _played()
    summary = Summary(env="x")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        threads = [threading.Thread(target=_add, args=(summary, rollout)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    count = THREADS * TIMES
    assert (summary.rollouts, summary.samples, summary.turns) == (count, count, count * len(rollout.turns))


def _add(summary: Summary, rollout: Rollout) -> None:
    for _ in range(TIMES):
        summary.add(rollout)


async def _played() -> Rollout:
    transport = ScriptedTransport([reply("y" * 50) for _ in range(20)])
    async with Engine(EngineConfig(concurrency=1), lambda: Echo(turns=10, chars=50), transport=transport) as engine:
        groups = [group async for group in engine.stream(Echo().tasks(1, 0))]
    return groups[0].rollouts[0]
