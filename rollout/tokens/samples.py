"""A branch -> a training sample: flat arrays, one entry per token.

One sample per branch, that is per turn that no later turn of the tree continues. A sampled token is
trained on exactly once: in the first branch that has it; in the others it is context.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from rollout.moved import forward_names
from rollout.tokens.trajectory import LOGPROBS, Logprobs, TokenIds, Trajectory, ids_array

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: What vLLM calls the weights that it was started with.
INITIAL_VERSION = "default"


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
        return numpy_arrays(self)

    def to_torch(self) -> dict[str, Any]:
        """The arrays of `to_numpy` as tensors that share their memory. Needs torch."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.to_numpy().items()}

    def __repr__(self) -> str:
        return f"<TrainingSample {len(self.token_ids)} tokens, {sum(self.loss_mask)} trained, reward {self.reward:g}>"


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


def numpy_arrays(sample: TrainingSample) -> Mapping[str, NDArray[Any]]:
    """A sample's arrays; ids, mask and logprobs share the sample's memory."""
    import numpy as np  # here: whoever only plays does not need it

    return {
        "token_ids": np.frombuffer(sample.token_ids, np.int32),
        "loss_mask": np.frombuffer(sample.loss_mask, np.int8),
        "logprobs": np.frombuffer(sample.logprobs, np.float64),
        "weight_versions": np.array([version_number(version) for version in sample.weight_versions], np.int64),
    }


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


__getattr__ = forward_names("rollout.tokens.samples")
