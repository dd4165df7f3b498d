"""What the runs say: ratios of pairs, tables for people, files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rollout.bench.measure import BenchRun
from rollout.bench.settings import MODES, BenchSettings, Cell
from rollout.errors import UsageError

RESULTS, TABLE, PAGE = "results.json", "results.md", "report.html"


class Results(msgspec.Struct, kw_only=True):
    """What `results.json` holds."""

    server: str
    settings: dict[str, Any]
    machine: dict[str, Any] = {}
    """Of the client: its cores, its system, the versions."""
    runs: list[BenchRun] = []


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Token-in over message-in, pair by pair."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


class Column(NamedTuple):
    """A measure as tables show it."""

    name: str
    of: Callable[[BenchRun], float | None]
    form: str = ".0f"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


TURNS_PER_S = Column("turns/s", lambda run: run.turns_per_s, ".1f")
CACHED = Column("cached", lambda run: run.cached_share, ".0%")
FIRST_TOKEN = Column("first token p50, ms", lambda run: _ms(run.first_token_p50_s))
SAMPLES = Column("samples per rollout", lambda run: run.samples / max(1, run.rollouts), ".2f")

COLUMNS: tuple[Column, ...] = (
    TURNS_PER_S,
    Column("output tok/s", lambda run: run.output_tokens_per_s),
    FIRST_TOKEN,
    Column("first p95", lambda run: _ms(run.first_token_p95_s)),
    Column("first p99", lambda run: _ms(run.first_token_p99_s)),
    Column("turn p50, ms", lambda run: _ms(run.turn_p50_s)),
    Column("turn p95", lambda run: _ms(run.turn_p95_s)),
    Column("turn p99", lambda run: _ms(run.turn_p99_s)),
    Column("prompt tokens per turn", lambda run: run.prompt_tokens / max(1, run.turns)),
    CACHED,
    Column("breaks", lambda run: run.prefix_breaks),
    SAMPLES,
    Column("never sampled", lambda run: run.never_sampled),
    Column("client CPU, ms/turn", lambda run: run.client_cpu_ms_per_turn, ".2f"),
    Column("kB sent per turn", lambda run: run.sent_bytes / 1e3 / max(1, run.turns), ".1f"),
    Column("kB received", lambda run: run.received_bytes / 1e3 / max(1, run.turns), ".1f"),
    Column("loop lag p99, ms", lambda run: _ms(run.loop_lag_p99_s)),
    Column("peak memory, MB", lambda run: run.peak_rss_mb),
)

#: What the ratios are of.
COMPARED: tuple[Column, ...] = (
    Column("turns per second", TURNS_PER_S.of),
    Column("turn p50", lambda run: run.turn_p50_s),
    Column("first token p50", lambda run: run.first_token_p50_s),
    Column("samples", lambda run: run.samples),
)


def ratio(runs: Sequence[BenchRun], measure: Callable[[BenchRun], float | None]) -> Ratio | None:
    """Token-in over message-in of one cell's runs; None where no pair is whole, or message-in's is 0 or unknown."""
    by = {(run.mode, run.repeat): measure(run) for run in runs}
    pairs = [(by.get(("tito", repeat)), below) for (mode, repeat), below in by.items() if mode == "mito"]
    found = [above / below for above, below in pairs if above is not None and below]
    return Ratio(median=statistics.median(found), least=min(found), most=max(found)) if found else None


def cells(runs: Sequence[BenchRun]) -> dict[Cell, list[BenchRun]]:
    """Runs by cell."""
    found: dict[Cell, list[BenchRun]] = {}
    for run in runs:
        found.setdefault(run.cell, []).append(run)
    return found


def median(runs: Sequence[BenchRun], measure: Callable[[BenchRun], float | None]) -> float | None:
    """Over the runs that say; None where none does."""
    values = [value for run in runs if (value := measure(run)) is not None]
    return statistics.median(values) if values else None


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: each cell's medians over the repeats, a row for each mode."""
    heads = ["turns", "at once", "mode", *(column.name for column in COLUMNS)]
    rows = []
    for cell, runs in cells(results.runs).items():
        for mode in MODES:
            if mine := [run for run in runs if run.mode == mode]:
                turns = "recorded" if cell.turns is None else str(cell.turns)
                rows.append([turns, str(cell.concurrency), mode, *(_shown(mine, column) for column in COLUMNS)])
    return heads, rows


def ratio_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: token-in over message-in, median of the pairs (least to most)."""
    rows = [
        [str(cell), *(str(ratio(runs, column.of) or "-") for column in COMPARED)]
        for cell, runs in cells(results.runs).items()
    ]
    return ["", *(column.name for column in COMPARED)], rows


def markdown(results: Results) -> str:
    """The tables for people."""
    text = [f"# Token-in against message-in: {results.server}", "", *lines(*table(results)), ""]
    text += ["Token-in over message-in, median of the pairs (least to most):", "", *lines(*ratio_table(results))]
    text += [f"\n**{fault}**" for fault in faults(results.runs)]
    return "\n".join(text) + "\n"


def said(run: BenchRun) -> str:
    """One run in a line."""
    return f"{run.cell}, {run.mode} {run.repeat + 1}: {run.turns_per_s:.1f} turns/s in {run.wall_s:.1f} s"


def faults(runs: Sequence[BenchRun]) -> list[str]:
    """What makes a comparison less than it says."""
    counts = {
        "rollouts failed": sum(run.failed for run in runs),
        "rollouts ended early, with the model's context full: give fewer --turns": sum(
            run.out_of_context for run in runs
        ),
        "turns fell back to message-in under token-in": sum(run.fallbacks for run in runs),
        "completions were not of the length that was asked for": sum(run.other_lengths for run in runs),
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


def write(results: Results, folder: Path) -> None:
    """Writes the numbers and their table, whole or not at all. Raises UsageError where it cannot."""
    encoded = msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"
    write_files(folder, {RESULTS: encoded, TABLE: markdown(results).encode()})


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Each whole or not at all. Raises UsageError where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        raise UsageError(f"cannot write the results into {folder}: {error}; name another folder by -o") from error


def told(settings: BenchSettings) -> dict[str, Any]:
    """The settings as they are kept: headers may hold secrets."""
    kept: dict[str, Any] = msgspec.to_builtins(settings)
    kept["config"].pop("headers", None)
    return kept


def _shown(runs: Sequence[BenchRun], column: Column) -> str:
    value = median(runs, column.of)
    return "-" if value is None else format(value, column.form)


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
