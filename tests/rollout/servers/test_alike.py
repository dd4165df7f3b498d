"""What a fleet says of itself holds for each of its servers."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.errors import ConfigError
from rollout.servers.alike import join
from rollout.transport import ServerInfo
from tests.log_kit import capture_logs


def info(**fields: Any) -> ServerInfo:
    return ServerInfo(**{"dialect": "vllm", "model": "m", "models": ["m"], "max_model_len": 100, **fields})


@pytest.mark.parametrize("field", ["model", "dialect", "token_route"])
@pytest.mark.parametrize("started", [False, True])
def test_another_kind_of_server_is_refused(field: str, started: bool) -> None:
    """By its address, with what differs."""
    with pytest.raises(ConfigError, match=f"http://b is not like the other servers: {field} is 'other'"):
        join(info(), info(**{field: "other"}), "http://b", started=started)


def test_what_is_recorded_is_not_known_where_servers_differ() -> None:
    """And is said once of each that differs."""
    common = info(logprobs_mode="raw_logprobs")
    with capture_logs() as logs:
        join(common, info(logprobs_mode="raw_logprobs"), "http://b", started=False)
        join(common, info(logprobs_mode="processed_logprobs"), "http://c", started=False)
    assert common.logprobs_mode is None
    assert [(line["server"], line["field"]) for line in logs] == [("http://c", "logprobs_mode")]


@pytest.mark.parametrize(
    ("known", "own", "started", "then"),
    [
        (100, 80, False, 80),
        (100, 120, False, 100),
        (None, 80, False, 80),
        (100, None, False, 100),
        (None, 80, True, None),
        (100, 120, True, 100),
    ],
)
def test_the_shortest_context_is_the_fleets(
    known: int | None, own: int | None, started: bool, then: int | None
) -> None:
    """As far as servers tell it, before anything is played."""
    common = info(max_model_len=known)
    join(common, info(max_model_len=own), "http://b", started=started)
    assert common.max_model_len == then


def test_a_shorter_context_cannot_join_later() -> None:
    """Trajectories that are played fit the others only."""
    with pytest.raises(ConfigError, match="http://b has a context of 80 tokens, and the others of 100 at least"):
        join(info(), info(max_model_len=80), "http://b", started=True)
