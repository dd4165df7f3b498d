"""The series that Prometheus gets: what they are called, and how many there may be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rollout.observe.families import MOST_METRICS, MOST_SERVERS
from rollout.observe.prometheus import StatsCollector
from rollout.observe.stats import Stats
from rollout.records import FailureKind, StopReason
from rollout.servers.fleet import ServerState
from rollout.servers.tally import Tally
from rollout.tokens.prefix import FallbackReason


def _same(stats: Stats) -> Stats:
    return stats


def scraped(stats: Stats | Mapping[str, Stats]) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What a scrape gives, read by the package's own parser: by series, the values by label."""
    read: Any = (
        partial(_same, stats)
        if isinstance(stats, Stats)
        else {name: partial(_same, one) for name, one in stats.items()}
    )
    registry = CollectorRegistry()
    registry.register(StatsCollector(read))
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in series, f"{sample.name}{labels} is there twice"
            series[labels] = sample.value
    return found


def servers(count: int) -> list[ServerState]:
    return [ServerState(url=f"http://gpu-{n}:8000", up=n != 0, deaths=n, trajectories=1) for n in range(count)]


def test_a_fleet_is_told_server_by_server() -> None:
    """Each server's requests in flight, failures and times stand under its address."""
    busy = Tally(in_flight=3, failed=2)
    busy.answer(0.3)
    busy.answer(900.0)
    found = scraped(Stats(servers=servers(2), asked=[busy]))
    first, second = (("server", "http://gpu-0:8000"),), (("server", "http://gpu-1:8000"),)
    assert found["rollout_server_up"] == {first: 0, second: 1}
    assert found["rollout_server_requests_in_flight"] == {first: 3, second: 0}
    assert found["rollout_server_requests_total"][(("outcome", "failed"), *first)] == 2
    assert found["rollout_server_request_seconds_count"] == {first: 2, second: 0}
    assert found["rollout_server_request_seconds_sum"][first] == 900.3
    assert found["rollout_server_request_seconds_bucket"][(("le", "0.5"), *first)] == 1


def test_turns_are_told_by_route_and_reason() -> None:
    """Every turn is in one series; a reason stands only at turns that went message-in."""
    stats = Stats(turns=9, token_in_turns=4, message_in_turns=5, fallbacks={"first_turn": 3, "no_match": 1})
    turns = scraped(stats)["rollout_turns_total"]
    assert len(turns) == len(FallbackReason) + 2  # each reason has a series from the beginning
    assert {labels: count for labels, count in turns.items() if count} == {
        (("fallback", ""), ("route", "token_in")): 4,
        (("fallback", "first_turn"), ("route", "message_in")): 3,
        (("fallback", "no_match"), ("route", "message_in")): 1,
        (("fallback", ""), ("route", "message_in")): 1,
    }


def test_staleness_is_a_histogram_of_updates() -> None:
    """Its buckets are whole updates, each with what lies below."""
    found = scraped(Stats(staleness={0: 5, 1: 2, 3: 1, 64: 1}))
    buckets = {dict(labels)["le"]: value for labels, value in found["rollout_staleness_updates_bucket"].items()}
    assert (buckets["0.0"], buckets["1.0"], buckets["2.0"], buckets["4.0"]) == (5, 7, 7, 8)
    assert (buckets["32.0"], buckets["+Inf"]) == (8, 9)
    assert found["rollout_staleness_updates_sum"] == {(): 69}


@pytest.mark.parametrize("several", [False, True])
def test_labels_are_bounded(several: bool) -> None:
    """An environment that names metrics by task, and a fleet of any size, end in `other`; counts are kept whole."""
    metrics = {f"task-{n}": 1.0 for n in range(1000)}
    asked = [Tally(failed=1) for _ in range(500)]
    stats = Stats(metrics=metrics, servers=servers(500), asked=asked)
    found = scraped({"train": stats} if several else stats)
    assert len(found["rollout_metric_mean"]) == MOST_METRICS + 1
    assert len(found["rollout_server_up"]) == MOST_SERVERS + 1
    failed = [n for labels, n in found["rollout_server_requests_total"].items() if ("outcome", "failed") in labels]
    assert sum(failed) == 500
    assert max(failed) == 500 - MOST_SERVERS


