"""Advantages of a group's rollouts, from their rewards. Any function of rewards to advantages serves as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

#: A group's rewards, in the order of its finished members -> one advantage for each.
Advantage = Callable[[Sequence[float]], Sequence[float]]

#: Added to the deviation, so that a group of equal rewards has advantages of 0.
EPSILON = 1e-6


def grpo(rewards: Sequence[float]) -> list[float]:
    """(reward - mean) / standard deviation over the group, as in DeepSeekMath (arXiv:2402.03300, section 4.1.2)."""
    if not rewards:
        return []
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [(reward - mean) / (deviation + EPSILON) for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """reward - mean of the others' (RLOO, arXiv:2402.14740); 0 for a group of one."""
    others = len(rewards) - 1
    if others < 1:
        return [0.0] * len(rewards)
    total = math.fsum(rewards)
    return [reward - (total - reward) / others for reward in rewards]


#: By the names that the command line takes.
ADVANTAGES: dict[str, Advantage] = {"grpo": grpo, "leave_one_out": leave_one_out}
"""`none` leaves advantages unset."""
