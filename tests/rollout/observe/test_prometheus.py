"""An engine is scraped: from another thread, while its loop plays, hangs, or has ended."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from rollout import Engine, EngineConfig, EngineThread
from rollout.errors import ConfigError
from rollout.observe import prometheus
from rollout.observe.prometheus import StatsCollector, serve
from rollout.observe.stats import Stats
from tests.rollout.test_engine import Short, engine


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def value(text: str, series: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{series} ")]
    return float(line.rpartition(" ")[2])


async def test_a_scrape_has_what_was_played() -> None:
    """From a port of its own: rollouts, turns by route, tokens, requests of the server."""
    running, _ = engine(concurrency=3)
    with serve(StatsCollector(running.stats), port=0) as url:
        async with running:
            async for _ in running.stream([{"n": n} for n in range(5)], rollouts_per_task=2):
                pass
            text = await asyncio.to_thread(get, url)
    assert value(text, 'rollout_rollouts_total{end="finished",kind="done"}') == 10
    assert value(text, 'rollout_turns_total{fallback="",route="token_in"}') == 10
    assert value(text, 'rollout_turns_total{fallback="first_turn",route="message_in"}') == 10
    assert value(text, "rollout_sampled_tokens_total") == running.stats().completion_tokens > 0
    assert value(text, "rollout_prompt_tokens_total") == running.stats().prompt_tokens > 0
    assert value(text, 'rollout_server_requests_total{outcome="answered",server="ScriptedTransport"}') == 20
    assert value(text, "rollout_staleness_updates_count") == 10


async def test_stats_are_read_on_the_loop() -> None:
    """Nothing that the loop changes is read in the middle of a change, whichever thread scrapes."""
    threads: list[int] = []

    def read() -> Stats:
        threads.append(threading.get_ident())
        return Stats()

    collector = StatsCollector(read)
    await asyncio.to_thread(lambda: list(collector.collect()))
    list(collector.collect())
    assert threads == [threading.get_ident()] * 2


async def test_a_loop_that_is_held_up_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last numbers come with their age; the loop's own thread is what holds it up here."""
    monkeypatch.setattr(prometheus, "LOOP_S", 0.05)
    collector = StatsCollector(lambda: Stats(running=3))
    await asyncio.to_thread(lambda: list(collector.collect()))
    found: list[dict[str, float]] = []

    def scrape() -> None:
        found.append({family.name: family.samples[0].value for family in collector.collect() if family.samples})

    thread = threading.Thread(target=scrape)
    thread.start()
    thread.join()  # the loop cannot answer meanwhile
    assert found[0]["rollout_rollouts_running"] == 3
    assert found[0]["rollout_stats_age_seconds"] >= 0.05


def test_what_was_played_is_there_after_the_loop_has_ended() -> None:
    """A trainer's registry is scraped for as long as the trainer lives."""

    async def play() -> tuple[StatsCollector, int]:
        running, _ = engine()
        collector = StatsCollector(running.stats)
        async with running:
            async for _ in running.stream([{"n": 0}]):
                pass
        list(collector.collect())
        return collector, running.stats().turns

    collector, turns = asyncio.run(play())
    totals = {family.name: sum(sample.value for sample in family.samples) for family in collector.collect()}
    assert totals["rollout_turns"] == turns > 0


def test_a_synchronous_trainers_engine_is_scraped() -> None:
    """`EngineThread.stats` goes to its loop by itself."""
    with EngineThread(EngineConfig(max_tokens=2), Short) as running:
        registry = CollectorRegistry()
        registry.register(StatsCollector(running.stats))
        for _ in running.stream([{"n": 0}]):
            pass
        assert registry.get_sample_value("rollout_rollouts_total", {"end": "finished", "kind": "done"}) == 1.0


async def test_a_registry_takes_an_engine_once() -> None:
    """Two would give each series twice: they are named in one collector. Registering reads nothing."""
    registry, reads = CollectorRegistry(auto_describe=True), []
    registry.register(StatsCollector(lambda: reads.append(1) or Stats()))  # type: ignore[func-returns-value]
    assert not reads
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(StatsCollector(Engine(EngineConfig(), Short).stats))


async def test_a_port_that_is_taken_is_one_clear_line() -> None:
    """With what to give in its place, as for a host that is none."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot serve metrics on 127.0.0.1:{port}: .*give another --metrics-port"
        ):
            serve(StatsCollector(Stats), port=port).__enter__()
    with pytest.raises(ConfigError, match="cannot serve metrics on no host:0"):
        serve(StatsCollector(Stats), port=0, host="no host").__enter__()


async def test_a_turn_pays_nothing_for_being_scraped() -> None:
    """Stats are read when they are scraped, and at no other time."""
    running, _ = engine()
    reads = 0

    def read() -> Stats:
        nonlocal reads
        reads += 1
        return running.stats()

    with serve(StatsCollector(read), port=0) as url:
        async with running:
            async for _ in running.stream([{"n": n} for n in range(20)]):
                pass
            assert reads == 0
            started = time.perf_counter()
            await asyncio.to_thread(get, url)
    assert reads == 1
    assert time.perf_counter() - started < 30
