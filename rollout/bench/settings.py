"""What is compared, and in which order it is played."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from rollout.config import EngineConfig, Mode
from rollout.errors import UsageError
from rollout.store.settings import counts_of

MODES: tuple[Mode, Mode] = ("tito", "mito")

#: Against a server, and for the embedded model, whose context is shorter and which computes on this machine.
TURNS, EMBEDDED_TURNS = (8, 32, 128), (4, 16)
CONCURRENCY, EMBEDDED_CONCURRENCY = (16, 64, 256), (16,)


class BenchSettings(msgspec.Struct, kw_only=True):
    """What is compared. A cell is a number of turns at a concurrency."""

    config: EngineConfig
    """Where and how; the mode, the lengths and the salt are the benchmark's."""
    turns: Sequence[int] = TURNS
    concurrency: Sequence[int] = CONCURRENCY
    rollouts: int | None = None
    """Of each run; None is the concurrency: all at once. Of a replay, None is all that were recorded."""
    env_chars: int = 400
    max_tokens: int = 32
    """Every completion has exactly so many: the end of a turn is ignored. A replay has the recorded lengths."""
    repeats: int = 3
    replay: str | None = None
    """The folder of a run whose environment's side is played again, in place of conversations of a given size."""

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


def settings_of(
    config: EngineConfig, *, turns: str | None, concurrency: str | None, replay: str | None, **others: Any
) -> BenchSettings:
    """What a command line asks for: numbers with commas. Raises UsageError, ConfigError."""
    if replay is not None and turns is not None:
        raise UsageError("--turns and --replay exclude each other: a replay has the recorded run's turns")
    embedded = not config.base_url
    return BenchSettings(
        config=config,
        turns=counts_of(turns, "--turns") if turns else EMBEDDED_TURNS if embedded else TURNS,
        concurrency=(
            counts_of(concurrency, "--concurrency")
            if concurrency
            else EMBEDDED_CONCURRENCY
            if embedded
            else CONCURRENCY
        ),
        replay=replay,
        **others,
    )


class Cell(msgspec.Struct, frozen=True, order=True):
    """What the two modes are compared at."""

    turns: int | None
    """Of every conversation; None where they are a recorded run's."""
    concurrency: int

    def __str__(self) -> str:
        turns = "recorded turns" if self.turns is None else f"{self.turns} turns"
        return f"{turns}, {self.concurrency} at once"


def schedule(settings: BenchSettings) -> Iterator[tuple[Cell, int, Mode]]:
    """(cell, repeat, mode) of every run, in their order: whole pairs, and every cell before one is repeated.

    Which mode goes first changes from repeat to repeat.
    """
    turns: Sequence[int | None] = [None] if settings.replay else settings.turns
    for repeat in range(settings.repeats):
        for cell in [Cell(count, at_once) for count in turns for at_once in settings.concurrency]:
            for mode in MODES if repeat % 2 == 0 else MODES[::-1]:
                yield cell, repeat, mode