def test_a_name_keeps_its_series() -> None:
    """Names that come later, and sort before, take nobody's place."""
    stats = Stats(metrics={f"m{n}": 2.0 for n in range(MOST_METRICS)})
    collector = StatsCollector(lambda: stats)
    list(collector.collect())
    stats.metrics = {"early": 7.0, **stats.metrics}
    (family,) = [family for family in collector.collect() if family.name == "rollout_metric_mean"]
    assert {sample.labels["name"] for sample in family.samples if sample.value == 7.0} == {"other"}


@pytest.mark.parametrize("name", ['a"b\\c\nd', "ä\ud800", "x" * 10_000, ""])
def test_any_name_can_be_a_label(name: str) -> None:
    """Quotes, broken text and any length: what is scraped is read again, and is short."""
    found = scraped(Stats(metrics={name: 1.0}))
    ((labels, value),) = found["rollout_metric_mean"].items()
    assert value == 1.0
    assert len(dict(labels).get("name", "")) <= 120


@pytest.mark.parametrize(("version", "number"), [("12", 12.0), ("step-12", None), (None, None), ("1" * 40, None)])
def test_the_weights_version_is_a_number_or_not_there(version: str | None, number: float | None) -> None:
    """A version's text would begin a new series with each update."""
    found = scraped(Stats(weight_version=version)).get("rollout_weight_version", {})
    assert found == ({} if number is None else {(): number})


def test_what_is_counted_is_told() -> None:
    """Every number of the stats is in some series, or is one of those that are told in another way."""
    otherwise = {
        "turns": "turns_total, by route",
        "finished": "rollouts_total, by end",
        "failed": "the same",
        "stragglers": "rollouts_total, by kind",
        "faults": "the same",
        "most_running": "the maximum over time of rollouts_running",
        "trajectories": "server_rollouts",
        "weight_version": "a text",
    }
    for name in Stats.__struct_fields__:
        if name in otherwise:
            continue
        plain, told = Stats(reward_mean=0.5), Stats(reward_mean=0.5)
        setattr(told, name, _other(name, getattr(told, name)))
        if name == "asked":
            plain.servers = told.servers = servers(1)
        first, second = scraped(plain), scraped(told)
        del first["rollout_stats_age_seconds"], second["rollout_stats_age_seconds"]
        assert first != second, name


def _other(name: str, value: Any) -> Any:
    match value:
        case float() | int() | None:
            return 7.5 if isinstance(value, float) or value is None else 7
        case {}:
            return {1 if name in ("staleness", "pass_at_k") else "x": 1}
        case _:
            return [Tally(failed=1)] if name == "asked" else servers(1)


def test_several_engines_share_a_registry() -> None:
    """Each one's series have its name."""
    found = scraped({"train": Stats(running=2), "evaluation": Stats(running=1)})
    assert found["rollout_rollouts_running"] == {(("engine", "train"),): 2, (("engine", "evaluation"),): 1}


def test_ends_are_told_by_how_and_why() -> None:
    """Stops and failures stand in one family, so that a share is a quotient of sums."""
    stats = Stats(stops={StopReason.DONE.value: 3}, failures={FailureKind.TRANSPORT.value: 1})
    ended = scraped(stats)["rollout_rollouts_total"]
    assert len(ended) == len(StopReason) + len(FailureKind)  # a rate needs a series before the first one
    assert {labels: count for labels, count in ended.items() if count} == {
        (("end", "finished"), ("kind", "done")): 3,
        (("end", "failed"), ("kind", "transport")): 1,
    }
