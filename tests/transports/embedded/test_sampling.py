"""Sampling: filters as vLLM has them, and logprobs of the model's own distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from transports.embedded.sampling import LogprobsMode, SamplerState, SamplingParams, log_softmax, sample

LOGITS = np.log(np.array([[0.5, 0.25, 0.15, 0.08, 0.02]], np.float32))


def drawn(count: int = 2000, prompt: tuple[int, ...] = (), said: tuple[int, ...] = (), **params: Any) -> list[float]:
    """Share of each token in many draws."""
    settings = SamplingParams(max_tokens=9, **params)
    generator = np.random.default_rng(5)
    states = [SamplerState(settings, generator, prompt, list(said)) for _ in range(count)]
    ids = sample(np.repeat(LOGITS, count, 0), states).ids
    return [ids.count(token) / count for token in range(5)]


def test_draws_follow_the_distribution() -> None:
    """At temperature 1 each token comes as often as it is likely."""
    np.testing.assert_allclose(drawn(20_000), np.exp(LOGITS[0]), atol=0.012)


@pytest.mark.slow
def test_temperature_sharpens() -> None:
    """At temperature 0.5 probabilities are squared and rescaled."""
    squared = np.exp(LOGITS[0]) ** 2
    np.testing.assert_allclose(drawn(20_000, temperature=0.5), squared / squared.sum(), atol=0.012)


@pytest.mark.parametrize(
    ("params", "possible"),
    [
        ({"temperature": 0.0}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": -1}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.8}, {0, 1, 2}),
        ({"min_p": 0.29}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.6, "temperature": 1.0}, {0, 1}),
        ({"stop_ids": frozenset({0, 1}), "min_tokens": 1}, {2, 3, 4}),
    ],
)
def test_filters_leave_the_likely(params: dict[str, Any], possible: set[int]) -> None:
    """Each filter allows exactly the tokens that its definition allows."""
    assert {token for token, share in enumerate(drawn(**params)) if share > 0} == possible


def test_penalties_weigh_on_what_was_said() -> None:
    """Repetition counts prompt and completion; presence and frequency the completion only."""
    assert drawn(prompt=(0,), repetition_penalty=5.0)[0] < 0.1
    assert drawn(prompt=(0,), presence_penalty=2.0)[0] > 0.4
    assert drawn(said=(0, 0), frequency_penalty=2.0)[0] < 0.05


def test_logprobs_are_the_models_own() -> None:
    """Temperature and filters change what is drawn, not what is reported."""
    params = SamplingParams(max_tokens=1, temperature=0.1, top_k=1, top_logprobs=2)
    result = sample(LOGITS, [SamplerState(params, np.random.default_rng(0), ())])
    assert result.ids == [0]
    assert result.ranks == [1]
    assert result.logprobs == pytest.approx([np.log(0.5)], abs=1e-6)
    ((first, half), (second, quarter)) = result.top[0]
    assert (first, second) == (0, 1)
    assert (half, quarter) == pytest.approx((np.log(0.5), np.log(0.25)), abs=1e-6)


def test_a_draw_never_meets_an_impossible_token() -> None:
    """Even the largest draw below 1 lands on a token that the filters left."""

    class Largest:
        def random(self) -> float:
            return float(np.nextafter(1.0, 0.0))

    state = SamplerState(SamplingParams(max_tokens=1, top_k=2), Largest(), ())  # type: ignore[arg-type]
    assert sample(LOGITS, [state]).ids == [1]


def test_log_softmax_sums_to_one() -> None:
    """Large logits neither overflow nor lose the sum."""
    assert np.exp(log_softmax(np.array([[1e4, 1e4 - 1, -1e4]], np.float32))).sum() == pytest.approx(1.0)


def chosen(mode: LogprobsMode, **params: Any) -> tuple[int, float, list[tuple[int, float]]]:
    """A draw, its logprob, and all logprobs."""
    state = SamplerState(SamplingParams(max_tokens=9, top_logprobs=5, **params), np.random.default_rng(5), (), [])
    found = sample(LOGITS, [state], mode)
    return found.ids[0], found.logprobs[0], found.top[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "params", [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 2.0, "min_p": 0.2}]
)
def test_processed_logprobs_are_of_what_was_drawn_from(params: dict[str, Any]) -> None:
    """They are the shares in which tokens come; what a filter took is as unlikely as vLLM can say. Raw ones stay."""
    token, logprob, top = chosen("processed_logprobs", **params)
    shares = drawn(20_000, **params)
    np.testing.assert_allclose([np.exp(dict(top)[token]) for token in range(5)], shares, atol=0.012)
    assert logprob == dict(top)[token]
    assert {share for share, (_, value) in zip(sorted(shares, reverse=True), top, strict=True) if value == -9999} <= {0}
    token, logprob, top = chosen("raw_logprobs", **params)
    np.testing.assert_allclose([dict(top)[token] for token in range(5)], LOGITS[0], atol=1e-6)


def test_the_likeliest_token_has_the_models_logprob_in_both_modes() -> None:
    """At temperature 0 nothing is divided and nothing filtered, as on vLLM."""
    assert chosen("processed_logprobs", temperature=0.0, top_k=1)[1] == chosen("raw_logprobs", temperature=0.0)[1]
