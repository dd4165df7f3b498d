"""New weights in the middle of a run on a real server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import anyio.lowlevel

from envs.echo import Echo
from rollout import Engine, EngineConfig, Group, Rollout
from rollout.servers.weights import InFlight
from transports.embedded import MODEL_DIR


async def updated_under_way(
    config: EngineConfig,
    make_env: Callable[[], Echo],
    in_flight: InFlight,
    folders: Sequence[Path],
    *,
    tasks: int,
    after_turns: int,
) -> list[Rollout]:
    """Loads each folder while rollouts run, `after_turns` turns apart, and returns the rollouts.

    All have finished, every sampled token has a version, and versions never go back.
    """
    groups: list[Group] = []
    async with Engine(config, make_env) as engine:
        await engine.update_weights(0, MODEL_DIR, in_flight="wait")

        async def updates() -> None:
            for version, folder in enumerate(folders, 1):
                turns = engine.stats().turns
                while engine.stats().turns < turns + after_turns:
                    await anyio.lowlevel.checkpoint()
                await engine.update_weights(version, folder, in_flight=in_flight)

        async with anyio.create_task_group() as beside:
            beside.start_soon(updates)
            groups.extend([group async for group in engine.stream(Echo().tasks(tasks, seed=0), rollouts_per_task=2)])
        assert engine.weight_version == str(len(folders))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert all(rollout.ok for rollout in rollouts), [rollout.failure for rollout in rollouts if rollout.failure]
    seen: set[int] = set()
    for rollout in rollouts:
        versions = [int(span.version) for turn in rollout.turns for span in turn.weight_versions]
        covered = sum(span.end - span.start for turn in rollout.turns for span in turn.weight_versions)
        assert covered == sum(turn.completion_tokens for turn in rollout.turns)
        assert versions == sorted(versions)
        assert not any(turn.prefix_break for turn in rollout.turns)
        seen.update(versions)
    assert seen == set(range(len(folders) + 1))
    return rollouts
