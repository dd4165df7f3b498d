"""A branch -> a training sample: flat arrays, one entry per token.

One sample per branch, that is per turn that no later turn of the tree continues. A sampled token is
trained on exactly once: in the first branch that has it; in the others it is context. What was asked for with
`train=False` is context everywhere.

What a logprob is depends on the server. vLLM's default (`--logprobs-mode raw_logprobs`) is the model's own, before
temperature, penalties and filters: at temperature 0.7 it is not the probability with which the token was drawn.
Started with `--logprobs-mode processed_logprobs` it reports the one after them, which is what an importance ratio is
over; the trainer then divides its own logits by `temperatures`. A sample says which of the two it holds.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from rollout.moved import forward_names
from rollout.request import FinishReason, LogprobsMode, Sampling
from rollout.tokens.images import SampleImage, expanded, images_of_sample
from rollout.tokens.sample_fields import SampleExperts, SampleMask, fields_of
from rollout.tokens.trajectory import LOGPROBS, Logprobs, Node, TokenIds, Trajectory, ids_array

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: What vLLM calls the weights that it was started with.
INITIAL_VERSION = "default"


class Turn(Protocol):
    """What is taken of a rollout's turn: see `rollout.records.Turn`."""

    node: int
    finish_reason: FinishReason
    sampling: Sampling | None
    logprobs_mode: LogprobsMode | None
    reward: float
    metrics: dict[str, float]
    agent: str
    train: bool


