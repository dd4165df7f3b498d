"""What a real vLLM's logprobs are of, and how it samples by itself, are found; both routes draw alike."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator

import pytest

from rollout.chat.messages import user
from rollout.request import MessagePrompt, Reply, Request, Sampling, TokenPrompt
from rollout.transport import TransportConfig
from tests.live.servers import Server, vllm_server
from transports.embedded import MODEL_DIR
from transports.vllm.transport import open as open_vllm
from transports.vllm.wire import GENERATE

pytestmark = pytest.mark.live

#: Guesses follow: the model is unsure.
PROMPT = MessagePrompt([user("Guess my number from 1 to 64. 7 guesses left.")])

TOP_K = 2


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM as a trainer wants it, on a model that is to be sampled otherwise than at temperature 1."""
    folder = tmp_path_factory.mktemp("processed")
    shutil.copytree(MODEL_DIR, folder / "m")
    config = json.loads((folder / "m" / "generation_config.json").read_text())
    config |= {"temperature": 0.5, "top_k": TOP_K}
    (folder / "m" / "generation_config.json").write_text(json.dumps(config))
    with vllm_server(folder / "m", folder, extra_args=["--logprobs-mode", "processed_logprobs"]) as server:
        yield server


async def test_vllm_as_it_comes_reports_the_models_own(vllm: Server) -> None:
    """And says by /render that it changes nothing by itself."""
    transport = await open_vllm(TransportConfig(base_url=vllm.url))
    await transport.aclose()
    assert transport.info.logprobs_mode == "raw_logprobs"
    assert transport.info.sampling_defaults == Sampling()


async def test_processed_logprobs_and_the_models_own_settings_are_found(processed: Server) -> None:
    """Ids are drawn as messages are: with top-k 2, a token's probability and its alternative's sum to 1."""
    transport = await open_vllm(TransportConfig(base_url=processed.url))
    assert transport.info.logprobs_mode == "processed_logprobs"
    assert transport.info.sampling_defaults == Sampling(temperature=0.5, top_k=TOP_K)
    assert transport.info.token_route == GENERATE
    ids = TokenPrompt(await transport.tokenize(PROMPT, add_generation_prompt=True))
    probabilities: list[dict[int, float]] = []
    for prompt in (PROMPT, ids):
        found: dict[int, float] = {}
        for at in range(24):
            request = Request(prompt=prompt, request_id=f"r{at}", session_id="s", max_tokens=12)
            reply: Reply = await transport.generate(request)
            assert reply.completion_ids is not None
            assert reply.logprobs is not None
            found[reply.completion_ids[0]] = math.exp(reply.logprobs[0])
        probabilities.append(found)
        assert len(found) <= TOP_K
    await transport.aclose()
    by_messages, by_ids = probabilities
    for token in by_messages.keys() & by_ids.keys():
        assert by_messages[token] == pytest.approx(by_ids[token], rel=1e-3)
