"""A real vLLM takes new weights in the middle of a run: tokens know their version, and nothing in flight is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.echo import Echo
from rollout import EngineConfig
from rollout.servers.weights import InFlight
from tests.live.servers import Server
from tests.live.updates import updated_under_way
from transports.embedded import MODEL_DIR

pytestmark = pytest.mark.live


@pytest.mark.parametrize("in_flight", ["keep", "wait", "abort"])
async def test_versions_advance_under_way(vllm: Server, in_flight: InFlight, other_weights: Path) -> None:
    """Two updates while rollouts run: all finish, every sampled token has a version, and versions never go back."""
    config = EngineConfig(
        base_url=vllm.url, max_tokens=64, concurrency=16, verify=True, sampling={"ignore_eos": True, "min_tokens": 60}
    )
    rollouts = await updated_under_way(
        config, lambda: Echo(turns=4, chars=80), in_flight, [other_weights, MODEL_DIR], tasks=12, after_turns=10
    )
    for turn in (turn for rollout in rollouts for turn in rollout.turns):
        assert turn.finish_reason != "abort"
        assert turn.completion_tokens >= 60
