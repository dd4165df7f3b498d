"""A branch -> a training sample: flat arrays, one entry per token.

One sample per branch, that is per turn that no later turn of the tree continues. A sampled token is
trained on exactly once: in the first branch that has it; in the others it is context.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from rollout.records import Group, Rollout
from rollout.tokens.advantages import Advantage, grpo
from rollout.tokens.trajectory import LOGPROBS, Logprobs, TokenIds, Trajectory, ids_array

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TrainingSample(msgspec.Struct, kw_only=True):
    """One branch of a rollout. All arrays have one length."""

    token_ids: TokenIds
    """int32: exactly what the server saw and sampled."""
    loss_mask: TokenIds
    """int8: 1 where the token was sampled and is trained on here."""
    logprobs: Logprobs
    """float64: the sampler's natural-log probability where the token was sampled, 0 elsewhere."""
    weight_versions: list[str | None]
    """The weight version that sampled the token; None for prompt tokens and where the server reports none."""
    reward: float = 0.0
    advantage: float | None = None
    """None until a group's advantages are computed."""
    task_id: str = ""
    rollout_id: str = ""

    def to_numpy(self) -> Mapping[str, NDArray[Any]]:
        """`token_ids`, `loss_mask`, `logprobs` as arrays over this sample's own memory, `weight_versions` as int64
        (-1 for none). Raises ValueError for a weight version that is no number.
        """
        from rollout.tokens.batch import numpy_arrays  # batches are made of samples

        return numpy_arrays(self)

    def to_torch(self) -> dict[str, Any]:
        """The arrays of `to_numpy` as tensors that share their memory. Needs torch."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.to_numpy().items()}

    def __repr__(self) -> str:
        return f"<TrainingSample {len(self.token_ids)} tokens, {sum(self.loss_mask)} trained, reward {self.reward:g}>"


def samples_of(rollout: Rollout) -> list[TrainingSample]:
    """A rollout's training samples, with its reward. None for branches whose ids the server did not report."""
    samples = samples_of_tree(rollout.trajectory)
    for sample in samples:
        sample.reward, sample.task_id, sample.rollout_id = rollout.reward, rollout.task_id, rollout.id
    return samples


def group_samples(group: Group, advantage: Advantage | None = grpo) -> list[TrainingSample]:
    """The samples of a group's finished members, each with its rollout's advantage.

    Raises ValueError where `advantage` does not give one for each reward.
    """
    finished = group.finished
    advantages: Sequence[float | None] = [None] * len(finished)
    if advantage is not None:
        advantages = advantage([rollout.reward for rollout in finished])
    if len(advantages) != len(finished):
        raise ValueError(f"the advantage function gave {len(advantages)} values for {len(finished)} rewards")
    samples = []
    for rollout, value in zip(finished, advantages, strict=True):
        for sample in samples_of(rollout):
            sample.advantage = value
            samples.append(sample)
    return samples


def samples_of_tree(tree: Trajectory) -> list[TrainingSample]:
    """The samples of a tree, in the order in which their branches were first sampled."""
    continued = _above(tree)
    trained: set[int] = set()
    ends = [leaf for leaf in tree.leaves if leaf not in continued and tree.nodes[leaf].ids_known]
    return [_sample(tree, tree.path(end), trained) for end in ends]


def _above(tree: Trajectory) -> set[int]:
    """The nodes that some leaf is below."""
    found: set[int] = set()
    for leaf in tree.leaves:
        node = tree.nodes[leaf].parent
        while node >= 0 and node not in found:  # what is above a node that is there, is there
            found.add(node)
            node = tree.nodes[node].parent
    return found


def _sample(tree: Trajectory, path: list[int], trained: set[int]) -> TrainingSample:
    """The sample of one branch; adds the sampled nodes that it trains on to `trained`."""
    token_ids, loss_mask = ids_array(), array("b")
    logprobs: Logprobs = array(LOGPROBS)
    versions: list[str | None] = []
    for index in path:
        node = tree.nodes[index]
        count = len(node.ids)
        token_ids.extend(node.ids)
        train = node.sampled and index not in trained
        loss_mask.extend([1 if train else 0] * count)
        logprobs.extend(node.logprobs if node.sampled else array(LOGPROBS, [0.0]) * count)
        node_versions: list[str | None] = [None] * count
        for span in node.weight_versions:
            node_versions[span.start : span.end] = [span.version] * (span.end - span.start)
        versions.extend(node_versions)
        if train:
            trained.add(index)
    return TrainingSample(token_ids=token_ids, loss_mask=loss_mask, logprobs=logprobs, weight_versions=versions)


def never_sampled(rollout: Rollout) -> int:
    """Tokens of assistant messages in later prompts that nobody sampled: 0 where every turn went token-in.

    What a trainer would learn that takes the last prompt and completion as one sample, with all assistant text in it.
    """
    tree, count = rollout.trajectory, 0
    for before, after in pairwise(rollout.turns):
        if not after.prefix_break:
            continue
        prompt, sampled = tree.turn_ids(before.node)
        later, _ = tree.turn_ids(after.node)
        same = next((at for at, (a, b) in enumerate(zip(prompt, later, strict=False)) if a != b), len(prompt))
        rest = later[same:]
        # The message ends with the stop token that the model sampled; one that was cut off is as long as it was.
        ends = before.finish_reason == "stop" and sampled[-1] in rest
        rest = rest[: rest.index(sampled[-1]) + 1 if ends else len(sampled)]
        count += len(rest) - sum(b.size for b in SequenceMatcher(None, sampled, rest, False).get_matching_blocks())
    return count
