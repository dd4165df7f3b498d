"""256 rollouts of each adapter at once, and what they leave behind."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout import Engine, EngineConfig
from rollout.registry import env_factory
from tests.live.adapters.kit import MARKS
from transports.scripted import ScriptedTransport, reply

pytestmark = MARKS

AT_ONCE = 256

#: How much more memory 1,024 rollouts may leave than the 512 before them, MiB: a leak of 20 KiB a rollout is found.
MOST_MIB = 20


def resident_mib() -> float:
    gc.collect()
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 1024


async def rounds(
    make: Callable[[], Any], answer: str, turns: int, task: Mapping[str, Any] | None = None, each: int = 2 * AT_ONCE
) -> list[float]:
    """What the process has after each of three rounds of so many rollouts, of the environment's tasks or of one."""
    replies = itertools.repeat(reply(answer), 3 * each * turns)
    found = []
    async with Engine(EngineConfig(concurrency=AT_ONCE), make, transport=ScriptedTransport(replies)) as engine:
        for seed in range(3):
            tasks = [task] * each if task is not None else list(make().tasks(each, seed))
            async for group in engine.stream(tasks):
                assert group.rollouts[0].failure is None
            found.append(resident_mib())
    return found


@pytest.mark.parametrize(
    ("spec", "given", "answer", "turns"),
    [
        ("gymnasium:Taxi-v4", {"invalid": 2}, "hm", 2),
        ("reasoning-gym:leg_counting,chain_sum", {}, "<answer>12</answer>", 1),
        ("textarena:TicTacToe-v0", {}, "[9]", 2),
        ("hf:rows.jsonl", {"reward": "judges.py:judge"}, "12", 1),
    ],
)
async def test_256_at_once_leave_nothing(
    spec: str, given: dict[str, Any], answer: str, turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is that of what plays, not of what has played."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges.py").write_text("def judge(row, text):\n    return 1.0\n")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "What is {n}?"}}\n' for n in range(512)))
    first, second, third = await rounds(env_factory(spec, given), answer, turns)
    assert third - first < MOST_MIB, (first, second, third)
