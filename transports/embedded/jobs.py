"""What the engine is asked for, what it keeps of it while it runs, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from transports.embedded.cache import KeyValues
from transports.embedded.sampling import SamplerState, SamplingParams

FinishReason = Literal["stop", "length", "abort"]
PauseMode = Literal["abort", "wait", "keep"]


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
    paused: bool
    weight_version: str


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
    cached: int = 0
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    spans: list[VersionSpan] = field(default_factory=list)

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that are still to be computed."""
        return len(self.job.prompt_ids) - self.kv.length
