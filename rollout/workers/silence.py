"""How long a worker has said nothing. Pure: whoever looks says what has come and how much time has passed.

A worker's event loop says a word four times a second. Where none comes the loop hangs: in a regular expression that
backtracks, in a call into C, or the process was stopped. Only time in which this process was awake itself counts: one
that was suspended, or whose own loop was blocked for a minute, would otherwise find every worker silent.
"""

from __future__ import annotations

#: Seconds between two looks.
LOOK_S = 0.25

#: What one look counts at most. Where it comes later than that, this process was not awake, or the machine is busy.
MOST_COUNTED_S = 2 * LOOK_S


class Silence:
    """The silence of one worker."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """How long it has lasted."""
        self._received = -1

    def __repr__(self) -> str:
        return f"<Silence of {self.seconds:.1f} s>"

    def look(self, received: int, elapsed_s: float) -> float:
        """Takes how many bytes have come so far, and the time since the last look; returns how long it lasts now."""
        if received != self._received:
            self._received, self.seconds = received, 0.0
        else:
            self.seconds += min(elapsed_s, MOST_COUNTED_S)
        return self.seconds
