"""Reward functions read what the rows carry: a failure is no reward of 0, and is counted by its reason."""

from __future__ import annotations

from typing import Any

from rollout.trainers.trl import reward, scored

COLUMNS: dict[str, Any] = {
    "prompts": ["a", "b", "c", "d"],
    "completions": ["1", "2", "3", "4"],
    "rollout_reward": [1.0, None, 0.0, None],
    "rollout_failure": ["", "timeout", "", "environment"],
    "rollout_branches": [1, 0, 3, 0],
    "rollout_left_out": [0, 0, 10, 0],
    "rollout_turns": [2, 1, 4, 1],
}


def test_a_failed_rollout_has_no_reward() -> None:
    """TRL leaves None out of a group's baseline; a reward of 0 stays one."""
    assert reward(**COLUMNS) == [1.0, None, 0.0, None]


def test_failures_are_logged_by_reason() -> None:
    """Shares of the step's rows, and what branches left out."""
    logged: dict[str, float] = {}
    reward(**COLUMNS, log_metric=logged.__setitem__)
    assert logged == {
        "rollouts/failed": 0.5,
        "rollouts/failed/timeout": 0.25,
        "rollouts/failed/environment": 0.25,
        "rollouts/branched": 0.25,
        "rollouts/left_out_tokens": 2.5,
        "rollouts/turns": 2.0,
    }


def test_a_reward_function_of_ones_own_scores_no_filler() -> None:
    """Whatever it says of a failed rollout's row is left out; it keeps its name, by which TRL logs it."""

    def length(completions: list[str], **_: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    assert scored(length)(**COLUMNS) == [1.0, None, 1.0, None]
    assert scored(length).__name__ == "length"
