"""What rollouts came to, in sums: rewards, environments' metrics, how they ended, how often groups solved their task.

A rollout is solved where its reward is at least `success_at`. pass@k is the chance that one of k rollouts of a task
solves it, estimated without bias from a group of n, c of them solved: 1 - C(n-c, k) / C(n, k), averaged over the groups
that have k finished members. Failed rollouts are no attempts of the model's, and do not count. Pure; memory grows with
the number of tasks only where groups are counted rollout by rollout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import msgspec

from rollout.records import Rollout

#: A reward that is a sum of tenths may miss 1 by a little.
_NEARLY = 1e-9

#: Names of metrics that are kept apart: an environment that names them by task must not fill the memory.
MOST_METRICS = 200


class Spread(msgspec.Struct):
    """Numbers as their count, mean, deviation and bounds."""

    count: int = 0
    mean: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    squares: float = 0.0
    """Of the differences from the mean, summed."""

    def add(self, value: float) -> None:
        """Takes one number."""
        self.count += 1
        before = value - self.mean
        self.mean += before / self.count
        self.squares += before * (value - self.mean)
        self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def std(self) -> float:
        """The standard deviation, of these numbers as the whole population."""
        return math.sqrt(max(0.0, self.squares) / self.count) if self.count else 0.0


class GroupTally(msgspec.Struct, gc=False):
    """One task's finished members."""

    members: int = 0
    solved: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, reward: float, success_at: float) -> None:
        """Counts one member."""
        self.members += 1
        self.solved += reward >= success_at - _NEARLY
        self.low, self.high = min(self.low, reward), max(self.high, reward)


class GroupSums(msgspec.Struct):
    """Sums over groups with more than one finished member."""

    groups: int = 0
    equal: int = 0
    """Of these, those whose rewards are all the same: they teach a group-relative trainer nothing."""
    passes: dict[int, list[float]] = {}
    """By k: the sum of the groups' estimates, and how many groups they are."""

    def add(self, tally: GroupTally) -> None:
        """Counts one group."""
        if tally.members < 2:
            return
        self.groups += 1
        self.equal += tally.high - tally.low <= _NEARLY
        for k in counted(tally.members):
            sums = self.passes.setdefault(k, [0.0, 0.0])
            sums[0] += pass_at(k, tally.members, tally.solved)
            sums[1] += 1

    @property
    def pass_at_k(self) -> dict[int, float]:
        """By k: the powers of two, and the largest group's size."""
        largest = max(self.passes, default=0)
        return {k: self.passes[k][0] / self.passes[k][1] for k in counted(largest) if k in self.passes}


def pass_at(k: int, members: int, solved: int) -> float:
    """The unbiased estimate that one of `k` attempts solves the task, from so many of which so many did."""
    return 1.0 - math.comb(members - solved, k) / math.comb(members, k)


def counted(members: int) -> list[int]:
    """The k that are told for groups of this size."""
    powers = [2**power for power in range(members.bit_length()) if 2**power <= members]
    return [*powers, *([members] if members and members not in powers else [])]


class Outcomes(msgspec.Struct):
    """Sums over rollouts that ended."""

    rewards: Spread = msgspec.field(default_factory=Spread)
    """Of those that did not fail, and whose reward is known."""
    unknown_rewards: int = 0
    """Those that did not fail, and that nobody gave a reward."""
    metrics: dict[str, Spread] = {}
    """The environments' own, of those that did not fail."""
    stops: Counter[str] = msgspec.field(default_factory=Counter)
    failures: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, rollout: Rollout) -> None:
        """Counts one rollout."""
        if rollout.failure is not None:
            self.failures[rollout.failure.kind.value] += 1
            return
        if rollout.reward_known:
            self.rewards.add(rollout.reward)
        else:
            self.unknown_rewards += 1
        self.stops[rollout.stop.value if rollout.stop else "unknown"] += 1
        for name, value in rollout.metrics.items():
            if name in self.metrics or len(self.metrics) < MOST_METRICS:
                self.metrics.setdefault(name, Spread()).add(value)

    @property
    def metric_means(self) -> Mapping[str, float]:
        return {name: spread.mean for name, spread in self.metrics.items()}
