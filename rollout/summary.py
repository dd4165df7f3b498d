"""What a run came to: counts over its rollouts, as the object of `--json` and the table for people. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from rollout.records import Failure, Rollout, Route
from rollout.samples import samples_of
from rollout.stats import Stats

#: What to do about each fallback, in a few words.
REMEDIES = {
    "first_turn": "expected: the server's template makes the first prompt",
    "disabled": "expected: --mode mito",
    "no_match": "a conversation of its own, such as a sub-agent's first turn",
    "history_rewritten": "the environment changed an earlier message",
    "tools_changed": "the environment changed its tools between turns",
    "template_args_changed": "chat-template arguments changed between turns",
    "tail_not_extendable": "the environment added assistant or system messages",
    "bridge_declined": "see events.log; try another --renderer",
    "multimodal": "images and audio go message-in",
    "ids_missing": "the server reports no ids; see rollout probe",
    "no_token_route": "the server has no token-in route; see rollout probe",
}


class Summary(msgspec.Struct, kw_only=True):
    """Sums over rollouts. `add` takes one; `as_json` gives the object that `--json` prints."""

    env: str
    model: str = ""
    transport: str = ""
    mode: str = "tito"
    tasks: set[str] = set()
    rollouts: int = 0
    failures: Counter[str] = msgspec.field(default_factory=Counter)
    first_failures: dict[str, Failure] = {}
    """The first failure of each kind."""
    stops: Counter[str] = msgspec.field(default_factory=Counter)
    turns: int = 0
    token_in_turns: int = 0
    message_in_turns: int = 0
    fallbacks: Counter[str] = msgspec.field(default_factory=Counter)
    prefix_breaks: int = 0
    rewards: list[float] = []
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    samples: int = 0
    request_s: float = 0.0
    resumed_turns: int = 0
    """Of these turns, those that an earlier run played: they say nothing of this run's speed."""
    resumed_tokens: int = 0

    def add(self, rollout: Rollout) -> None:
        """Counts one rollout."""
        self.rollouts += 1
        self.tasks.add(rollout.task_id)
        if rollout.failure is not None:
            self.failures[rollout.failure.kind.value] += 1
            self.first_failures.setdefault(rollout.failure.kind.value, rollout.failure)
        else:
            self.rewards.append(rollout.reward)
            self.stops[rollout.stop.value if rollout.stop else "unknown"] += 1
        self.samples += len(samples_of(rollout))
        for turn in rollout.turns:
            self.turns += 1
            self.token_in_turns += turn.route is Route.TOKEN_IN
            self.message_in_turns += turn.route is Route.MESSAGE_IN
            self.prefix_breaks += bool(turn.prefix_break)
            self.prompt_tokens += turn.prompt_tokens
            self.completion_tokens += turn.completion_tokens
            self.cached_tokens += turn.cached_tokens or 0
            self.request_s += turn.request_s
            if turn.fallback is not None:
                self.fallbacks[turn.fallback.value] += 1

    def add_resumed(self, rollout: Rollout) -> None:
        """Counts a rollout that an earlier run played."""
        self.add(rollout)
        self.resumed_turns += len(rollout.turns)
        self.resumed_tokens += sum(turn.completion_tokens for turn in rollout.turns)

    def speeds(self, wall_s: float) -> tuple[float, float]:
        """This run's own (sampled tokens per second, turns per second)."""
        if wall_s <= 0:
            return 0.0, 0.0
        return (self.completion_tokens - self.resumed_tokens) / wall_s, (self.turns - self.resumed_turns) / wall_s

    @property
    def reward_mean(self) -> float | None:
        """Over the rollouts that did not fail; None where all did."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    @property
    def cached_share(self) -> float:
        """Prompt tokens that the server took from its cache, of all."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def as_json(self, *, wall_s: float, client_cpu_s: float, run_dir: str, stats: Stats) -> dict[str, Any]:
        """The object of `--json` and of summary.json."""
        return {
            "env": self.env,
            "model": self.model,
            "transport": self.transport,
            "mode": self.mode,
            "tasks": len(self.tasks),
            "rollouts": self.rollouts,
            "failures": self.failures.total(),
            "turns": self.turns,
            "token_in_turns": self.token_in_turns,
            "message_in_turns": self.message_in_turns,
            "fallbacks": dict(self.fallbacks),
            "prefix_breaks": self.prefix_breaks,
            "reward_mean": self.reward_mean,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "samples": self.samples,
            "wall_s": round(wall_s, 3),
            "client_cpu_s": round(client_cpu_s, 3),
            "turns_per_s": round(self.speeds(wall_s)[1], 3),
            "concurrency": stats.concurrency,
            "most_running": stats.most_running,
            "processes": stats.processes,
            "process_deaths": stats.process_deaths,
            "retried": stats.retried,
            "loop_lag_p99_s": round(stats.loop_lag_p99_s, 4),
            "loop_lag_max_s": round(stats.loop_lag_max_s, 4),
            "servers": [msgspec.to_builtins(server) for server in stats.servers],
            "run_dir": run_dir,
        }


