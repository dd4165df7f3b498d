"""What real servers say of their load, concurrency that follows it, a thousand at once, and several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.schedule.concurrency import START
from rollout.transport import TransportConfig
from tests.live.servers import Server
from tests.live.test_faults import assert_idle
from tests.live.test_run import ECHO, TOKENIZER, assert_token_exact, run
from transports.auto import open as open_auto

pytestmark = pytest.mark.live


@pytest.mark.parametrize("kind", ["vllm", "dynamo"])
async def test_real_servers_say_their_load(kind: str, request: pytest.FixtureRequest) -> None:
    """The metrics have the names that are read: an idle server has nothing running and nothing waiting."""
    server: Server = request.getfixturevalue(kind)
    transport = await open_auto(TransportConfig(base_url=server.url))
    try:
        await transport.check()
        assert_idle(server)  # the gauges may still count what opening has probed
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


def test_a_thousand_at_once_on_dynamo(dynamo: Server, tmp_path: Path) -> None:
    """A thousand rollouts in flight on one frontend: each is played, token-in from its second turn, and verified."""
    size = ["-n", "1000", "-c", "1000", "-a", "turns=3", "--max-tokens", "8", "--verify"]
    result = run("echo", *size, "--base-url", dynamo.url, *TOKENIZER, cwd=tmp_path)
    assert (result["rollouts"], result["failures"], result["most_running"]) == (1000, 0, 1000)
    assert (result["token_in_turns"], result["prefix_breaks"]) == (2000, 0)
    assert result["fallbacks"] == {"first_turn": 1000}


@pytest.mark.parametrize("kind", ["vllm", "dynamo"])
def test_processes_are_token_exact(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Two processes on one server do what one does: no break, no fallback, one sample a rollout."""
    server: Server = request.getfixturevalue(kind)
    result = run(*ECHO, "--base-url", server.url, *TOKENIZER, "--processes", "2", cwd=tmp_path)
    assert_token_exact(result)
    assert (result["processes"], result["process_deaths"]) == (2, 0)
