"""A rollout -> the one row that TRL takes of it. Pure.

A row is a prompt (the ids before the first sampled one) and a completion (all from there to the last sampled one). What
the environment or a template added within the completion is masked: TRL's `env_mask` is 1 where a token was sampled
and is trained on, 0 elsewhere.

A rollout that failed still has a row, since TRL wants one: a single token, masked, without a reward. TRL leaves it out
of its group's baseline and trains on none of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from rollout.errors import ConfigError
from rollout.records import Rollout
from rollout.tokens.samples import TrainingSample
from rollout.trainers.rows import refuse_images

#: Which branch of a rollout that has several becomes its row.
Branches = Literal["longest", "last", "mask", "refuse"]

#: Why a rollout that did not fail has no row of its own, beside the kinds of failures.
NO_TOKENS, SEVERAL = "no_tokens", "several_branches"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout, as TRL takes it."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float | None]
    """Of each id of the completion; 0 where it was not sampled, None where the server's is no number."""
    mask: list[int]
    reward: float | None = None
    """None of a rollout that has no row of its own, or that nobody gave a reward: TRL leaves it out of its group."""
    failure: str = ""
    """Why that is: the kind of its failure, or `no_tokens` or `several_branches`."""
    message: str = ""
    """The failure, in words."""
    branches: int = 1
    left_out: int = 0
    """Sampled tokens of other branches, which are trained on nowhere."""
    stop: str = ""
    turns: int = 0
    rollout_id: str = ""
    versions: tuple[str, ...] = ()
    """The weight versions that sampled it, the oldest first; empty where its server does not tell."""


def row_of(rollout: Rollout, branches: Branches, *, filler: int, temperature: float | None = None) -> Row:
    """The row of a rollout. `filler` is the token of a row that has none of its own.

    `temperature` is what the trainer divides its logits by. Raises ConfigError for rollouts that TRL cannot take: with
    images, or sampled at another temperature; with several branches, where they are refused.
    """
    told: dict[str, Any] = {"stop": str(rollout.stop or ""), "turns": len(rollout.turns), "rollout_id": rollout.id}
    if rollout.failure is not None:
        return empty_row(filler, rollout.failure.kind.value, rollout.failure.message, **told)
    samples = [(sample, _mask(rollout, sample)) for sample in rollout.samples() if any(sample.loss_mask)]
    if not samples:
        return empty_row(filler, NO_TOKENS, "its server reported no sampled ids that could be trained on", **told)
    told["branches"] = len(samples)
    if len(samples) > 1 and branches == "refuse":
        raise ConfigError(
            f"rollout {rollout.id} has {len(samples)} branches, and TRL takes one row a rollout: give rollout_func "
            "branches='longest', 'last' or 'mask'"
        )
    if len(samples) > 1 and branches == "mask":
        return empty_row(filler, SEVERAL, f"it has {len(samples)} branches", **told)
    sample, mask = _chosen(samples, branches)
    _check(rollout, sample, mask, temperature)
    # Each sampled token is trained on in one of the samples: what this row does not have is trained on nowhere.
    told["left_out"] = sum(sum(other.loss_mask) for other, _ in samples) - sum(mask)
    return _row(sample, mask, told)


def empty_row(filler: int, failure: str, message: str, **told: Any) -> Row:
    """The row of a rollout that has none of its own: one masked token."""
    return Row(
        prompt_ids=[filler],
        completion_ids=[filler],
        logprobs=[0.0],
        mask=[0],
        failure=failure,
        message=message,
        **{"branches": 0, **told},
    )


def _mask(rollout: Rollout, sample: TrainingSample) -> list[int]:
    """1 where the branch has a sampled token that trains, also where another branch has it, too."""
    mask = list(sample.loss_mask)
    for span in sample.turns:
        if rollout.turns[span.turn].train:
            mask[span.start : span.end] = [1] * (span.end - span.start)
    return mask


def _chosen(
    samples: Sequence[tuple[TrainingSample, list[int]]], branches: Branches
) -> tuple[TrainingSample, list[int]]:
    """The branch that becomes the row: of several that are equally long, the last."""
    if branches == "longest":
        return max(reversed(samples), key=lambda one: sum(one[1]))
    return samples[-1]


def _check(rollout: Rollout, sample: TrainingSample, mask: Sequence[int], temperature: float | None) -> None:
    """Raises ConfigError for what TRL cannot train on as it was sampled."""
    refuse_images(sample, "TRL's rollout_func")
    known = {value for value, on in zip(sample.temperatures, mask, strict=True) if on and not math.isnan(value)}
    others = sorted(value for value in known if temperature is not None and value != temperature)
    if others:
        raise ConfigError(
            f"rollout {rollout.id} was sampled at temperature {others[0]:g}, and TRL divides its logits by "
            f"{temperature:g}: give GRPOConfig(temperature=) and EngineConfig.sampling's temperature the same value"
        )


def _row(sample: TrainingSample, mask: Sequence[int], told: Mapping[str, Any]) -> Row:
    start = mask.index(1)
    end = len(mask) - list(reversed(mask)).index(1)
    logprobs = [
        (value if math.isfinite(value) else None) if on else 0.0
        for value, on in zip(sample.logprobs[start:end], mask[start:end], strict=True)
    ]
    versions = [version for version, on in zip(sample.weight_versions, mask, strict=True) if on and version is not None]
    return Row(
        prompt_ids=list(sample.token_ids[:start]),
        completion_ids=list(sample.token_ids[start:end]),
        logprobs=logprobs,
        mask=list(mask[start:end]),
        reward=sample.reward if sample.reward_known else None,
        versions=tuple(dict.fromkeys(versions)),
        **told,
    )


def fields_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """What `rollout_func` answers: TRL's own four, and columns that reward functions are given."""
    return {
        "prompt_ids": [row.prompt_ids for row in rows],
        "completion_ids": [row.completion_ids for row in rows],
        "logprobs": [row.logprobs for row in rows],
        "env_mask": [row.mask for row in rows],
        "rollout_reward": [row.reward for row in rows],
        "rollout_failure": [row.failure for row in rows],
        "rollout_branches": [row.branches for row in rows],
        "rollout_left_out": [row.left_out for row in rows],
        "rollout_stop": [row.stop for row in rows],
        "rollout_turns": [row.turns for row in rows],
        "rollout_id": [row.rollout_id for row in rows],
        "rollout_versions": [row.versions for row in rows],
    }
