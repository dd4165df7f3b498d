"""Where an engine stands, in numbers."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import msgspec

from rollout.observe.outcomes import GroupSums, GroupTally, Outcomes, Spread
from rollout.records import FailureKind, Group, Rollout, Route, Turn
from rollout.servers.fleet import ServerState
from rollout.servers.tally import Tally

#: Updates that a rollout lived through are counted apart up to here; what lived through more counts here, too.
MOST_STALENESS = 64


class Played(msgspec.Struct, kw_only=True):
    """What one process has played, over its whole life."""

    turns: int = 0
    token_in_turns: int = 0
    message_in_turns: int = 0
    fallbacks: dict[str, int] = {}
    """Turns that went message-in, by reason; `first_turn` and `disabled` are no faults."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompts, those that servers said they had in their prefix cache."""
    completion_tokens: int = 0
    cut_off_turns: int = 0
    """Turns that ended at `max_tokens`, or at the end of the context: the answer was not finished."""
    render_s: float = 0.0
    """Of all turns, as are the next two: see `Turn`."""
    queue_s: float = 0.0
    request_s: float = 0.0
    sent_bytes: int = 0
    """Of requests' bodies, retries included; a proxy in front may add to them."""
    received_bytes: int = 0
    cpu_s: float = 0.0
    """User and system, of the whole process."""
    peak_rss_mb: float = 0.0
    """Memory of the process at its most."""
    loop_lag_p99_s: float = 0.0
    """How late the event loop was, in the last 100 s."""
    loop_lag_max_s: float = 0.0
    hanging_calls: int = 0
    """Calls of environments that were given up, and have not ended: in threads, or in tasks that swallow their
    cancellation."""
    trajectories: list[int] = []
    """Those under way on each server; empty for the embedded model."""
    asked: list[Tally] = []
    """What was asked of each server."""

    def add_turn(self, turn: Turn) -> None:
        """Counts a finished turn."""
        self.turns += 1
        self.prompt_tokens += turn.prompt_tokens
        self.completion_tokens += turn.completion_tokens
        if turn.cached_tokens is not None:
            self.cached_tokens += turn.cached_tokens
        self.cut_off_turns += turn.finish_reason == "length"
        self.render_s += turn.render_s
        self.queue_s += turn.queue_s
        self.request_s += turn.request_s
        if turn.route is Route.TOKEN_IN:
            self.token_in_turns += 1
        else:
            self.message_in_turns += 1
        if (reason := turn.fallback) is not None:
            self.fallbacks[reason.value] = self.fallbacks.get(reason.value, 0) + 1

    def measure(self) -> None:
        """Looks at what this process has used."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.peak_rss_mb = peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere
        self.cpu_s = time.process_time()


class Stats(Played, kw_only=True):
    """Where an engine stands. Counts are over its whole life, and over all its processes."""

    running: int = 0
    queued: int = 0
    finished: int = 0
    """Rollouts that were played to their end. Some fail later: too stale when they are taken, or without a reward."""
    failed: int = 0
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
    lost_groups: int = 0
    """Groups that `Engine.untaken` had no room for."""
    unrewarded: int = 0
    """Rollouts that finished, and failed of their stream's group reward."""
    stops: dict[str, int] = {}
    """Rollouts that did not fail, by why they ended."""
    failures: dict[str, int] = {}
    """Rollouts that failed, by kind."""
    reward_mean: float | None = None
    """Of the groups that came, after `group_reward`; None before the first."""
    reward_std: float | None = None
    """As of a whole population."""
    unknown_rewards: int = 0
    """Finished rollouts that nobody gave a reward: no mean counts them."""
    metrics: dict[str, float] = {}
    """The environment's own: the mean over rollouts that did not fail."""
    groups: int = 0
    """Groups that came with more than one finished member; what follows is over these."""
    equal_groups: int = 0
    """Those whose rewards are all the same."""
    pass_at_k: dict[int, float] = {}
    """See `rollout.observe.outcomes`."""
    staleness: dict[int, int] = {}
    """Finished rollouts of groups that came, by the weight updates that they had lived through then; 64 is that many or
    more."""
    faults: int = 0
    """Rollouts and attempts that failed of the transport."""
    servers: list[ServerState] = []
    """Each server; empty for the embedded model."""
    processes: int = 1
    """Those that play: the engine's own, or those that it started."""
    process_deaths: int = 0
    """How often one of them ended that should not have."""

    def add(self, played: Played) -> None:
        """Adds what one process has played. Of the lags the worst counts."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(played, name))
        self.fallbacks = _sums(self.fallbacks, played.fallbacks)
        self.asked = _by_server(self.asked, played.asked)
        self.loop_lag_p99_s = max(self.loop_lag_p99_s, played.loop_lag_p99_s)
        self.loop_lag_max_s = max(self.loop_lag_max_s, played.loop_lag_max_s)
        for server, count in zip(self.servers, played.trajectories, strict=False):
            server.trajectories += count

    @property
    def cut_off_share(self) -> float:
        """Turns that were cut off, of all."""
        return self.cut_off_turns / self.turns if self.turns else 0.0

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


class Tallies(msgspec.Struct):
    """What an engine's rollouts and groups came to, over its whole life."""

    ended: Outcomes = msgspec.field(default_factory=Outcomes)
    rewards: Spread = msgspec.field(default_factory=Spread)
    groups: GroupSums = msgspec.field(default_factory=GroupSums)
    staleness: dict[int, int] = {}

    def add_group(self, group: Group, success_at: float) -> None:
        """Counts a group, with its rewards as they are then."""
        tally = GroupTally()
        for rollout in group.finished:
            if rollout.reward_known:
                self.rewards.add(rollout.reward)
                tally.add(rollout.reward, success_at)
            updates = min(rollout.staleness, MOST_STALENESS)
            self.staleness[updates] = self.staleness.get(updates, 0) + 1
        self.groups.add(tally)

    def tell(self, stats: Stats) -> None:
        """Sets what is known so far."""
        stats.stops, stats.failures = dict(self.ended.stops), dict(self.ended.failures)
        stats.metrics = dict(self.ended.metric_means)
        if self.rewards.count:
            stats.reward_mean, stats.reward_std = self.rewards.mean, self.rewards.std
        stats.unknown_rewards = self.ended.unknown_rewards
        stats.groups, stats.equal_groups = self.groups.groups, self.groups.equal
        stats.pass_at_k = self.groups.pass_at_k
        stats.staleness = dict(self.staleness)


def _sums(mine: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    """Counts by name, added. Anew: what they are added to may be another's."""
    return {name: mine.get(name, 0) + theirs.get(name, 0) for name in [*mine, *(n for n in theirs if n not in mine)]}


def _by_server(mine: Sequence[Tally], theirs: Sequence[Tally]) -> list[Tally]:
    return [one.plus(other) for one, other in zip_longest(mine, theirs, fillvalue=Tally())]


_NOT_SUMMED = ("loop_lag_p99_s", "loop_lag_max_s", "trajectories", "fallbacks", "asked")
_SUMMED = tuple(name for name in Played.__struct_fields__ if name not in _NOT_SUMMED)
