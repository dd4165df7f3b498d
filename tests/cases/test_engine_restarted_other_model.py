"""Case engine/restarted_other_model: a server that came back as another was used, and burnt what it was sent."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from rollout import Engine, EngineConfig
from tests.cases.test_engine_pause_deadlines import Turns
from tests.cases.vllm_double import VllmDouble, until, vllm_double


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"model": "two"}, {"max_model_len": 1024}])
@pytest.mark.parametrize("down", [True, False])
async def test_a_server_that_restarts_as_another_stays_out(change: dict[str, Any], down: bool) -> None:
    """No rollout fails of it, also where it was never seen to be down; as itself again it is gone on with."""
    async with vllm_double(answer_s=0.05) as server:
        config = EngineConfig(base_url=server.url, max_tokens=8, concurrency=4, http_retries=0, server_wait_s=30)
        groups: list[Any] = []
        async with Engine(config, Turns) as running, anyio.create_task_group() as beside:
            often(running)

            async def play() -> None:
                groups.extend([group async for group in running.stream([{"n": n} for n in range(40)])])

            beside.start_soon(play)
            await until(lambda: server.completions > 8)
            await server.stop()
            if down:
                await until(lambda: not running.stats().servers[0].up)
            other = await VllmDouble(port=server.port, answer_s=0.05).start()
            for name, value in change.items():
                setattr(other, name, value)
            await until(lambda: not running.stats().servers[0].up)
            await anyio.sleep(0.2)
            assert not running.stats().servers[0].up
            assert other.completions <= 4 or "model" not in change
            await other.stop()
            await server.start()
        failures = [rollout.failure for group in groups for rollout in group.rollouts]
        assert failures == [None] * 40


def often(running: Engine) -> None:
    """Looks at the servers often enough for a test."""
    for server in running._player.fleet._servers:
        server.check_every_s = 0.02
    running._player.fleet._reconciler.lives._again_s = 0.02
