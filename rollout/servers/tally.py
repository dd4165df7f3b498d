"""What was asked of one server: how much, how well, how long it took. A few additions a request."""

from __future__ import annotations

from bisect import bisect_left
from typing import Self

import msgspec

#: Upper bounds of the buckets that answers are counted in, seconds; one more bucket has what took longer.
BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Tally(msgspec.Struct, kw_only=True, gc=False):
    """What one process, or several, asked of one server."""

    in_flight: int = 0
    answered: int = 0
    failed: int = 0
    """Refused, broken off or too late, after all tries. What its caller cancelled is neither answered nor failed."""
    answer_s: float = 0.0
    """What the answered ones took, retries and their waits included, summed."""
    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    """Answered ones by how long they took: see `BOUNDS_S`."""

    def answer(self, took_s: float) -> None:
        """Counts an answer."""
        self.answered += 1
        self.answer_s += took_s
        self.counts[bisect_left(BOUNDS_S, took_s)] += 1

    def plus(self, other: Self) -> Tally:
        """Both together."""
        return Tally(
            in_flight=self.in_flight + other.in_flight,
            answered=self.answered + other.answered,
            failed=self.failed + other.failed,
            answer_s=self.answer_s + other.answer_s,
            counts=[mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)],
        )

    def copied(self, *, in_flight: int | None = None) -> Tally:
        """As it is now; what is in flight may be said anew."""
        now = self.in_flight if in_flight is None else in_flight
        return msgspec.structs.replace(self, in_flight=now, counts=list(self.counts))
