"""Sums over rollouts."""

from __future__ import annotations

from rollout.records import FallbackReason, Rollout, Route, StopReason, Turn
from rollout.stats import Stats
from rollout.summary import Summary


def rollout_of(member: int, turns: int) -> Rollout:
    """A finished rollout with `turns` turns of three tokens."""
    first = Turn(route=Route.MESSAGE_IN, fallback=FallbackReason.FIRST_TURN, completion_tokens=3)
    later = [Turn(route=Route.TOKEN_IN, completion_tokens=3, prefix_break=False) for _ in range(turns - 1)]
    return Rollout(
        id=f"0-a-{member}",
        task_id="0-a",
        task_index=0,
        member=member,
        reward=1.0,
        stop=StopReason.DONE,
        turns=[first, *later],
    )


def test_turns_are_counted_by_route_and_reason() -> None:
    """Every turn is token-in or message-in, and every message-in turn has its reason."""
    summary = Summary(env="echo")
    summary.add(rollout_of(0, 4))
    assert (summary.turns, summary.token_in_turns, summary.message_in_turns) == (4, 3, 1)
    assert summary.fallbacks == {"first_turn": 1}
    assert summary.reward_mean == 1.0


def test_a_resumed_run_claims_only_its_own_speed() -> None:
    """What an earlier run played counts in the sums and not in the speed."""
    summary = Summary(env="echo")
    summary.add_resumed(rollout_of(0, 4))
    summary.add(rollout_of(1, 2))
    assert summary.turns == 6
    assert summary.speeds(2.0) == (3.0, 1.0)
    assert summary.as_json(wall_s=2.0, client_cpu_s=0.0, run_dir="r", stats=Stats())["turns_per_s"] == 1.0
