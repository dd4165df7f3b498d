"""Case engine/fake_vllm: servers that are silent, that redirect, and whose Retry-After has no zone."""

from __future__ import annotations

import time

import pytest

from envs.echo import Echo
from rollout import Engine, EngineConfig
from rollout.errors import ServerError
from tests.local_server import serving
from tests.transports.fake_vllm import FakeVllm
from transports import openai as common


def engine(url: str) -> Engine:
    return Engine(EngineConfig(base_url=url, concurrency=2, max_tokens=8), lambda: Echo(turns=1))


async def test_a_silent_server_ends_the_run_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and never answers: the run ends, and names it."""
    monkeypatch.setattr(common, "OPEN_S", 0.5)
    with serving(FakeVllm(silent={"/v1/models"}).app) as url:
        began = time.monotonic()
        with pytest.raises(ServerError, match=f"no server answers at {url}"):
            async with engine(url):
                pass
        assert time.monotonic() - began < 60


async def test_a_redirect_is_named() -> None:
    """The address that was meant is in the line."""
    with (
        serving(FakeVllm(redirects="https://elsewhere.example/v1/models").app) as url,
        pytest.raises(ServerError, match=r"redirects to https://elsewhere\.example/v1/models"),
    ):
        async with engine(url):
            pass


async def test_a_date_without_a_zone_is_waited_for() -> None:
    """What email.utils.formatdate writes ends in -0000: no rollout fails of it."""
    with serving(FakeVllm(late=0.0).app) as url:
        async with engine(url) as running:
            groups = [group async for group in running.stream(Echo().tasks(2, 0))]
    assert [rollout.ok for group in groups for rollout in group.rollouts] == [True, True]
