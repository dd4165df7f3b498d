"""`rollout bench`: the same conversations token-in and message-in, in turn, and what each mode cost.

A pair is one run of each mode with the same tasks, replies and completion lengths; which goes first changes from pair
to pair. Each run has a cache salt of its own, so that none finds what another left in the server's prefix cache. Read
the ratios of pairs: machines are noisy, and so are servers.
"""

from __future__ import annotations

import resource
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from rollout.config import EngineConfig
from rollout.engine import Engine
from rollout.errors import UsageError
from rollout.lag import spared_collector
from rollout.records import EXPECTED_FALLBACKS, Mode, Rollout
from rollout.registry import env_factory
from rollout.samples import never_sampled, samples_of

MODES: tuple[Mode, Mode] = ("tito", "mito")
RESULTS, TABLE = "results.json", "results.md"


class BenchSettings(msgspec.Struct, kw_only=True):
    """What is compared. A cell is a number of turns at a concurrency."""

    config: EngineConfig
    """Where and how; the mode, the lengths and the salt are the benchmark's."""
    turns: Sequence[int] = (8,)
    concurrency: Sequence[int] = (16,)
    rollouts: int | None = None
    """Of each run; None is the concurrency: all at once."""
    env_chars: int = 400
    max_tokens: int = 32
    """Every completion has exactly so many: the end of a turn is ignored."""
    repeats: int = 3

    def check(self) -> None:
        """Raises UsageError, naming the option."""
        counts: dict[str, Sequence[int]] = {
            "--repeats": [self.repeats],
            "--max-tokens": [self.max_tokens],
            "--turns": self.turns,
        }
        counts |= {"--concurrency": self.concurrency, "--rollouts": [] if self.rollouts is None else [self.rollouts]}
        for option, values in counts.items():
            if wrong := [value for value in values if value < 1]:
                raise UsageError(f"{option} must be 1 or more, not {wrong[0]}")
        if not self.turns or not self.concurrency or self.env_chars < 0:
            raise UsageError("--turns and --concurrency need a number each, and --env-chars 0 or more")


class BenchRun(msgspec.Struct, kw_only=True):
    """One run of one mode. Times are in seconds, unless their name says otherwise."""

    mode: Mode
    turns_each: int
    concurrency: int
    repeat: int
    rollouts: int = 0
    failed: int = 0
    turns: int = 0
    wall_s: float = 0.0
    turns_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    turn_p50_s: float = 0.0
    """Of a request, from its first byte to its answer's last."""
    turn_p95_s: float = 0.0
    turn_p99_s: float = 0.0
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
    """User and system, of this process; the model's own where it is embedded."""
    loop_lag_p99_s: float = 0.0
    peak_rss_mb: float = 0.0
    """Of this process until then."""


class Results(msgspec.Struct, kw_only=True):
    """What `results.json` holds."""

    server: str
    settings: dict[str, Any]
    runs: list[BenchRun] = []


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Token-in over message-in, pair by pair."""

    median: float
    least: float
    most: float


def pairs(settings: BenchSettings) -> Iterator[tuple[int, int, int, Mode]]:
    """(turns, concurrency, repeat, mode) of every run, in their order."""
    for repeat in range(settings.repeats):
        for turns in settings.turns:
            for concurrency in settings.concurrency:
                for mode in MODES if repeat % 2 == 0 else MODES[::-1]:
                    yield turns, concurrency, repeat, mode


async def bench(settings: BenchSettings, folder: Path, say: Callable[[BenchRun], None]) -> Results:
    """Plays every run. What is done is on disk after each. Raises UsageError, ConfigError, ServerError."""
    settings.check()
    results = Results(server="", settings=_told(settings))
    for turns, concurrency, repeat, mode in pairs(settings):
        run, results.server = await play(settings, turns, concurrency, repeat, mode)
        results.runs.append(run)
        write(results, folder)
        say(run)
    return results


async def play(settings: BenchSettings, turns: int, concurrency: int, repeat: int, mode: Mode) -> tuple[BenchRun, str]:
    """One run, and the server's name for itself."""
    sampling = {**settings.config.sampling, "ignore_eos": True, "min_tokens": settings.max_tokens}
    config = msgspec.structs.replace(
        settings.config,
        mode=mode,
        concurrency=concurrency,
        max_tokens=settings.max_tokens,
        sampling=sampling,
        cache_salt=f"bench-{secrets.token_hex(8)}",
    )
    make_env = env_factory("echo", {"turns": turns, "chars": settings.env_chars})
    # The same tasks in both modes, others in each repeat.
    count = settings.rollouts or concurrency
    tasks = [{"index": repeat * count + number} for number in range(count)]
    played: list[Rollout] = []
    async with Engine(config, make_env) as engine:
        with spared_collector():
            wall, cpu = time.perf_counter(), time.process_time()
            async for group in engine.stream(tasks):
                played += group.rollouts
            wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        lag_s, server = engine.stats().loop_lag_p99_s, f"{engine.server.model} ({engine.server.dialect})"
    run = BenchRun(mode=mode, turns_each=turns, concurrency=concurrency, repeat=repeat, wall_s=wall_s)
    run.loop_lag_p99_s, run.peak_rss_mb = lag_s, _peak_rss_mb()
    _count(run, played, cpu_s, settings.max_tokens)
    return run, server


