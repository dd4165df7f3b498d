"""Cases seams/busy_server_is_alive, slow_server and e27: long completions at full concurrency, on a healthy server."""

from __future__ import annotations

import anyio
import pytest

from envs.echo import Echo
from rollout import Engine, EngineConfig
from rollout.records import Group
from tests.local_server import serving
from tests.transports.fake_vllm import FakeVllm, until

AT_ONCE = 8


def engine(url: str) -> Engine:
    return Engine(EngineConfig(base_url=url, concurrency=AT_ONCE, max_tokens=3000), lambda: Echo(turns=1))


@pytest.mark.slow
async def test_a_busy_server_is_never_out() -> None:
    """Each completion takes long, every slot has one, and the server is heard again and again."""
    fake = FakeVllm(holds=True, held_reason="stop")
    with serving(fake.app) as url:
        groups: list[Group] = []
        async with engine(url) as running, anyio.create_task_group() as beside:

            async def play() -> None:
                groups.extend([group async for group in running.stream(Echo().tasks(AT_ONCE, 0))])

            beside.start_soon(play)
            await until(lambda: fake.running == AT_ONCE and fake.seen["/health"] >= 3)
            assert [state.up for state in running.stats().servers] == [True]
            await running.pause("wait")
    assert [rollout.ok for group in groups for rollout in group.rollouts] == [True] * AT_ONCE
    assert fake.seen["/v1/chat/completions"] == AT_ONCE


async def test_weights_are_updated_at_once_under_full_load() -> None:
    """`update_weights(in_flight="abort")` waits for no connection that carries a completion."""
    fake = FakeVllm(holds=True)
    with serving(fake.app) as url:
        async with engine(url) as running, anyio.create_task_group() as beside:

            async def play() -> None:
                async for _ in running.stream(Echo().tasks(AT_ONCE, 0)):
                    pass

            beside.start_soon(play)
            await until(lambda: fake.running == AT_ONCE)
            with anyio.fail_after(60):  # the completions are held for as long as nothing aborts them
                await running.update_weights("1", "/w/1", in_flight="abort")
            beside.cancel_scope.cancel()
