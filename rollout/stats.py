"""Where an engine stands, in numbers."""

from __future__ import annotations

import msgspec

from rollout.fleet import ServerState
from rollout.records import FailureKind, Rollout, Route, Turn


class Stats(msgspec.Struct, kw_only=True):
    """Where an engine stands. Counts are over its whole life."""

    running: int = 0
    queued: int = 0
    finished: int = 0
    failed: int = 0
    turns: int = 0
    token_in_turns: int = 0
    message_in_turns: int = 0
    completion_tokens: int = 0
    concurrency: int = 0
    """The cap as it is now."""
    most_running: int = 0
    """Rollouts that were ever in flight at once."""
    weight_version: str | None = None
    weight_updates: int = 0
    stale: int = 0
    """Rollouts that were ended as too stale; they count as failed, too."""
    stragglers: int = 0
    """Rollouts that were ended so that their group could be delivered; they count as failed, too."""
    retried: int = 0
    """Attempts that failed and were made again."""
    dropped_groups: int = 0
    """Groups that the stream's `keep` did not keep."""
    faults: int = 0
    """Rollouts and attempts that failed of the transport."""
    sent_bytes: int = 0
    """Of requests' bodies, retries included; a proxy in front may add to them."""
    received_bytes: int = 0
    loop_lag_p99_s: float = 0.0
    """How late the event loop was, in the last 100 s."""
    loop_lag_max_s: float = 0.0
    servers: list[ServerState] = []
    """Each server; empty for the embedded model."""

    def add_turn(self, turn: Turn) -> None:
        """Counts a finished turn."""
        self.turns += 1
        self.completion_tokens += turn.completion_tokens
        if turn.route is Route.TOKEN_IN:
            self.token_in_turns += 1
        else:
            self.message_in_turns += 1

    def add_end(self, rollout: Rollout) -> None:
        """Counts a rollout that ended."""
        if rollout.failure is None:
            self.finished += 1
            return
        self.failed += 1
        kind = rollout.failure.kind
        self.stale += kind is FailureKind.STALE
        self.stragglers += kind is FailureKind.STRAGGLER
        self.faults += kind is FailureKind.TRANSPORT
