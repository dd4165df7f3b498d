"""Stats as Prometheus' families of series: the names, the labels, and how many of them there may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import accumulate, zip_longest

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from rollout.door import well_formed
from rollout.observe.stats import Stats
from rollout.records import FailureKind, StopReason
from rollout.servers.fleet import ServerState
from rollout.servers.tally import BOUNDS_S, Tally
from rollout.tokens.prefix import FallbackReason

#: Names of one kind that have series of their own; the rest share `other`.
MOST_METRICS = 50
MOST_SERVERS = 200

#: A label's value at most, in characters.
_LONGEST = 120

_OTHER = "other"

#: Upper bounds of the buckets of staleness, in weight updates.
_UPDATES = (0, 1, 2, 4, 8, 16, 32)

#: Families of one number an engine: name, help, and what it is in its stats. Those with `total` only grow.
_NUMBERS: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("rollouts_running", "Rollouts under way.", lambda s: s.running),
    ("rollouts_queued", "Rollouts that wait for a slot.", lambda s: s.queued),
    ("concurrency_limit", "Rollouts that may be under way at once.", lambda s: s.concurrency),
    ("retries_total", "Attempts that failed and were made again.", lambda s: s.retried),
    ("rollouts_stale_total", "Rollouts that were too stale, when they ended or when taken.", lambda s: s.stale),
    ("rollouts_unrewarded_total", "Finished rollouts whose group reward failed.", lambda s: s.unrewarded),
    ("rollouts_unknown_reward_total", "Finished rollouts that nobody gave one.", lambda s: s.unknown_rewards),
    ("groups_dropped_total", "Groups that the stream's keep did not keep.", lambda s: s.dropped_groups),
    ("groups_lost_total", "Groups that nobody took, and that there was no room for.", lambda s: s.lost_groups),
    ("groups_total", "Groups that came with two finished members or more.", lambda s: s.groups),
    ("groups_equal_total", "Of these, those whose rewards are all the same.", lambda s: s.equal_groups),
    ("turns_cut_off_total", "Turns that ended at a limit of tokens.", lambda s: s.cut_off_turns),
    ("prompt_tokens_total", "Tokens of prompts.", lambda s: s.prompt_tokens),
    ("cached_tokens_total", "Of these, those that servers had in their prefix cache.", lambda s: s.cached_tokens),
    ("sampled_tokens_total", "Tokens that were sampled.", lambda s: s.completion_tokens),
    ("sent_bytes_total", "Of requests' bodies.", lambda s: s.sent_bytes),
    ("received_bytes_total", "Of replies' bodies.", lambda s: s.received_bytes),
    ("client_cpu_seconds_total", "User and system, of the processes that play.", lambda s: s.cpu_s),
    ("client_peak_memory_bytes", "Of these processes at their most, summed.", lambda s: s.peak_rss_mb * 2**20),
    ("event_loop_lag_p99_seconds", "How late the worst event loop was, in the last 100 s.", lambda s: s.loop_lag_p99_s),
    ("event_loop_lag_max_seconds", "The same at its most.", lambda s: s.loop_lag_max_s),
    ("hanging_calls", "Calls of environments that were given up and have not ended.", lambda s: s.hanging_calls),
    ("weight_updates_total", "Updates of the servers' weights.", lambda s: s.weight_updates),
    ("processes", "Processes that play.", lambda s: s.processes),
    ("process_deaths_total", "How often one of them ended that should not have.", lambda s: s.process_deaths),
)

#: The same by server.
_BY_SERVER: tuple[tuple[str, str, Callable[[ServerState, Tally], float]], ...] = (
    ("server_up", "Whether the server is used.", lambda s, _: s.up),
    ("server_deaths_total", "How often it was found dead.", lambda s, _: s.deaths),
    ("server_rollouts", "Rollouts whose server it is.", lambda s, _: s.trajectories),
    ("server_requests_in_flight", "Requests that it has not answered yet.", lambda _, t: t.in_flight),
)


class Labels:
    """Labels that users name, kept to so many: the first that came keep theirs, so that no series changes hands."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """`names` are labels of every series."""
        self.names = list(names)
        self._known: dict[str, dict[str, str]] = {}

    def of(self, kind: str, name: str, most: int) -> str:
        """The label's value."""
        known = self._known.setdefault(kind, {})
        if name not in known:
            if len(known) >= most:
                return _OTHER
            known[name] = well_formed(name)[:_LONGEST]
        return known[name]


def families(read: Mapping[str, tuple[Stats, float]], labels: Labels) -> Iterable[Metric]:
    """All families, with what was read of each engine, and its age in seconds."""
    named = labels.names
    stats: Read = {(name,) if named else (): one for name, (one, _) in read.items()}
    age = _family("stats_age_seconds", "How old these numbers are: above 0 the event loop is held up.", named)
    for name, (_, age_s) in read.items():
        age.add_metric((name,) if named else (), age_s)
    yield age
    for name, text, value in _NUMBERS:
        family = _family(name, text, named)
        for own, one in stats.items():
            family.add_metric(own, value(one))
        yield family
    yield from _of_rollouts(stats, named)
    yield from _of_turns(stats, named)
    yield from _of_rewards(stats, labels)
    yield from _of_servers(stats, labels)
    yield _version(stats, named)


Read = Mapping[tuple[str, ...], Stats]


