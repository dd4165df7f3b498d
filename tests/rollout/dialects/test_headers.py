"""What headers say of who asks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.dialects.headers import read_headers


def test_claude_codes_sub_agent_is_named() -> None:
    """By its own header, with the agent that started it."""
    caller = read_headers({"x-claude-code-agent-id": "a-2", "x-claude-code-parent-agent-id": "a-1", "x-api-key": "k"})
    assert (caller.agent, caller.parent, caller.keys) == ("a-2", "a-1", ("k",))


def test_codex_is_named_by_its_metadata() -> None:
    """Its session is the header's; metadata of another version names nobody."""
    metadata = json.dumps({"thread_id": "t", "agent_name": "reviewer", "window": {"n": 1}})
    caller = read_headers({"x-codex-turn-metadata": metadata, "session-id": "s", "thread-id": "t"})
    assert (caller.agent, caller.session) == ("reviewer", "s")
    for broken in ("{", "[]", '{"agent_name": 5}', "\udcff"):
        assert read_headers({"x-codex-turn-metadata": broken}).agent is None


def test_codexs_agents_are_told_apart() -> None:
    """Its main loop and the agents that it starts are all called "/root": those are named by their threads."""

    def named(**metadata: str) -> tuple[str | None, str | None]:
        said = {"session_id": "s", "thread_id": "s", "agent_name": "/root", **metadata}
        caller = read_headers({"x-codex-turn-metadata": json.dumps(said), "session-id": "s"})
        return caller.agent, caller.parent

    assert named() == (None, None)
    assert named(thread_id="t-1", parent_thread_id="s") == ("t-1", None)
    assert named(thread_id="t-2", parent_thread_id="t-1") == ("t-2", "t-1")
    assert named(thread_id="t-2", parent_thread_id="t-1", agent_name="/root/reviewer") == ("/root/reviewer", "t-1")
    side = {"x-codex-turn-metadata": '{"agent_name": "/root"}', "x-openai-subagent": "compact"}
    assert read_headers(side).agent == "compact"


def test_only_a_marked_retry_is_one() -> None:
    """SDKs send a count of 0 with what they send first."""
    assert not read_headers({}).is_retry
    assert not read_headers({"x-stainless-retry-count": "0"}).is_retry
    assert read_headers({"x-stainless-retry-count": "2"}).retry == 2
    assert not read_headers({"x-stainless-retry-count": "many"}).is_retry
    assert read_headers({"idempotency-key": "i-1"}).idempotency_key == "i-1"


@pytest.mark.parametrize("name", ["idempotency-key", "x-session-id", "x-rollout-agent"])
def test_long_values_stay_different(name: str) -> None:
    """However late they differ: two requests, sessions or agents are not one."""
    callers = [read_headers({name: "k" * length + end}) for length in (127, 128, 500) for end in "ab"]
    found = {caller.idempotency_key or caller.session or caller.agent or "" for caller in callers}
    assert len(found) == 6
    assert {len(each) for each in found} == {128}
    assert read_headers({name: "k" * 128}) == read_headers({name: "k" * 128 + " "})


def test_keys_are_not_shown() -> None:
    """They are what a request is let in by."""
    caller = read_headers({"authorization": "bearer  s3cret ", "x-api-key": "s3cret", "api-key": "other"})
    assert caller.keys == ("s3cret", "other")
    assert "s3cret" not in repr(caller)
    assert read_headers({"authorization": "Basic s3cret"}).keys == ()


@given(
    st.dictionaries(st.sampled_from(["x-codex-turn-metadata", "x-session-id", "x-stainless-retry-count"]), st.text())
)
def test_any_header_is_read(headers: dict[str, str]) -> None:
    """Nothing that a client sends raises, and what is kept of it is short."""
    caller = read_headers(headers)
    assert len(caller.session or "") <= 128
    assert 0 <= caller.retry <= 1_000


def test_a_turn_may_be_left_out_of_training() -> None:
    """By a header of ours; anything else is trained on."""
    left_out = [read_headers({"x-rollout-train": value}).train for value in ("false", "0", "No", "true", "", "x")]
    assert left_out == [False, False, False, True, True, True]