def table_rows(summary: Summary, wall_s: float, run_dir: str, stats: Stats) -> list[tuple[str, str]]:
    """The summary for people: what, and how much."""
    s = summary
    tokens_per_s, turns_per_s = s.speeds(wall_s)
    mean = "no rollout finished" if s.reward_mean is None else f"{s.reward_mean:.3f}"
    spread = f"   min {min(s.rewards):g}, max {max(s.rewards):g}" if s.rewards else ""
    rows = [
        ("rollouts", f"{s.rollouts} over {len(s.tasks)} tasks{_ends(s)}"),
        ("reward", f"{mean}{spread}"),
        ("turns", f"{s.turns}   token-in {s.token_in_turns}, message-in {s.message_in_turns}"),
    ]
    rows += [
        ("fallback", f"{reason} {count}   {REMEDIES.get(reason, '')}") for reason, count in s.fallbacks.most_common()
    ]
    rows += [
        ("prefix breaks", str(s.prefix_breaks)),
        ("prompt tokens", f"{s.prompt_tokens:,}   cached {s.cached_tokens:,} ({s.cached_share:.0%})"),
        ("sampled tokens", f"{s.completion_tokens:,}   in {s.samples} training samples"),
        ("speed", f"{tokens_per_s:,.0f} tokens/s, {turns_per_s:,.1f} turns/s, {wall_s:.1f} s"),
    ]
    rows += _machinery(stats)
    rows += [
        (f"failed: {kind}", f"{count}   first: {s.first_failures[kind].message}") for kind, count in s.failures.items()
    ]
    return [*rows, ("run folder", run_dir)]


def _machinery(stats: Stats) -> list[tuple[str, str]]:
    """What the client and the servers were like; a healthy run says little here."""
    lag = f"loop lag p99 {stats.loop_lag_p99_s * 1e3:.0f} ms, max {stats.loop_lag_max_s * 1e3:.0f} ms"
    retried = f", {stats.retried} attempts retried" if stats.retried else ""
    crew = f" in {stats.processes} processes" if stats.processes > 1 else ""
    died = f", {stats.process_deaths} processes died" if stats.process_deaths else ""
    rows = [("client", f"{stats.most_running} at once of {stats.concurrency} at most{crew}, {lag}{retried}{died}")]
    if len(stats.servers) > 1 or any(server.deaths for server in stats.servers):
        rows += [
            ("server", f"{server.url}   {'up' if server.up else 'out'}, {server.deaths} deaths")
            for server in stats.servers
        ]
    return rows


def _ends(summary: Summary) -> str:
    ends = ", ".join(f"{reason} {count}" for reason, count in summary.stops.most_common())
    failed = f", failed {summary.failures.total()}" if summary.failures else ""
    return f"   {ends}{failed}" if ends or failed else ""
