"""A server's own histogram of durations, as Prometheus' text form carries it: what happened between two looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec


class Histogram(msgspec.Struct, frozen=True):
    """Counts of observations at most as long as each bound. Counts only grow, so looks can be subtracted."""

    bounds: tuple[float, ...]
    """Upper bounds of the buckets, seconds, rising; the last one is infinite."""
    counts: tuple[float, ...]
    """Observations not above each bound, since the server began."""

    @property
    def total(self) -> float:
        return self.counts[-1] if self.counts else 0.0

    def since(self, earlier: Histogram) -> Histogram:
        """What came after an earlier look. A server that began again in between has all of it after."""
        if earlier.bounds != self.bounds or earlier.total > self.total:
            return self
        return Histogram(self.bounds, tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True)))

    def quantile(self, share: float) -> float | None:
        """The duration that `share` of the observations do not exceed; None where there are none.

        Between a bucket's bounds it is taken as evenly spread, as Prometheus' `histogram_quantile` does; what lies
        above the last finite bound is that bound.
        """
        rank = share * self.total
        if not self.total:
            return None
        below, lower = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count >= rank and count > below:
                if math.isinf(bound):
                    return lower
                return lower + (bound - lower) * (rank - below) / (count - below)
            below, lower = count, bound
        return lower


def added(parts: Sequence[Histogram]) -> Histogram | None:
    """Several servers' observations as one's; None where there are none, or where their buckets differ."""
    if not parts or any(one.bounds != other.bounds for one, other in pairwise(parts)):
        return None
    return Histogram(parts[0].bounds, tuple(map(sum, zip(*(part.counts for part in parts), strict=True))))
