"""`rollout bench`: the same conversations token-in and message-in, in turn, and what each mode cost.

A pair is one run of each mode with the same tasks, replies and completion lengths; which goes first changes from pair
to pair. Each run has a cache salt of its own, so that none finds what another left in the server's prefix cache. Read
the ratios of pairs: machines are noisy, and so are servers.

    settings    what is compared, and in which order
    replay      a recorded run's environment, played again
    measure     one run of one mode, and what it cost
    never_sampled  what a trainer would learn that nobody sampled
    report      ratios, tables, files
    page        the report for a browser
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio.to_thread
import msgspec

from rollout import __version__
from rollout.bench.measure import BenchRun, measure, work_of
from rollout.bench.page import page
from rollout.bench.replay import Script, read_scripts
from rollout.bench.report import PAGE, Results, faults, markdown, said, told, write, write_files
from rollout.bench.settings import MODES, BenchSettings, Cell, schedule, settings_of

__all__ = ["BenchRun", "BenchSettings", "Results", "bench", "faults", "markdown", "said", "settings_of"]

#: What is played before the clock starts.
WARM_UP = Cell(turns=2, concurrency=8)


async def bench(settings: BenchSettings, folder: Path, say: Callable[[BenchRun], None]) -> Results:
    """Plays every run. What is done is on disk after each; the page is written at the end, however it comes.

    Raises UsageError, ConfigError, ServerError.
    """
    settings.check()
    scripts = await anyio.to_thread.run_sync(read_scripts, settings.replay) if settings.replay else []
    results = Results(server="", settings=told(settings), machine=machine())
    await _warm_up(settings, scripts)
    try:
        for cell, repeat, mode in schedule(settings):
            run, results.server = await measure(settings, work_of(settings, cell, repeat, scripts), cell, repeat, mode)
            results.runs.append(run)
            write(results, folder)
            say(run)
    finally:
        if results.runs:
            write_files(folder, {PAGE: page(results).encode()})
    return results


async def _warm_up(settings: BenchSettings, scripts: Sequence[Script]) -> None:
    """A short run of each mode that does not count: a server that has just started is slow at first."""
    short = msgspec.structs.replace(settings, rollouts=1 if scripts else WARM_UP.concurrency)
    cell = WARM_UP if not scripts else Cell(None, 1)
    for mode in MODES:
        await measure(short, work_of(short, cell, 0, scripts), cell, 0, mode)


def machine() -> dict[str, str]:
    """The client's machine, without its name."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": f"Python {platform.python_version()}, rollout-engine {__version__}",
    }
