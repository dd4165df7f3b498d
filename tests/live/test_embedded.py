"""The embedded model is a real Qwen3: vLLM gives the same logprobs for the same ids."""

from __future__ import annotations

import random

import httpx
import numpy as np
import pytest

from tests.live.servers import Server
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app

pytestmark = pytest.mark.live


async def test_logprobs_agree_with_vllm(vllm: Server) -> None:
    """Over 512 ids that use the whole vocabulary, logprobs differ by 1e-3 at most in float32."""
    chance = random.Random(0)
    app = create_app(MODEL_DIR, served_name="tiny")
    vocabulary = app.state.engine.model.config.vocab_size
    try:
        worst = 0.0
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://embedded") as here:
            for _ in range(4):
                ids = [chance.randrange(vocabulary) for _ in range(128)]
                # Greedy completions on both sides: equal logprobs choose equal tokens.
                body = {"model": "tiny", "prompt": ids, "max_tokens": 32, "temperature": 0, "logprobs": 0}
                body |= {"return_token_ids": True, "ignore_eos": True}
                ours = (await here.post("/v1/completions", json=body)).json()["choices"][0]
                theirs = httpx.post(f"{vllm.url}/v1/completions", json=body, timeout=120).json()["choices"][0]
                assert ours["token_ids"] == theirs["token_ids"]
                gap = np.subtract(ours["logprobs"]["token_logprobs"], theirs["logprobs"]["token_logprobs"])
                worst = max(worst, float(np.abs(gap).max()))
        assert worst <= 1e-3
    finally:
        app.state.engine.close()