def _family(name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily | GaugeMetricFamily:
    if name.endswith("_total"):
        return CounterMetricFamily(f"rollout_{name.removesuffix('_total')}", text, labels=labels)
    return GaugeMetricFamily(f"rollout_{name}", text, labels=labels)


def _of_rollouts(stats: Read, named: Sequence[str]) -> Iterable[Metric]:
    ended = _family("rollouts_total", "Rollouts that ended, by how: a stop's reason or a failure's kind.", (
        *named, "end", "kind"
    ))  # fmt: skip
    stale = HistogramMetricFamily(
        "rollout_staleness_updates",
        "Weight updates that finished rollouts lived through, from their submission to their group's being taken.",
        labels=named,
    )
    for own, one in stats.items():
        for end, kinds, counts in (("finished", StopReason, one.stops), ("failed", FailureKind, one.failures)):
            for kind, count in _all_of(kinds, counts):
                ended.add_metric((*own, end, kind), count)
        counted = [sum(n for at, n in one.staleness.items() if at <= bound) for bound in _UPDATES]
        bounds = [*map(str, map(float, _UPDATES)), "+Inf"]
        buckets = list(zip(bounds, [*counted, sum(one.staleness.values())], strict=True))
        stale.add_metric(own, buckets, sum(at * n for at, n in one.staleness.items()))
    yield ended
    yield stale


def _all_of(kinds: Iterable[StrEnum], counts: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    """Also those that there are none of yet: what begins with its first one has no rate there."""
    return {**{kind.value: 0 for kind in kinds}, **counts}.items()


def _of_turns(stats: Read, named: Sequence[str]) -> Iterable[Metric]:
    turns = _family("turns_total", "Turns, by route, and by why they went message-in.", (*named, "route", "fallback"))
    spent = _family("turn_seconds_total", "What turns took, by part: see Turn.", (*named, "part"))
    for own, one in stats.items():
        turns.add_metric((*own, "token_in", ""), one.token_in_turns)
        unsaid = one.message_in_turns - sum(one.fallbacks.values())
        for reason, count in _all_of(FallbackReason, {"": unsaid, **one.fallbacks}):
            turns.add_metric((*own, "message_in", reason), count)
        for part, seconds in (("render", one.render_s), ("queue", one.queue_s), ("request", one.request_s)):
            spent.add_metric((*own, part), seconds)
    yield turns
    yield spent


def _of_rewards(stats: Read, labels: Labels) -> Iterable[Metric]:
    """Of what has come so far; nothing before."""
    named = labels.names
    mean = _family("reward_mean", "The mean reward of groups that came.", named)
    std = _family("reward_std", "Its standard deviation.", named)
    passed = _family("pass_at_k", "The chance that one of k rollouts solves its task.", (*named, "k"))
    metrics = _family(
        "metric_mean", "Environments' own metrics: means over rollouts; of other, the mean of theirs.", (*named, "name")
    )
    for own, one in stats.items():
        if one.reward_mean is not None:
            mean.add_metric(own, one.reward_mean)
            std.add_metric(own, one.reward_std or 0.0)
        for k, share in one.pass_at_k.items():
            passed.add_metric((*own, str(k)), share)
        by_label: dict[str, list[float]] = {}
        for name, value in one.metrics.items():
            by_label.setdefault(labels.of("metric", name, MOST_METRICS), []).append(value)
        for label, values in by_label.items():
            metrics.add_metric((*own, label), sum(values) / len(values))
    yield from (mean, std, passed, metrics)


def _of_servers(stats: Read, labels: Labels) -> Iterable[Metric]:
    named = (*labels.names, "server")
    numbers = [(_family(name, text, named), value) for name, text, value in _BY_SERVER]
    requests = _family("server_requests_total", "Requests, by how they ended.", (*named, "outcome"))
    seconds = HistogramMetricFamily(
        "rollout_server_request_seconds", "What answered requests took, with retries.", labels=named
    )
    for own, one in stats.items():
        found: dict[str, tuple[list[float], Tally]] = {}
        for server, asked in zip_longest(one.servers, one.asked[: len(one.servers)]):
            tally = asked or Tally()
            label = labels.of("server", server.url, MOST_SERVERS)
            before, tallied = found.get(label, ([0.0] * len(numbers), Tally()))
            now = [float(value(server, tally)) for _, value in numbers]
            found[label] = [a + b for a, b in zip(before, now, strict=True)], tallied.plus(tally)
        for label, (values, tally) in found.items():
            for (family, _), number in zip(numbers, values, strict=True):
                family.add_metric((*own, label), number)
            requests.add_metric((*own, label, "answered"), tally.answered)
            requests.add_metric((*own, label, "failed"), tally.failed)
            bounds = [*map(str, BOUNDS_S), "+Inf"]
            buckets = list(zip(bounds, map(float, accumulate(tally.counts)), strict=True))
            seconds.add_metric((*own, label), buckets, tally.answer_s)
    yield from (family for family, _ in numbers)
    yield requests
    yield seconds


def _version(stats: Read, named: Sequence[str]) -> Metric:
    """Its text is no label: each update would begin a series of its own."""
    family = _family("weight_version", "The weights' version, where it is a number.", named)
    for own, one in stats.items():
        if one.weight_version is not None and re.fullmatch(r"\d{1,15}", one.weight_version, re.ASCII):
            family.add_metric(own, int(one.weight_version))
    return family
