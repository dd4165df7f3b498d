"""Two temperatures on one prompt tell what a server's logprobs are of, and what does not tell is unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.request import LogprobsMode, Sampling
from rollout.transport import TransportConfig
from transports.embedded import transport as embedded
from transports.http.client import HttpClient
from transports.logprobs import ALTERNATIVES, COLD, find_mode, mode_of

LOGITS = st.lists(st.integers(-60, 60), min_size=8, max_size=8, unique=True).map(lambda tenths: np.array(tenths) / 10)


def likeliest(logits: Any, temperature: float) -> dict[str, float]:
    """The likeliest tokens' logprobs at a temperature."""
    scaled = logits / temperature
    logprobs = scaled - np.log(np.exp(scaled).sum())
    best = np.argsort(-logprobs)[:ALTERNATIVES]
    return {str(token): float(logprobs[token]) for token in best}


@given(logits=LOGITS)
def test_the_two_kinds_are_told_apart(logits: Any) -> None:
    """Whatever the distribution is, as long as its likeliest tokens differ."""
    warm = likeliest(logits, 1.0)
    assert mode_of(warm, dict(warm)) == "raw_logprobs"
    assert mode_of(warm, likeliest(logits, COLD)) == "processed_logprobs"


@pytest.mark.parametrize(
    ("warm", "cold", "found"),
    [
        ({"a": -0.5}, {"a": -0.5}, "raw_logprobs"),
        ({"a": -0.5}, {"a": -0.2}, None),
        ({"a": 0.0}, {"a": 0.0}, None),
        ({"a": -0.5, "b": -0.51}, {"a": -0.5, "b": -0.52}, None),
        ({"a": -0.5, "b": -1.0}, {"a": -0.5, "b": -9.0}, None),
        ({"a": -0.5, "b": -1.0}, {"c": -0.5, "d": -1.0}, None),
        ({"a": -0.1, "b": -9999.0, "c": -9999.0}, {"a": -0.1, "b": -9999.0, "c": -9999.0}, "raw_logprobs"),
        ({}, {}, None),
    ],
)
def test_what_does_not_tell_is_unknown(
    warm: Mapping[str, float], cold: Mapping[str, float], found: LogprobsMode | None
) -> None:
    """A single id is only seen to stay; certain tokens, near ones, filtered ones and random answers say nothing."""
    assert mode_of(warm, cold) == found


@pytest.mark.parametrize("dialect", ["vllm", "dynamo"])
@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
async def test_the_embedded_model_is_found_out(dialect: str, mode: str) -> None:
    """In both dialects, as it was started."""
    transport = await embedded.open(TransportConfig(options={"dialect": dialect, "logprobs_mode": mode}))
    await transport.aclose()
    assert transport.info.logprobs_mode == mode
    # Dynamo does not say how it samples by itself.
    assert transport.info.sampling_defaults == (Sampling() if dialect == "vllm" else None)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"logprobs": None}]}, {"choices": 3}, None])
async def test_a_server_that_gives_none_is_unknown(answer: Any) -> None:
    """No answer without logprobs, and no refusal, is more than an answer that does not tell."""

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400 if answer is None else 200, content=json.dumps(answer))

    client = HttpClient("http://x", transport=httpx.MockTransport(handle), retries=0)
    assert await find_mode(client, "/v1/chat/completions", {}) is None
    await client.aclose()
