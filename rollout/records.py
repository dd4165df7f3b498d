"""What a run leaves: turns, rollouts and groups, as data. A bad rollout is a record too, not an error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.door import is_well_formed, well_formed
from rollout.moved import forward_names
from rollout.request import FinishReason, LogprobsMode, Sampling, WeightSpan
from rollout.tokens.advantages import Advantage, grpo
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.samples import TrainingSample, samples_of_tree
from rollout.tokens.trajectory import Node, Root, Trajectory


class Route(StrEnum):
    """How a prompt went out."""

    TOKEN_IN = "token_in"
    MESSAGE_IN = "message_in"


class StopReason(StrEnum):
    """Why a rollout that did not fail ended."""

    DONE = "done"
    """The environment said so."""
    MAX_TURNS = "max_turns"
    CONTEXT_LENGTH = "context_length"
    """The next turn would not fit the model's context; nothing was sent."""


class FailureKind(StrEnum):
    """What a rollout failed of."""

    ENVIRONMENT = "environment"
    TRANSPORT = "transport"
    FALLBACK = "fallback"
    """`--require-token-in`, and a turn could not go token-in."""
    INVARIANT = "invariant"
    """`--verify` found a broken invariant."""
    TIMEOUT = "timeout"
    PROCESS = "process"
    """The process that played it ended under it (`EngineConfig.processes`)."""
    STALE = "stale"
    """The weights were updated more often since it was submitted than `max_staleness` allows."""
    STRAGGLER = "straggler"
    """Its group had waited for it as long as `straggler_timeout_s` allows."""
    CANCELLED = "cancelled"
    INTERNAL = "internal"
    """A bug of ours; the traceback is in events.log."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a rollout failed."""

    kind: FailureKind
    message: str
    error: str = ""
    """The exception's type."""
    turn: int | None = None
    """The turn that failed, from 1; None where it failed outside one."""

    def __post_init__(self) -> None:
        """A message is made of what exceptions, servers and files are called: it can be written all the same."""
        if not is_well_formed(self.message):
            msgspec.structs.force_setattr(self, "message", well_formed(self.message))


