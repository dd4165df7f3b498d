"""What the engine is asked for, what it keeps of it while it runs, and what it answers."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from transports.embedded.cache import KeyValues
from transports.embedded.sampling import SamplerState, SamplingParams

FinishReason = Literal["stop", "length", "abort"]
PauseMode = Literal["abort", "wait", "keep"]


#: Upper bounds of the buckets of times to first token: eight a decade, from 0.1 ms to 800 s.
FIRST_TOKEN_BOUNDS = tuple(float(f"{a}e{b}") for b in range(-4, 3) for a in (1, 1.5, 2, 3, 4, 5, 6, 8))


class EngineClosedError(RuntimeError):
    """The engine was closed, or its thread died, while a request ran."""


@dataclass(frozen=True)
class VersionSpan:
    """Completion tokens [start, end) were sampled under this weight version."""

    version: str
    start: int
    end: int


@dataclass(frozen=True)
class Completion:
    """What one request ended with. All lists have one length."""

    ids: list[int]
    """Sampled ids, stop token included."""
    logprobs: list[float]
    ranks: list[int]
    top: list[list[tuple[int, float]]]
    finish_reason: FinishReason
    cached_tokens: int
    """Prompt tokens whose keys and values came from the cache."""
    weight_versions: list[VersionSpan]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One prompt to complete."""

    request_id: str
    prompt_ids: Sequence[int]
    params: SamplingParams
    cache_salt: str | None = None
    priority: int = 0
    """Lower is sooner."""
    stops_on_text: Callable[[list[int]], bool] | None = None
    """Asked after each token with the ids so far, for stop strings."""


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and what is going on now."""

    running: int
    waiting: int
    cache_usage: float
    """0 to 1."""
    cache_queries: int
    cache_hits: int
    prompt_tokens: int
    completion_tokens: int
    steps: int
    finished: dict[str, int]
    """Requests by finish reason."""
    first_token_s: tuple[float, ...]
    """For each of FIRST_TOKEN_BOUNDS and one above them all: requests whose first token took no longer."""
    first_token_sum_s: float
    paused: bool
    weight_version: str


class FirstTokens:
    """How long requests waited for their first token."""

    def __init__(self) -> None:
        self.sum_s = 0.0
        self._counts = [0] * (len(FIRST_TOKEN_BOUNDS) + 1)

    def add(self, seconds: float) -> None:
        """Counts one request."""
        self.sum_s += seconds
        self._counts[bisect_left(FIRST_TOKEN_BOUNDS, seconds)] += 1

    def cumulative(self) -> tuple[float, ...]:
        """Requests that took no longer than each bound; all of them in the end."""
        return tuple(accumulate(self._counts))


@dataclass(eq=False)
class Running:
    """A job in the engine, from its arrival to its end. Touched by the engine's thread alone."""

    job: Job
    future: Future[Completion]
    kv: KeyValues
    state: SamplerState
    epoch: int
    """Weights' epoch in which the first token was computed; the cache takes no mixture of weights."""
    arrival: int
    arrived_at: float = field(default_factory=time.monotonic)
    cached: int = 0
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    spans: list[VersionSpan] = field(default_factory=list)

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that are still to be computed."""
        return len(self.job.prompt_ids) - self.kv.length
