"""What a run shows while it plays: a live line on a terminal, a plain line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rollout.stats import Stats
from rollout.summary import Summary

REFRESH_S = 0.2
PLAIN_S = 5.0


def make_console() -> Console:
    console = Console(stderr=True, highlight=False)
    # A log file has no width; 80 columns would fold every line of it.
    return console if console.is_terminal else Console(stderr=True, highlight=False, width=140)


def state_line(stats: Stats, summary: Summary, elapsed_s: float) -> str:
    """Where the run stands, in one line."""
    reward = f"reward {summary.reward_mean:.2f}" if summary.reward_mean is not None else "reward -"
    speed = stats.completion_tokens / elapsed_s if elapsed_s > 0 else 0.0
    faults = sum(count for reason, count in summary.fallbacks.items() if reason not in ("first_turn", "disabled"))
    parts = [f"{stats.running} running", f"{stats.turns} turns", f"{speed:,.0f} tok/s", reward]
    if faults:
        parts.append(f"{faults} fallbacks")
    if stats.failed:
        parts.append(f"{stats.failed} failed")
    return ", ".join(parts)


async def show(console: Console, total: int, stats: Callable[[], Stats], summary: Summary) -> None:
    """Shows the run until it is cancelled."""
    started = time.perf_counter()
    if not console.is_terminal:
        while True:
            await anyio.sleep(PLAIN_S)
            line = state_line(stats(), summary, time.perf_counter() - started)
            print(f"{summary.rollouts}/{total} rollouts, {line}", file=sys.stderr, flush=True)
    columns = (
        SpinnerColumn(),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("starting", total=total)
        while True:
            line = state_line(stats(), summary, time.perf_counter() - started)
            progress.update(task, completed=summary.rollouts, description=line, refresh=True)
            await anyio.sleep(REFRESH_S)


def print_rows(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    """A table of names and values; long values are folded, never cut."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        style = "red" if name.startswith("failed") else None
        table.add_row(name, value, style=style)
    console.print(table)