class SampleTurn(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One turn's sampled tokens within a sample: the ids [start, end)."""

    start: int
    end: int
    turn: int
    """Its index in the rollout's turns. Where branches share a turn each of their samples names it: `trained` is above
    0 where it is to be counted."""
    trained: int
    """How many of its tokens are trained on here. A later branch may hold a turn's beginning only."""
    temperature: float | None
    """None where it is not known."""
    logprobs_mode: LogprobsMode | None = None
    reward: float = 0.0
    """What the environment's step gave for the turn."""
    metrics: dict[str, float] = {}
    agent: str = ""
    """Who asked."""
    finish_reason: FinishReason = "stop"
    """ "length" where the answer was cut off."""


class TrainingSample(msgspec.Struct, kw_only=True):
    """One branch of a rollout. All arrays have one length."""

    token_ids: TokenIds
    """int32: exactly what the server saw and sampled."""
    loss_mask: TokenIds
    """int8: 1 where the token was sampled and is trained on here."""
    logprobs: Logprobs
    """float64: a natural-log probability where the token was sampled, 0 elsewhere. Of which distribution, the model's
    own (before temperature and filters) or the one that it was drawn from, says `logprobs_mode`."""
    weight_versions: list[str | None]
    """The weight version that sampled the token; None for prompt tokens and where the server reports none."""
    temperatures: Logprobs = msgspec.field(default_factory=lambda: array(LOGPROBS))
    """float64: at which the token was sampled (0: the likeliest was taken), NaN where that is not known. 1 where it was
    not sampled, so that a prompt's logits may be divided, too. A sample that is made without them has NaN only."""
    turns: list[SampleTurn] = []
    """The turns that sampled its tokens, in their order."""
    logprobs_mode: LogprobsMode | None = None
    """What the logprobs are of: `raw_logprobs` is the model's own distribution, `processed_logprobs` the one after
    temperature, penalties and filters. None where it is not known, or not the same for all its turns."""
    reward: float = 0.0
    """The rollout's, or its agent's own: see `rollout.records.Rollout`. NaN where nobody gave one (`reward_known`):
    JSON has null. What each step gave is the turns'."""
    advantage: float | None = None
    """None until a group's advantages are computed, and where its reward is not known."""
    task_id: str = ""
    rollout_id: str = ""
    agent: str = ""
    """Who asked for its last turn."""
    left_out: int = 0
    """Sampled tokens that are trained on nowhere, since whoever asked for them left them out (`train=False`)."""
    routed_experts: SampleExperts | None = None
    """Where a run asks for them (`EngineConfig.routed_experts`) and its server reported any. `to_numpy` has the array:
    (tokens, layers, top k), -1 where they are not known, as they never are of the last token."""
    sampling_mask: SampleMask | None = None
    """Where a run asks for them (`EngineConfig.sampling_mask`) and its server reported any."""
    images: list[SampleImage] = []
    """What stands for images among `token_ids`, in order."""

    def __post_init__(self) -> None:
        if not self.temperatures:
            self.temperatures = array(LOGPROBS, [math.nan]) * len(self.token_ids)

    def to_numpy(self) -> Mapping[str, NDArray[Any]]:
        """`token_ids`, `loss_mask`, `logprobs`, `temperatures` as arrays over this sample's own memory,
        `weight_versions` as int64 (-1 for none), and `turn_ids` as int32: the index of the turn that sampled the token,
        -1 for none. Where the sample has them: `routed_experts`; and `sampling_mask_ids` with `sampling_mask_offsets`,
        one more than there are tokens: token i was drawn from ids[offsets[i]:offsets[i + 1]], and where that is empty
        nobody reported it. Raises ValueError for a weight version that is no number.
        """
        return numpy_arrays(self)

    def to_torch(self) -> dict[str, Any]:
        """The arrays of `to_numpy` as tensors that share their memory. Needs torch."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.to_numpy().items()}

    @property
    def reward_known(self) -> bool:
        """Whether anybody has said what it was worth."""
        return not math.isnan(self.reward)

    def __repr__(self) -> str:
        return f"<TrainingSample {len(self.token_ids)} tokens, {sum(self.loss_mask)} trained, reward {self.reward:g}>"


def samples_of_tree(tree: Trajectory, turns: Sequence[Turn] = ()) -> list[TrainingSample]:
    """The samples of a tree, in the order in which their branches were first sampled."""
    continued = _above(tree)
    trained: set[int] = set()
    owners = _owners(tree, turns)
    ends = [leaf for leaf in tree.leaves if leaf not in continued and tree.nodes[leaf].ids_known]
    return [_sample(tree, tree.path(end), trained, turns, owners) for end in ends]


def _owners(tree: Trajectory, turns: Sequence[Turn]) -> dict[int, int]:
    """Sampled node -> the turn that sampled it. A fork may have split a turn's ids over several nodes."""
    found: dict[int, int] = {}
    for index, turn in enumerate(turns):
        node = turn.node
        while 0 <= node < len(tree.nodes) and tree.nodes[node].sampled:
            found[node] = index
            node = tree.nodes[node].parent
            if node >= 0 and tree.nodes[node].message is not None:
                break
    return found


def _above(tree: Trajectory) -> set[int]:
    """The nodes that some leaf is below."""
    found: set[int] = set()
    for leaf in tree.leaves:
        node = tree.nodes[leaf].parent
        while node >= 0 and node not in found:  # what is above a node that is there, is there
            found.add(node)
            node = tree.nodes[node].parent
    return found


def _sample(
    tree: Trajectory, path: list[int], trained: set[int], turns: Sequence[Turn], owners: Mapping[int, int]
) -> TrainingSample:
    """The sample of one branch; adds the sampled nodes that it trains on to `trained`."""
    token_ids, loss_mask = ids_array(), array("b")
    logprobs: Logprobs = array(LOGPROBS)
    temperatures: Logprobs = array(LOGPROBS)
    versions: list[str | None] = []
    spans: list[SampleTurn] = []
    left_out = 0
    for index in path:
        node = tree.nodes[index]
        ids = expanded(node.ids, node.expansions)
        count, start = len(ids), len(token_ids)
        token_ids.extend(ids)
        owner = owners.get(index)
        wanted = owner is None or turns[owner].train
        train = node.sampled and wanted and index not in trained
        left_out += count if node.sampled and not wanted else 0
        loss_mask.extend([1 if train else 0] * count)
        logprobs.extend(node.logprobs if node.sampled else array(LOGPROBS, [0.0]) * count)
        versions.extend(_versions(node, count))
        temperature: float | None = None if node.sampled else 1.0
        if owner is not None and count:
            temperature = _temperature(turns[owner])
            _add_span(spans, turns[owner], owner, start, count, count if train else 0)
        temperatures.extend(array(LOGPROBS, [math.nan if temperature is None else temperature]) * count)
        if train:
            trained.add(index)
    modes = {span.logprobs_mode for span in spans}
    experts, mask = fields_of([tree.nodes[index] for index in path])
    return TrainingSample(
        token_ids=token_ids,
        loss_mask=loss_mask,
        logprobs=logprobs,
        weight_versions=versions,
        temperatures=temperatures,
        turns=spans,
        logprobs_mode=modes.pop() if len(modes) == 1 else None,
        agent=spans[-1].agent if spans else "",
        left_out=left_out,
        routed_experts=experts,
        sampling_mask=mask,
        images=images_of_sample(tree, path) if tree.nodes[path[-1]].multimodal else [],
    )


def _versions(node: Node, count: int) -> list[str | None]:
    versions: list[str | None] = [None] * count
    for span in node.weight_versions:
        versions[span.start : span.end] = [span.version] * (span.end - span.start)
    return versions


def _temperature(turn: Turn) -> float | None:
    return turn.sampling.temperature if turn.sampling is not None else None


def _add_span(spans: list[SampleTurn], turn: Turn, index: int, start: int, count: int, trained: int) -> None:
    """Adds a node's ids to its turn's."""
    if spans and spans[-1].turn == index:
        last = spans[-1]
        spans[-1] = msgspec.structs.replace(last, end=start + count, trained=last.trained + trained)
        return
    spans.append(
        SampleTurn(
            start=start,
            end=start + count,
            turn=index,
            trained=trained,
            temperature=_temperature(turn),
            logprobs_mode=turn.logprobs_mode,
            reward=turn.reward,
            metrics=turn.metrics,
            agent=turn.agent,
            finish_reason=turn.finish_reason,
        )
    )


def turn_ids(sample: TrainingSample) -> TokenIds:
    """For each token the index of the turn that sampled it; -1 for none."""
    found = ids_array([-1]) * len(sample.token_ids)
    for span in sample.turns:
        found[span.start : span.end] = ids_array([span.turn]) * (span.end - span.start)
    return found


def numpy_arrays(sample: TrainingSample, *, fields: bool = True) -> Mapping[str, NDArray[Any]]:
    """A sample's arrays; ids, mask, logprobs and temperatures share the sample's memory.

    `fields` gives routed experts and sampling masks among them, where it has any.
    """
    import numpy as np  # here: whoever only plays does not need it

    found: dict[str, NDArray[Any]] = {
        "token_ids": np.frombuffer(sample.token_ids, np.int32),
        "loss_mask": np.frombuffer(sample.loss_mask, np.int8),
        "logprobs": np.frombuffer(sample.logprobs, np.float64),
        "temperatures": np.frombuffer(sample.temperatures, np.float64),
        "weight_versions": np.array([version_number(version) for version in sample.weight_versions], np.int64),
        "turn_ids": np.frombuffer(turn_ids(sample), np.int32),
    }
    if fields and sample.routed_experts is not None:
        found["routed_experts"] = sample.routed_experts.to_numpy()
    if fields and sample.sampling_mask is not None:
        found["sampling_mask_ids"], found["sampling_mask_offsets"] = sample.sampling_mask.to_numpy()
    return found


def as_fields(sample: TrainingSample) -> dict[str, Any]:
    """A sample's fields by name, for what writes JSON; without those that a run must ask for, where it has none."""
    found = msgspec.structs.asdict(sample)
    for name in ("routed_experts", "sampling_mask"):
        field = found.pop(name)
        if field is not None:
            found[name] = field.as_json()
    if not sample.images:
        del found["images"]
    return found


def version_number(version: str | None) -> int:
    """A weight version as a number; -1 for none, 0 for weights that were never updated.

    Raises ValueError for a name that is no number.
    """
    if version is None:
        return -1
    if version == INITIAL_VERSION:
        return 0
    try:
        return int(version)
    except ValueError:
        raise ValueError(f"weight version {version!r} is not a number: arrays need versions such as '7'") from None


forward_names("rollout.tokens.samples")