class Turn(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One request and its answer."""

    route: Route
    fallback: FallbackReason | None = None
    fallback_detail: str = ""
    bridge: str | None = None
    """The bridge that made the tail's ids: renderer, template, server; None where there was none to make."""
    folded: int = 0
    """New system and developer messages that were folded into user messages: see `EngineConfig.late_system`."""
    node: int = -1
    """The sampled node of the trajectory that holds the answer."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    """None where the server does not say."""
    finish_reason: FinishReason = "stop"
    weight_versions: tuple[WeightSpan, ...] = ()
    sampling: Sampling | None = None
    """What its tokens were drawn from, the server's own defaults included; None in a run of before format 3."""
    logprobs_mode: LogprobsMode | None = None
    """Whether its logprobs are of before or of after `sampling`; None where that could not be found out."""
    reward: float = 0.0
    """What the environment's step gave for it; a part of the rollout's `step_reward`."""
    metrics: dict[str, float] = {}
    """What that step measured; the rollout has the last value of each."""
    agent: str = ""
    """Who asked, where an agent named who did (`Model.agent`)."""
    train: bool = True
    """False where its caller left its sampled tokens out of training."""
    prefix_break: bool | None = None
    """Whether the prompt, as the server had it, did not start with the ids of the turn before. None where
    there was no turn before, or the server did not report the prompt."""
    render_s: float = 0.0
    """Planning, bridging and parsing, seconds; waiting for a thread that tokenizes is in it."""
    queue_s: float = 0.0
    """Between the finished prompt and the answer, what is not in `request_s`: waiting for a turn on the event loop, for
    the end of a pause, for another server."""
    request_s: float = 0.0
    """In requests, with their retries and the waits before those."""


class Timing(msgspec.Struct, kw_only=True):
    """When a rollout ran and where its time went."""

    started_at: float = 0.0
    """Seconds since the epoch."""
    wall_s: float = 0.0
    env_s: float = 0.0
    """Spent in the environment's reset, step and score."""
    request_s: float = 0.0


class Rollout(msgspec.Struct, kw_only=True):
    """One environment played to its end, or to its failure.

    Its reward comes from one of three places, the last of them that gave one: the steps' sum, the environment's
    `score`, the stream's `group_reward`. Each is kept under its own name, whichever it is.
    """

    id: str
    task_id: str
    task_index: int
    member: int
    """Position in its group, from 0."""
    task: Mapping[str, Any] = {}
    reward: float = 0.0
    """What a trainer learns from: `group_reward` where there is one, else `score`, else `step_reward`."""
    reward_known: bool = True
    """False where nobody has said what it was worth, as whoever opens a session or an endpoint may leave it. The reward
    is 0 then and stands for nothing: no mean and no advantage counts it, and it is NaN in the samples."""
    step_reward: float | None = None
    """The sum of the turns' rewards; None in a run of before format 3, which did not keep it apart."""
    score: float | None = None
    """What the environment's `score` gave."""
    group_reward: float | None = None
    """What the stream's `group_reward` gave for it."""
    rewards: dict[str, float] = {}
    """By the name of the agent that asked, where its agent gave them: a branch takes its own agent's, else the
    rollout's."""
    notes: dict[str, str] = {}
    """Texts that its agent keeps with it, such as what a program printed."""
    metrics: dict[str, float] = {}
    stop: StopReason | None = None
    failure: Failure | None = None
    """Exactly one of `stop` and `failure` is set."""
    earlier_failures: list[Failure] = []
    """Of earlier attempts, where whole rollouts are tried again (`rollout_retries`)."""
    submitted_at: int = 0
    """How often the weights had been updated when it was submitted."""
    staleness: int = 0
    """Weight updates between its submission and its end."""
    turns: list[Turn] = []
    messages: list[Message] = []
    """The conversation at its end."""
    roots: list[Root] = []
    nodes: list[Node] = []
    """The trajectory: see `rollout.tokens.trajectory`. Parents are indices into this list."""
    leaves: list[int] = []
    timing: Timing = msgspec.field(default_factory=Timing)

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def trajectory(self) -> Trajectory:
        """The tree, to read."""
        return Trajectory.from_parts(self.roots, self.nodes, self.leaves)

    @property
    def fallbacks(self) -> Counter[FallbackReason]:
        """How many turns went message-in, by reason."""
        return Counter(turn.fallback for turn in self.turns if turn.fallback is not None)

    def samples(self) -> list[TrainingSample]:
        """Its training samples, one a branch, with its reward; none of branches whose ids the server did not report."""
        samples = samples_of_tree(self.trajectory, self.turns)
        reward = self.reward if self.reward_known else math.nan
        for sample in samples:
            sample.reward = self.rewards.get(sample.agent, reward)
            sample.task_id, sample.rollout_id = self.task_id, self.id
        return samples

    def __repr__(self) -> str:
        end = self.stop.value if self.stop else f"failed: {self.failure.kind}" if self.failure else "unfinished"
        reward = f"{self.reward:g}" if self.reward_known else "unknown"
        return f"<Rollout {self.id} {len(self.turns)} turns, reward {reward}, {end}>"


def settle_reward(rollout: Rollout) -> None:
    """Sets the reward from what gave one: the group's, else the score, else the steps' sum."""
    given = [each for each in (rollout.group_reward, rollout.score, rollout.step_reward) if each is not None]
    rollout.reward, rollout.reward_known = (given or [0.0])[0], bool(given)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout to play."""

    task_index: int
    task_id: str
    task: Mapping[str, Any]
    member: int
    group_size: int = 1
    """Members that are to be played."""
    submitted_at: int = 0
    """How often the weights had been updated when it was submitted."""

    @property
    def id(self) -> str:
        return f"{self.task_id}-{self.member}"

    def rollout(self) -> Rollout:
        """The rollout that it becomes, before anything is played."""
        return Rollout(
            id=self.id,
            task_id=self.task_id,
            task_index=self.task_index,
            member=self.member,
            task=self.task,
            submitted_at=self.submitted_at,
            step_reward=0.0,
        )


class Group(msgspec.Struct, kw_only=True):
    """The rollouts of one task."""

    task_id: str
    task_index: int
    task: Mapping[str, Any]
    rollouts: list[Rollout]
    """Members in order, failed ones included."""
    rewarded: bool = False
    """Whether the stream's `group_reward` gave the finished members' rewards."""

    @property
    def finished(self) -> list[Rollout]:
        """The members that did not fail."""
        return [rollout for rollout in self.rollouts if rollout.ok]

    @property
    def rewards(self) -> list[float]:
        """The finished members' rewards, less those that nobody knows."""
        return [rollout.reward for rollout in self.finished if rollout.reward_known]

    def samples(self, advantage: Advantage | None = grpo) -> list[TrainingSample]:
        """The finished members' samples, with advantages over their rewards (see `rollout.tokens.advantages`).

        A branch of an agent that has rewards of its own (`Rollout.rewards`) takes its advantage over the members that
        have one for that agent; one whose reward nobody knows has none. Raises ValueError where `advantage` does not
        give one for each reward.
        """
        finished = self.finished
        known = [rollout.id for rollout in finished if rollout.reward_known]
        of_rollouts = dict(zip(known, _advantages(advantage, self.rewards), strict=True))
        by_agent: dict[str, dict[str, float | None]] = {}
        for name in {name for rollout in finished for name in rollout.rewards}:
            members = [rollout for rollout in finished if name in rollout.rewards]
            values = _advantages(advantage, [rollout.rewards[name] for rollout in members])
            by_agent[name] = {rollout.id: value for rollout, value in zip(members, values, strict=True)}
        samples = []
        for rollout in finished:
            value = of_rollouts.get(rollout.id)
            for sample in rollout.samples():
                sample.advantage = by_agent.get(sample.agent, {}).get(rollout.id, value)
                samples.append(sample)
        return samples

    def __repr__(self) -> str:
        return f"<Group {self.task_id} {len(self.finished)}/{len(self.rollouts)} finished>"


def _advantages(advantage: Advantage | None, rewards: list[float]) -> Sequence[float | None]:
    if advantage is None:
        return [None] * len(rewards)
    values = advantage(rewards)
    if len(values) != len(rewards):
        raise ValueError(f"the advantage function gave {len(values)} values for {len(rewards)} rewards")
    return values


forward_names("rollout.records")
