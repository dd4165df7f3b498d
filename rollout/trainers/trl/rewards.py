"""Reward functions of TRL that read what a `rollout_func`'s rows carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

#: What TRL gives reward functions to log a number with: averaged over a logging step and over processes.
LogMetric = Callable[[str, float], None]


def reward(
    *,
    rollout_reward: Sequence[float | None],
    rollout_failure: Sequence[str],
    rollout_branches: Sequence[int] = (),
    rollout_left_out: Sequence[int] = (),
    rollout_turns: Sequence[int] = (),
    log_metric: LogMetric | None = None,
    **_: Any,
) -> list[float | None]:
    """The environment's rewards: `GRPOTrainer(reward_funcs=trl.reward)`.

    None, which TRL leaves out of a group's baseline, for a rollout that failed. Logs shares of the rows of a step:
    `rollouts/failed` and `rollouts/failed/KIND`, `rollouts/branched`, and of each row its turns and the sampled tokens
    that it leaves out.
    """
    if log_metric is not None and rollout_failure:
        for name, value in metrics_of(rollout_failure, rollout_branches, rollout_left_out, rollout_turns).items():
            log_metric(name, value)
    return list(rollout_reward)


def metrics_of(
    failures: Sequence[str], branches: Sequence[int], left_out: Sequence[int], turns: Sequence[int]
) -> dict[str, float]:
    """What `reward` logs."""
    count = len(failures)
    failed = Counter(failure for failure in failures if failure)
    found = {"rollouts/failed": failed.total() / count}
    found |= {f"rollouts/failed/{kind}": number / count for kind, number in sorted(failed.items())}
    found["rollouts/branched"] = sum(number > 1 for number in branches) / count
    found["rollouts/left_out_tokens"] = sum(left_out) / count
    found["rollouts/turns"] = sum(turns) / count
    return found


def scored(function: Callable[..., Sequence[float | None]]) -> Callable[..., list[float | None]]:
    """A reward function of your own, which scores no row of a rollout that failed: its completion is a filler."""

    @wraps(function)
    def only_finished(*, rollout_failure: Sequence[str], **columns: Any) -> list[float | None]:
        rewards = function(rollout_failure=rollout_failure, **columns)
        return [None if failure else value for value, failure in zip(rewards, rollout_failure, strict=True)]

    return only_finished
