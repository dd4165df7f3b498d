"""What a run came to: counts over its rollouts, as the object of `--json` and the table for people. Pure."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import msgspec

from rollout.observe.outcomes import GroupSums, GroupTally, Outcomes, Spread
from rollout.observe.stats import Stats
from rollout.records import Failure, Rollout, Route

#: What to do about each fallback, in a few words.
REMEDIES = {
    "first_turn": "expected: the server's template makes the first prompt",
    "disabled": "expected: --mode mito",
    "no_match": "a conversation of its own, such as a sub-agent's first turn",
    "history_rewritten": "the environment changed an earlier message",
    "tools_changed": "the environment changed its tools between turns",
    "template_args_changed": "chat-template arguments changed between turns",
    "tail_not_extendable": "the environment added assistant messages, or tools behind others",
    "bridge_declined": "see events.log; try another --renderer",
    "multimodal": "see events.log; images go with ids to vLLM's generate route only, audio never",
    "ids_missing": "the server reports no ids; see rollout probe",
    "not_rendered": "the local chat template refuses the first prompt; see events.log",
    "no_token_route": "the server has no token-in route; see rollout probe",
}


class AgentTally(msgspec.Struct):
    """What was asked under one name."""

    turns: int = 0
    rewards: Spread = msgspec.field(default_factory=Spread)
    """Of the rollouts that gave it one of its own."""


#: Names of agents that are counted apart, and what the others are counted under.
MOST_AGENTS, OTHER_AGENTS = 256, "(others)"

#: Rows of agents that are shown; `--json` has all.
_SHOWN_AGENTS = 8


class Summary(msgspec.Struct, kw_only=True):
    """Sums over rollouts. `add` takes one; `as_json` gives the object that `--json` prints."""

    env: str
    model: str = ""
    transport: str = ""
    mode: str = "tito"
    bridges: str = ""
    """What makes prompts from turn 2 on; "" where that is the server alone."""
    reader: str = ""
    """What reads the model's calls; "" where nothing here does."""
    success_at: float = 1.0
    """The reward from which a rollout has solved its task."""
    tasks: dict[int, GroupTally] = {}
    """By task index: its finished members."""
    rollouts: int = 0
    outcomes: Outcomes = msgspec.field(default_factory=Outcomes)
    first_failures: dict[str, Failure] = {}
    """The first failure of each kind."""
    turns: int = 0
    cut_off_turns: int = 0
    """Those that ended at `max_tokens`, or at the end of the context: the answer was not finished."""
    token_in_turns: int = 0
    message_in_turns: int = 0
    fallbacks: Counter[str] = msgspec.field(default_factory=Counter)
    folded: int = 0
    """System and developer messages that were folded into user messages."""
    prefix_breaks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    samples: int = 0
    left_out_tokens: int = 0
    """Sampled tokens that whoever asked for them left out of training."""
    agents: dict[str, AgentTally] = {}
    """By the names that agents gave to who asks (`Model.agent`)."""
    request_s: float = 0.0
    resumed_turns: int = 0
    """Of these turns, those that an earlier run played: they say nothing of this run's speed."""
    resumed_tokens: int = 0

    _lock: Any = msgspec.field(default_factory=threading.Lock)
    """Rollouts are counted in threads."""

    def add(self, rollout: Rollout) -> None:
        """Counts one rollout. Threads may call this at once."""
        samples = len(rollout.samples()) if rollout.failure is None else 0
        with self._lock:
            self.samples += samples
            self._add(rollout)

    def _add(self, rollout: Rollout) -> None:
        self.rollouts += 1
        self.outcomes.add(rollout)
        tally = self.tasks.setdefault(rollout.task_index, GroupTally())
        if rollout.failure is not None:
            self.first_failures.setdefault(rollout.failure.kind.value, rollout.failure)
        elif rollout.reward_known:
            tally.add(rollout.reward, self.success_at)
        for turn in rollout.turns:
            self.turns += 1
            self.cut_off_turns += turn.finish_reason == "length"
            self.token_in_turns += turn.route is Route.TOKEN_IN
            self.message_in_turns += turn.route is Route.MESSAGE_IN
            self.folded += turn.folded
            self.prefix_breaks += bool(turn.prefix_break)
            self.prompt_tokens += turn.prompt_tokens
            self.completion_tokens += turn.completion_tokens
            self.cached_tokens += turn.cached_tokens or 0
            self.request_s += turn.request_s
            if turn.fallback is not None:
                self.fallbacks[turn.fallback.value] += 1
            if not turn.train:
                self.left_out_tokens += turn.completion_tokens
            if turn.agent:
                self._agent(turn.agent).turns += 1
        if rollout.failure is None:
            for name, reward in rollout.rewards.items():
                self._agent(name).rewards.add(reward)

    def _agent(self, name: str) -> AgentTally:
        """The tally of a name; of all others together, once there are many: sub-agents may have an id each."""
        known = name in self.agents or len(self.agents) < MOST_AGENTS
        return self.agents.setdefault(name if known else OTHER_AGENTS, AgentTally())

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
        """Over the rollouts that did not fail and whose reward is known; None where there is none."""
        return self.outcomes.rewards.mean if self.outcomes.rewards.count else None

    @property
    def failures(self) -> Counter[str]:
        """How many rollouts failed, by kind."""
        return self.outcomes.failures

    @property
    def groups(self) -> GroupSums:
        """Of tasks with more than one finished member."""
        sums = GroupSums()
        for tally in self.tasks.values():
            sums.add(tally)
        return sums

    @property
    def cached_share(self) -> float:
        """Prompt tokens that the server took from its cache, of all."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def as_json(self, *, wall_s: float, client_cpu_s: float, run_dir: str, stats: Stats) -> dict[str, Any]:
        """The object of `--json` and of summary.json."""
        rewards, groups = self.outcomes.rewards, self.groups
        return {
            "env": self.env,
            "model": self.model,
            "transport": self.transport,
            "mode": self.mode,
            "bridges": self.bridges,
            "reader": self.reader,
            "tasks": len(self.tasks),
            "rollouts": self.rollouts,
            "failures": self.failures.total(),
            "failures_by_kind": dict(self.failures),
            "stops": dict(self.outcomes.stops),
            "turns": self.turns,
            "cut_off_turns": self.cut_off_turns,
            "cut_off_share": round(self.cut_off_turns / self.turns, 4) if self.turns else 0.0,
            "token_in_turns": self.token_in_turns,
            "message_in_turns": self.message_in_turns,
            "fallbacks": dict(self.fallbacks),
            "folded_messages": self.folded,
            "prefix_breaks": self.prefix_breaks,
            "reward_mean": self.reward_mean,
            "reward_std": rewards.std if rewards.count else None,
            "unknown_rewards": self.outcomes.unknown_rewards,
            "metrics": dict(self.outcomes.metric_means),
            "groups": groups.groups,
            "equal_groups": groups.equal,
            "pass_at_k": {str(k): value for k, value in groups.pass_at_k.items()},
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "samples": self.samples,
            "left_out_tokens": self.left_out_tokens,
            "agents": {
                name: {"turns": tally.turns, "reward_mean": tally.rewards.mean if tally.rewards.count else None}
                for name, tally in self.agents.items()
            },
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
    cut_off = f", cut off at max_tokens {s.cut_off_turns} ({s.cut_off_turns / s.turns:.0%})" if s.cut_off_turns else ""
    rows = [
        ("rollouts", f"{s.rollouts} over {len(s.tasks)} tasks{_ends(s)}"),
        *_rewards(s),
        ("turns", f"{s.turns}   token-in {s.token_in_turns}, message-in {s.message_in_turns}{cut_off}"),
    ]
    rows += [(f"agent {name}", _agent(tally)) for name, tally in _most_turns(s)]
    rows += [
        ("fallback", f"{reason} {count}   {REMEDIES.get(reason, '')}") for reason, count in s.fallbacks.most_common()
    ]
    rows.append(("prompts, calls", f"by {s.bridges or 'the server'}, read as {s.reader or 'text: see --reader'}"))
    if s.folded:
        rows.append(("folded", f"{s.folded} late system messages into user messages; --late-system decides"))
    rows += [
        ("prefix breaks", str(s.prefix_breaks)),
        ("prompt tokens", f"{s.prompt_tokens:,}   cached {s.cached_tokens:,} ({s.cached_share:.0%})"),
        ("sampled tokens", f"{s.completion_tokens:,}   in {s.samples} training samples{_left_out(s)}"),
        ("speed", f"{tokens_per_s:,.0f} tokens/s, {turns_per_s:,.1f} turns/s, {wall_s:.1f} s"),
    ]
    rows += _machinery(stats)
    rows += [
        (f"failed: {kind}", f"{count}   first: {s.first_failures[kind].message}")
        for kind, count in s.failures.most_common()
    ]
    return [*rows, ("run folder", run_dir)]


def _left_out(summary: Summary) -> str:
    return f", {summary.left_out_tokens:,} left out by who asked" if summary.left_out_tokens else ""


def _agent(tally: AgentTally) -> str:
    reward = f"   reward {tally.rewards.mean:.3f} ± {tally.rewards.std:.3f}" if tally.rewards.count else ""
    return f"{tally.turns} turns{reward}"


def _most_turns(summary: Summary) -> list[tuple[str, AgentTally]]:
    """The agents that asked most, where there are many."""
    return sorted(summary.agents.items(), key=lambda named: -named[1].turns)[:_SHOWN_AGENTS]


def why_untrainable(summary: Summary) -> str | None:
    """Why a run has left nothing to train on; None where it has."""
    s = summary
    if s.samples or not s.rollouts:
        return None
    if s.failures.total() == s.rollouts:
        kind, count = s.failures.most_common(1)[0]
        return f"all {s.rollouts} rollouts failed, {count} of them as {kind}: {s.first_failures[kind].message}"
    if s.turns:
        return "the server reported no token ids for what it sampled; see `rollout probe`"
    return "no rollout that did not fail had a turn: the model was never asked"


def _rewards(summary: Summary) -> list[tuple[str, str]]:
    """Rewards, the environment's metrics, and what groups came to."""
    rewards, groups = summary.outcomes.rewards, summary.groups
    unknown = summary.outcomes.unknown_rewards
    if not rewards.count and not unknown:
        return [("reward", "no rollout finished")]
    said = f"{rewards.mean:.3f} ± {rewards.std:.3f}   min {rewards.low:g}, max {rewards.high:g}"
    left_out = f"{unknown} without a reward, which are not counted"
    rows = [("reward", "   ".join([said] * bool(rewards.count) + [left_out] * bool(unknown)))]
    if means := summary.outcomes.metric_means:
        rows.append(("metrics", ", ".join(f"{name} {value:.4g}" for name, value in means.items())))
    if groups.groups:
        passes = ", ".join(f"@{k} {value:.3f}" for k, value in groups.pass_at_k.items())
        rows.append(("pass", f"{passes}   (reward of {summary.success_at:g} or more)"))
        rows.append(("equal rewards", f"{groups.equal} of {groups.groups} groups ({groups.equal / groups.groups:.0%})"))
    return rows


def _machinery(stats: Stats) -> list[tuple[str, str]]:
    """What the client and the servers were like; a healthy run says little here."""
    lag = f"loop lag p99 {stats.loop_lag_p99_s * 1e3:.0f} ms, max {stats.loop_lag_max_s * 1e3:.0f} ms"
    retried = f", {stats.retried} attempts retried" if stats.retried else ""
    pool = f" in {stats.processes} processes" if stats.processes > 1 else ""
    died = f", {stats.process_deaths} processes died" if stats.process_deaths else ""
    rows = [("client", f"{stats.most_running} at once of {stats.concurrency} at most{pool}, {lag}{retried}{died}")]
    if len(stats.servers) > 1 or any(server.deaths for server in stats.servers):
        rows += [
            ("server", f"{server.url}   {'up' if server.up else 'out'}, {server.deaths} deaths")
            for server in stats.servers
        ]
    return rows


def _ends(summary: Summary) -> str:
    ends = ", ".join(f"{reason} {count}" for reason, count in summary.outcomes.stops.most_common())
    failed = f"failed {summary.failures.total()}" if summary.failures else ""
    said = ", ".join(part for part in (ends, failed) if part)
    return f"   {said}" if said else ""
