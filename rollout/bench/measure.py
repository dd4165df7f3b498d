"""One run of one mode, and what it cost."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from rollout.bench.never_sampled import never_sampled
from rollout.bench.replay import Script, replayed
from rollout.bench.settings import BenchSettings, Cell
from rollout.config import Mode
from rollout.engine import Engine
from rollout.env import Task
from rollout.errors import TransportError
from rollout.histogram import Histogram
from rollout.loop.collector import infrequent_full_gc
from rollout.participant import Participant
from rollout.records import Rollout, StopReason
from rollout.registry import env_factory
from rollout.tokens.prefix import EXPECTED_FALLBACKS


class BenchRun(msgspec.Struct, kw_only=True):
    """One run of one mode. Times are in seconds, unless their name says otherwise."""

    mode: Mode
    cell: Cell
    repeat: int
    rollouts: int = 0
    failed: int = 0
    out_of_context: int = 0
    """Rollouts that ended before their last turn, where the context was full."""
    turns: int = 0
    wall_s: float = 0.0
    turns_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    turn_p50_s: float = 0.0
    """Of a request, from its first byte to its answer's last."""
    turn_p95_s: float = 0.0
    turn_p99_s: float = 0.0
    first_token_p50_s: float | None = None
    """By the server's own histogram, to the width of its buckets; None where it keeps none."""
    first_token_p95_s: float | None = None
    first_token_p99_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """None where the server does not say."""
    fallbacks: int = 0
    """Turns that token-in did not serve, and should have."""
    prefix_breaks: int = 0
    samples: int = 0
    never_sampled: int = 0
    """Tokens of the model's own messages in later prompts that it never sampled."""
    other_lengths: int = 0
    """Completions that were not as long as they should be: the two modes then did not do the same work."""
    client_cpu_ms_per_turn: float = 0.0
    """User and system, of all the client's processes; the model's own where it is embedded."""
    sent_bytes: int = 0
    """Of requests' bodies."""
    received_bytes: int = 0
    loop_lag_p99_s: float = 0.0
    peak_rss_mb: float = 0.0
    """Of the client's processes until then."""

    @property
    def cached_share(self) -> float | None:
        """Cached of all prompt tokens; None where the server does not say."""
        if self.cached_tokens is None or not self.prompt_tokens:
            return None
        return self.cached_tokens / self.prompt_tokens


class Work(msgspec.Struct, frozen=True):
    """The conversations of a run: the same ones in both modes."""

    make_env: Callable[[], Participant]
    tasks: Sequence[Task]
    lengths: Sequence[Sequence[int]]
    """Tokens of each turn's completion, by task."""

    @property
    def longest(self) -> int:
        return max(max(lengths) for lengths in self.lengths)


def work_of(settings: BenchSettings, cell: Cell, repeat: int, scripts: Sequence[Script]) -> Work:
    """What is to be played: other tasks in each repeat, or the recorded ones."""
    if cell.turns is None:
        count = settings.rollouts or len(scripts)
        lengths = [scripts[number % len(scripts)].lengths for number in range(count)]
        return Work(replayed(scripts), [{"index": number} for number in range(count)], lengths)
    count = settings.rollouts or cell.concurrency
    make_env = env_factory("echo", {"turns": cell.turns, "chars": settings.env_chars})
    tasks = [{"index": repeat * count + number} for number in range(count)]
    return Work(make_env, tasks, [[settings.max_tokens] * cell.turns] * count)


async def measure(settings: BenchSettings, work: Work, cell: Cell, repeat: int, mode: Mode) -> tuple[BenchRun, str]:
    """One run, and the server's name for itself."""
    config = msgspec.structs.replace(
        settings.config,
        mode=mode,
        concurrency=cell.concurrency,
        max_tokens=work.longest,
        sampling={**settings.config.sampling, "ignore_eos": True, "min_tokens": work.longest},
        cache_salt=f"bench-{secrets.token_hex(8)}",
    )
    played: list[Rollout] = []
    async with Engine(config, work.make_env) as engine:
        first_before = await _first_tokens(engine)
        with infrequent_full_gc():
            wall, before = time.perf_counter(), engine.stats()
            async for group in engine.stream(work.tasks):
                played += group.rollouts
            wall_s, stats = time.perf_counter() - wall, engine.stats()
        first_after = await _first_tokens(engine)
        server = f"{engine.server.model} ({engine.server.dialect})"
    run = BenchRun(mode=mode, cell=cell, repeat=repeat, wall_s=wall_s, peak_rss_mb=stats.peak_rss_mb)
    run.loop_lag_p99_s = stats.loop_lag_p99_s
    run.sent_bytes = stats.sent_bytes - before.sent_bytes
    run.received_bytes = stats.received_bytes - before.received_bytes
    if first_before is not None and first_after is not None:
        waited = first_after.since(first_before)
        run.first_token_p50_s, run.first_token_p95_s, run.first_token_p99_s = map(waited.quantile, (0.5, 0.95, 0.99))
    _count(run, played, work.lengths, stats.cpu_s - before.cpu_s)
    return run, server


async def _first_tokens(engine: Engine) -> Histogram | None:
    try:
        return await engine.first_tokens()
    except TransportError:  # no metrics there: a gateway, or a server that hides them
        return None


def _count(run: BenchRun, played: Sequence[Rollout], lengths: Sequence[Sequence[int]], cpu_s: float) -> None:
    turns = [turn for rollout in played for turn in rollout.turns]
    cached = [turn.cached_tokens for turn in turns if turn.cached_tokens is not None]
    run.rollouts, run.failed, run.turns = len(played), sum(not rollout.ok for rollout in played), len(turns)
    run.out_of_context = sum(rollout.stop is StopReason.CONTEXT_LENGTH for rollout in played)
    run.prompt_tokens = sum(turn.prompt_tokens for turn in turns)
    run.cached_tokens = sum(cached) if cached else None
    run.fallbacks = sum(turn.fallback is not None and turn.fallback not in EXPECTED_FALLBACKS for turn in turns)
    run.prefix_breaks = sum(bool(turn.prefix_break) for turn in turns)
    run.samples = sum(len(rollout.samples()) for rollout in played)
    run.never_sampled = sum(map(never_sampled, played))
    run.other_lengths = sum(
        turn.completion_tokens != length
        for rollout in played
        for turn, length in zip(rollout.turns, lengths[rollout.task_index], strict=False)
    )
    if turns:
        seconds = [turn.request_s for turn in turns]
        run.turns_per_s = len(turns) / run.wall_s
        run.output_tokens_per_s = sum(turn.completion_tokens for turn in turns) / run.wall_s
        run.client_cpu_ms_per_turn = 1e3 * cpu_s / len(turns)
        run.turn_p50_s, run.turn_p95_s, run.turn_p99_s = map(partial(quantile, seconds), (0.5, 0.95, 0.99))


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that is not below `share` of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