def _count(run: BenchRun, played: Sequence[Rollout], cpu_s: float, length: int) -> None:
    turns = [turn for rollout in played for turn in rollout.turns]
    seconds = [turn.request_s for turn in turns]
    cached = [turn.cached_tokens for turn in turns if turn.cached_tokens is not None]
    run.rollouts, run.failed, run.turns = len(played), sum(not rollout.ok for rollout in played), len(turns)
    run.prompt_tokens = sum(turn.prompt_tokens for turn in turns)
    run.cached_tokens = sum(cached) if cached else None
    run.fallbacks = sum(turn.fallback is not None and turn.fallback not in EXPECTED_FALLBACKS for turn in turns)
    run.prefix_breaks = sum(bool(turn.prefix_break) for turn in turns)
    run.samples = sum(len(samples_of(rollout)) for rollout in played)
    run.never_sampled = sum(map(never_sampled, played))
    run.other_lengths = sum(turn.completion_tokens != length for turn in turns)
    if turns:
        run.turns_per_s = len(turns) / run.wall_s
        run.output_tokens_per_s = sum(turn.completion_tokens for turn in turns) / run.wall_s
        run.client_cpu_ms_per_turn = 1e3 * cpu_s / len(turns)
        run.turn_p50_s, run.turn_p95_s, run.turn_p99_s = map(partial(quantile, seconds), (0.5, 0.95, 0.99))


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that is not below `share` of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio(runs: Sequence[BenchRun], measure: Callable[[BenchRun], float]) -> Ratio | None:
    """Token-in over message-in of one cell's runs; None where no pair is whole, or message-in's is 0."""
    by = {(run.mode, run.repeat): measure(run) for run in runs}
    found = [
        by["tito", repeat] / below
        for (mode, repeat), below in by.items()
        if mode == "mito" and ("tito", repeat) in by and below
    ]
    return Ratio(median=statistics.median(found), least=min(found), most=max(found)) if found else None


def cells(runs: Sequence[BenchRun]) -> dict[tuple[int, int], list[BenchRun]]:
    """Runs by (turns, concurrency)."""
    found: dict[tuple[int, int], list[BenchRun]] = {}
    for run in runs:
        found.setdefault((run.turns_each, run.concurrency), []).append(run)
    return found


_COLUMNS: tuple[tuple[str, Callable[[BenchRun], float | None], str], ...] = (
    ("turns/s", lambda run: run.turns_per_s, ".1f"),
    ("output tok/s", lambda run: run.output_tokens_per_s, ".0f"),
    ("turn p50, ms", lambda run: 1e3 * run.turn_p50_s, ".0f"),
    ("p95", lambda run: 1e3 * run.turn_p95_s, ".0f"),
    ("p99", lambda run: 1e3 * run.turn_p99_s, ".0f"),
    ("prompt tokens per turn", lambda run: run.prompt_tokens / max(1, run.turns), ".0f"),
    ("cached", lambda run: None if run.cached_tokens is None else run.cached_tokens / max(1, run.prompt_tokens), ".0%"),
    ("breaks", lambda run: run.prefix_breaks, ".0f"),
    ("samples per rollout", lambda run: run.samples / max(1, run.rollouts), ".2f"),
    ("never sampled", lambda run: run.never_sampled, ".0f"),
    ("client CPU, ms/turn", lambda run: run.client_cpu_ms_per_turn, ".2f"),
    ("loop lag p99, ms", lambda run: 1e3 * run.loop_lag_p99_s, ".0f"),
)


def markdown(results: Results) -> str:
    """The tables for people: medians over the repeats, and the ratios of pairs."""
    heads = ["turns", "at once", "mode", *(name for name, _, _ in _COLUMNS)]
    lines = [f"# Token-in against message-in: {results.server}", "", _line(heads), _line(["---"] * len(heads))]
    for (turns, concurrency), runs in cells(results.runs).items():
        for mode in MODES:
            mine = [run for run in runs if run.mode == mode]
            if mine:
                lines.append(_line([str(turns), str(concurrency), mode, *(_shown(mine, *c[1:]) for c in _COLUMNS)]))
    lines += ["", "Token-in over message-in, median of the pairs (least to most):", ""]
    for (turns, concurrency), runs in cells(results.runs).items():
        if found := ratio(runs, lambda run: run.turns_per_s):
            spread = f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})"
            lines.append(f"- {turns} turns, {concurrency} at once: {spread} turns per second")
    lines += [f"\n**{fault}**" for fault in faults(results.runs)]
    return "\n".join(lines) + "\n"


def said(run: BenchRun) -> str:
    """One run in a line."""
    cell = f"{run.turns_each} turns, {run.concurrency} at once"
    return f"{cell}, {run.mode} {run.repeat + 1}: {run.turns_per_s:.1f} turns/s in {run.wall_s:.1f} s"


def faults(runs: Sequence[BenchRun]) -> list[str]:
    """What makes a comparison less than it says."""
    counts = {
        "rollouts failed": sum(run.failed for run in runs),
        "turns fell back to message-in under token-in": sum(run.fallbacks for run in runs),
        "completions were not of the length that was asked for": sum(run.other_lengths for run in runs),
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


def write(results: Results, folder: Path) -> None:
    """Writes what is there, whole or not at all. Raises UsageError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        encoded = msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"
        for name, content in ((RESULTS, encoded), (TABLE, markdown(results).encode())):
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        raise UsageError(f"cannot write the results into {folder}: {error}; name another folder by -o") from error


def _told(settings: BenchSettings) -> dict[str, Any]:
    """The settings as they are kept: headers may hold secrets."""
    told: dict[str, Any] = msgspec.to_builtins(settings)
    told["config"].pop("headers", None)
    return told


def _shown(runs: Sequence[BenchRun], measure: Callable[[BenchRun], float | None], form: str) -> str:
    values = [value for run in runs if (value := measure(run)) is not None]
    return format(statistics.median(values), form) if values else "-"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere
