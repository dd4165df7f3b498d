"""A real vLLM takes new weights in the middle of a run: tokens know their version, and nothing in flight is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from envs.echo import Echo
from rollout import Engine, EngineConfig, Group
from rollout.servers.weights import InFlight
from tests.live.servers import Server
from transports.embedded import MODEL_DIR

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with slightly other weights."""
    folder = tmp_path_factory.mktemp("weights") / "other"
    shutil.copytree(MODEL_DIR, folder)
    chance = np.random.default_rng(0)
    weights = {
        name: (value + chance.normal(0, 1e-3, value.shape)).astype(value.dtype)
        for name, value in load_file(MODEL_DIR / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("in_flight", ["keep", "wait", "abort"])
async def test_versions_advance_under_way(vllm: Server, in_flight: InFlight, other_weights: Path) -> None:
    """Two updates while rollouts run: all finish, every sampled token has a version, and versions never go back."""
    config = EngineConfig(
        base_url=vllm.url, max_tokens=64, concurrency=16, verify=True, sampling={"ignore_eos": True, "min_tokens": 60}
    )
    groups: list[Group] = []
    async with Engine(config, lambda: Echo(turns=4, chars=80)) as engine:
        await engine.update_weights(0, MODEL_DIR, in_flight="wait")

        async def updates() -> None:
            for version, folder in ((1, other_weights), (2, MODEL_DIR)):
                turns = engine.stats().turns
                while engine.stats().turns < turns + 10:
                    await anyio.lowlevel.checkpoint()
                await engine.update_weights(version, folder, in_flight=in_flight)

        async with anyio.create_task_group() as beside:
            beside.start_soon(updates)
            groups.extend([group async for group in engine.stream(Echo().tasks(12, seed=0), rollouts_per_task=2)])
        assert engine.weight_version == "2"
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert all(rollout.ok for rollout in rollouts), [rollout.failure for rollout in rollouts if rollout.failure]
    seen: set[int] = set()
    for rollout in rollouts:
        versions = [int(span.version) for turn in rollout.turns for span in turn.weight_versions]
        covered = sum(span.end - span.start for turn in rollout.turns for span in turn.weight_versions)
        assert covered == sum(turn.completion_tokens for turn in rollout.turns)
        assert versions == sorted(versions)
        assert not any(turn.prefix_break for turn in rollout.turns)
        assert all(turn.finish_reason != "abort" and turn.completion_tokens >= 60 for turn in rollout.turns)
        seen.update(versions)
    assert seen == {0, 1, 2}
