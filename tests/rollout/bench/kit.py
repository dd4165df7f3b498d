"""Settings and runs to compare."""

from __future__ import annotations

from typing import Any

import msgspec

from rollout.bench import BenchRun, BenchSettings
from rollout.bench.settings import Cell
from rollout.config import EngineConfig, Mode


def small(**changes: object) -> BenchSettings:
    base = BenchSettings(config=EngineConfig(), turns=[2], concurrency=[2], env_chars=40, max_tokens=4, repeats=2)
    return msgspec.structs.replace(base, **changes)


def run_of(mode: Mode, repeat: int, speed: float, cell: Cell | None = None, **fields: Any) -> BenchRun:
    return BenchRun(mode=mode, cell=cell or Cell(8, 4), repeat=repeat, turns_per_s=speed, **fields)
