"""What real servers say of their load, and concurrency that follows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.pace import START
from rollout.transport import TransportConfig
from tests.live.servers import Server
from tests.live.test_run import run
from transports.auto import AutoTransport

pytestmark = pytest.mark.live


@pytest.mark.parametrize("kind", ["vllm", "dynamo"])
async def test_real_servers_say_their_load(kind: str, request: pytest.FixtureRequest) -> None:
    """The metrics have the names that are read: an idle server has nothing running and nothing waiting."""
    server: Server = request.getfixturevalue(kind)
    transport = AutoTransport(TransportConfig(base_url=server.url))
    try:
        await transport.check()
        load = await transport.load()
    finally:
        await transport.aclose()
    assert (load.running, load.waiting) == (0, 0)
    if kind == "vllm":
        assert load.cache_usage is not None
        assert load.preemptions == 0


def test_concurrency_grows_as_vllm_keeps_up(vllm: Server, tmp_path: Path) -> None:
    """`-c auto` goes above where it began, and every rollout is played."""
    result = run("guess_number", "-n", "40", "-r", "4", "-c", "auto", "--base-url", vllm.url, "--verify", cwd=tmp_path)
    assert result["failures"] == 0
    assert result["rollouts"] == 160
    assert result["most_running"] > START
