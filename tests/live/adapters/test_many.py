"""256 rollouts of each adapter at once, and what they leave behind."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

from envs.guess_number import GuessNumber
from rollout import Engine, EngineConfig
from rollout.registry import env_factory
from tests.live.adapters.kit import MARKS
from transports.scripted import ScriptedTransport, reply

pytestmark = MARKS

AT_ONCE = 256

#: What a rollout may leave behind in a round, KiB.
MOST_KIB = 20

#: Rounds that are played at most until one leaves memory as it was: memos fill up first.
ROUNDS = 6


def held_mib() -> float:
    """What Python holds. What the process has jumps: an allocator takes 64 MiB at once."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0] / (1 << 20)


async def leave_nothing(
    make: Callable[[], Any], answer: str, turns: int, task: Mapping[str, Any] | None = None, each: int = AT_ONCE
) -> None:
    """Play rounds of so many rollouts, of the environment's tasks or of one, until one leaves memory as it was."""
    replies = itertools.repeat(reply(answer), ROUNDS * each * turns)
    found: list[float] = []
    tracemalloc.start()
    async with AsyncExitStack() as stack:
        stack.callback(tracemalloc.stop)
        engine = await stack.enter_async_context(
            Engine(EngineConfig(concurrency=AT_ONCE), make, transport=ScriptedTransport(replies))
        )
        for seed in range(ROUNDS):
            tasks = [task] * each if task is not None else list(make().tasks(each, seed))
            async for group in engine.stream(tasks):
                assert group.rollouts[0].failure is None
            found.append(held_mib())
            growths = [(after - before) * 1024 / each for before, after in itertools.pairwise(found)]
            if any(abs(growth) < MOST_KIB for growth in growths):
                return
    raise AssertionError(f"each round left more than {MOST_KIB} KiB a rollout; after each, MiB: {found}")


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
    await leave_nothing(env_factory(spec, given), answer, turns)


class Leaking(GuessNumber):
    """Keeps what no rollout needs any more, and more of it than one may leave."""

    kept: ClassVar[list[bytearray]] = []

    async def close(self) -> None:
        """Where others let go."""
        self.kept.append(bytearray(b"x" * (64 << 10)))


async def test_what_leaks_is_found() -> None:
    """An environment that keeps 64 KiB of each rollout: no round of it is calm."""
    with pytest.raises(AssertionError, match="each round left more than 20 KiB a rollout"):
        await leave_nothing(lambda: Leaking(guesses=1), "hm", 1, each=AT_ONCE)
    Leaking.kept.clear()
