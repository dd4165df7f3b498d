"""From logits to tokens, for a whole batch: filters, draws, and the logprobs that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from transports.embedded.cache import Float32

#: What logprobs are of, by vLLM's names: before temperature, penalties and filters, or after them.
LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]

#: What vLLM answers for a logprob below it, for JSON has no infinity.
LEAST_LOGPROB = -9999.0


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one completion is sampled. Names and meanings are vLLM's."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1: no limit."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over the prompt and what was sampled."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the completion; they are part of it."""
    min_tokens: int = 0
    """No stop id is sampled before this many tokens."""
    top_logprobs: int = 0
    """How many of the likeliest tokens are reported for each position."""

    @property
    def is_plain(self) -> bool:
        """Whether the distribution is the model's own but for its temperature."""
        return (
            self.top_p >= 1.0
            and self.top_k <= 0
            and self.min_p <= 0.0
            and self.repetition_penalty == 1.0
            and not self.presence_penalty
            and not self.frequency_penalty
        )


@dataclass
class SamplerState:
    """What sampling one completion needs to remember."""

    params: SamplingParams
    generator: np.random.Generator
    """The request's own where it has a seed, else the engine's."""
    prompt_ids: Sequence[int]
    completion_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Sampled:
    """One token for each row of a batch."""

    ids: list[int]
    logprobs: list[float]
    """By default under the model's own distribution, before temperature and filters, as vLLM reports them: see
    `LogprobsMode`."""
    ranks: list[int]
    """1 for the likeliest token."""
    top: list[list[tuple[int, float]]]
    """The likeliest tokens with their logprobs, for the rows that asked."""


def sample(logits: Float32, states: Sequence[SamplerState], mode: LogprobsMode = "raw_logprobs") -> Sampled:
    """Draws one token per row of `logits` (rows, vocabulary)."""
    adjusted: NDArray[np.float64] = logits.astype(np.float64)
    for row, state in enumerate(states):
        _adjust(adjusted[row], state)
    logprobs = log_softmax(logits) if mode == "raw_logprobs" else log_softmax(adjusted.astype(np.float32))
    draws = np.array([state.generator.random() for state in states])
    greedy = np.array([state.params.temperature <= 0 for state in states])
    ids = np.where(greedy, adjusted.argmax(-1), _inverse(adjusted, draws))
    rows = np.arange(len(ids))
    chosen = logprobs[rows, ids]
    ranks = (logprobs > chosen[:, None]).sum(-1) + 1
    top = [_top(logprobs[row], state.params.top_logprobs) for row, state in enumerate(states)]
    return Sampled(ids.tolist(), chosen.tolist(), ranks.tolist(), top)


def log_softmax(logits: Float32) -> Float32:
    """Natural log of the probabilities, row by row."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: Float32 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _adjust(row: NDArray[np.float64], state: SamplerState) -> None:
    """Penalties, forbidden stops, temperature and filters, in vLLM's order, in place."""
    params = state.params
    if len(state.completion_ids) < params.min_tokens:
        row[list(params.stop_ids)] = -np.inf
    if params.is_plain and params.temperature in (0.0, 1.0):
        return
    _penalize(row, state)
    if params.temperature <= 0:
        return  # the likeliest token passes every filter, and vLLM drops them
    row /= params.temperature
    if params.min_p > 0:
        row[row < row.max() + np.log(params.min_p)] = -np.inf
    if 0 < params.top_k < len(row):
        row[row < np.partition(row, -params.top_k)[-params.top_k]] = -np.inf
    if params.top_p < 1:
        order = np.argsort(-row, kind="stable")
        weights = np.exp(row[order] - row[order[0]])
        before = np.cumsum(weights) - weights
        row[order[before >= params.top_p * weights.sum()]] = -np.inf


def _penalize(row: NDArray[np.float64], state: SamplerState) -> None:
    params = state.params
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.array([*state.prompt_ids, *state.completion_ids], np.int64))
        values = row[seen]
        row[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and state.completion_ids:
        said, counts = np.unique(np.array(state.completion_ids, np.int64), return_counts=True)
        row[said] -= params.presence_penalty + params.frequency_penalty * counts


def _inverse(logits: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where the cumulated probability passes the draw, row by row: an impossible token is never met."""
    cumulated = np.cumsum(np.exp(logits - logits.max(-1, keepdims=True)), -1)
    # The draw is below 1, but its product with the total may round up to the total.
    threshold = np.minimum(draws[:, None] * cumulated[:, -1:], np.nextafter(cumulated[:, -1:], 0))
    result: NDArray[np.int64] = (cumulated <= threshold).sum(-1)
    return result


def _top(logprobs: Float32, count: int) -> list[tuple[int, float]]:
    if not count:
        return []
    best = np.argsort(-logprobs, kind="stable")[:count]
    return [(int(token), max(LEAST_LOGPROB, float(logprobs[token]))) for token in best]
