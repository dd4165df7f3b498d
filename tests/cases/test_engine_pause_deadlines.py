"""Case engine/pause_deadlines: our own pause used up the deadlines of what it had stopped."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from rollout import Engine, EngineConfig, Env, Message, Step, user
from tests.cases.vllm_double import until, vllm_double


class Turns(Env):
    """Two turns."""

    def __init__(self) -> None:
        self.turn = 0

    async def reset(self, task: Any) -> list[Message]:
        return [user("x")]

    async def step(self, message: Message) -> Step:
        self.turn += 1
        return Step(done=self.turn == 2, messages=[user("more")], reward=1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("setting", ["request_timeout_s", "episode_timeout_s", "straggler_timeout_s"])
async def test_deadlines_stand_still_while_we_paused_the_server(setting: str, processes: int) -> None:
    """A pause longer than the deadline fails nothing, in any process."""
    async with vllm_double(answer_s=0.1) as server:
        limits: dict[str, Any] = {setting: 0.5}
        config = EngineConfig(base_url=server.url, max_tokens=8, processes=processes, **limits)
        groups = []
        async with Engine(config, Turns) as running, anyio.create_task_group() as beside:

            async def play() -> None:
                groups.extend([group async for group in running.stream([{"n": 0}, {"n": 1}], rollouts_per_task=2)])

            beside.start_soon(play)
            await until(lambda: bool(server.completions))
            await running.pause()
            await anyio.sleep(1.2)
            assert not groups
            await running.resume()
    assert [rollout.failure for group in groups for rollout in group.rollouts] == [None] * 4


async def test_a_request_that_is_not_answered_in_its_time_fails() -> None:
    """Without a pause the deadline counts."""
    async with vllm_double(answer_s=30) as server:
        config = EngineConfig(base_url=server.url, max_tokens=8, request_timeout_s=0.2)
        async with Engine(config, Turns) as running:
            (group,) = [group async for group in running.stream([{"n": 0}])]
    (rollout,) = group.rollouts
    assert rollout.failure is not None
    assert rollout.failure.error == "RequestTimeout"
