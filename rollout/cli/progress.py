"""What a run shows: a live line on a terminal, or a plain one now and then, on stderr; and the table of its end."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Callable, Sequence

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rollout.cli.logs import printable
from rollout.cli.summary import Summary
from rollout.observe.stats import Stats

REFRESH_S = 0.2
PLAIN_S = 5.0

#: Of what is written to a file or a pipe.
LOG_WIDTH = 140


def make_console() -> Console:
    """For progress and logs: standard error."""
    console = Console(stderr=True, highlight=False)
    # A log file has no width; 80 columns would fold every line of it.
    return console if console.is_terminal else Console(stderr=True, highlight=False, width=LOG_WIDTH)


def table_text(title: str, rows: Sequence[tuple[str, str]], *, terminal: bool) -> str:
    """A table of names and values for standard output; long values are folded, never cut."""
    file = io.StringIO()
    width = shutil.get_terminal_size((LOG_WIDTH, 24)).columns if terminal else LOG_WIDTH
    print_rows(Console(file=file, highlight=False, force_terminal=terminal, width=width), title, rows)
    lines = file.getvalue().splitlines()
    return "\n".join(line if terminal else line.rstrip() for line in lines) + "\n"


def state_line(stats: Stats, summary: Summary, elapsed_s: float) -> str:
    """Where the run stands, in one line."""
    reward = f"reward {summary.reward_mean:.2f}" if summary.reward_mean is not None else "reward -"
    speed = stats.completion_tokens / elapsed_s if elapsed_s > 0 else 0.0
    fallbacks = list(summary.fallbacks.items())  # rollouts are counted in threads meanwhile
    faults = sum(count for reason, count in fallbacks if reason not in ("first_turn", "disabled"))
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
        try:
            while True:
                await anyio.sleep(PLAIN_S)
                _print_state(total, stats(), summary, time.perf_counter() - started)
        finally:  # a log ends with where the run ended
            _print_state(total, stats(), summary, time.perf_counter() - started)
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


def _print_state(total: int, stats: Stats, summary: Summary, elapsed_s: float) -> None:
    line = state_line(stats, summary, elapsed_s)
    print(f"{summary.rollouts}/{total} rollouts, {line}", file=sys.stderr, flush=True)


def print_rows(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A table of names and values; long values are folded, never cut. Texts are printed as they are, not as markup."""
    table = Table(
        title=_text(title), title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(_text(name), _text(value), style="red" if name.startswith("failed") else None)
    console.print(table)


def _text(text: str) -> Text:
    """What a server or an environment said may hold brackets, which are rich's markup, and control characters."""
    return Text(printable(text))
