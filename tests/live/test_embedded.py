"""The embedded model is a real Qwen3: vLLM gives the same logprobs for the same ids."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from tests.live.servers import Server
from transports.embedded import MODEL_DIR
from transports.embedded.model import Chunk, Model
from transports.embedded.sampling import log_softmax

pytestmark = pytest.mark.live


def test_logprobs_agree_with_vllm(vllm: Server) -> None:
    """On 1,000 ids over the whole vocabulary, logprobs differ by 1e-3 at most in float32."""
    model = Model.load(MODEL_DIR)
    chance = np.random.default_rng(0)
    for _ in range(4):
        ids = [int(i) for i in chance.integers(0, model.config.vocab_size, 250)]
        body = {"model": "tiny", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
        answer = httpx.post(f"{vllm.url}/v1/completions", json=body, timeout=120).json()
        entries = answer["choices"][0]["prompt_logprobs"]
        theirs = [entry[str(token)]["logprob"] for entry, token in zip(entries[1:], ids[1:], strict=True)]
        every = log_softmax(model.forward([Chunk(ids, model.new_kv())], every=True))
        ours = every[np.arange(len(ids) - 1), ids[1:]]
        assert np.abs(ours - np.array(theirs)).max() <= 1e-3
