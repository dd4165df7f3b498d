"""A branch as most trainers want it: a prompt, then a response with a mask over it.

We hold a branch as one row of ids in which any may be trained on. Trainers cut it in two where training begins:

    ids        system user | answer tool answer
    mask                   |   1     0     1
    row            prompt  |     response

A branch that trains on nothing (every token of it is trained on in another branch, or was left out) is no row. A
rollout with several branches is several rows, which lie next to each other: each sampled token is in one of them with a
mask of 1, and in the others it is context. So is one whose server gave no number as its logprob (vLLM's may be null):
one NaN would be the whole batch's loss. For the same reason a branch without a known reward is no row, which is said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from rollout.errors import ConfigError
from rollout.log import get_logger
from rollout.tokens.samples import TrainingSample

_log = get_logger(__name__)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One branch, cut where training begins. All that is of the response has its length."""

    sample: TrainingSample
    """What it was made of: rewards, advantage, ids of its task and rollout."""
    prompt_ids: list[int]
    response_ids: list[int]
    mask: list[int]
    """1 where a token was sampled and is trained on."""
    logprobs: list[float]
    """As sampled; 0 where nothing was, or where it is no number."""
    weight_versions: list[str | None]
    branch: int = 0
    """Its position among the rollout's rows."""
    branches: int = 1
    """How many rows the rollout has."""

    @property
    def is_last(self) -> bool:
        """Whether it is its rollout's last row."""
        return self.branch == self.branches - 1

    @property
    def truncated(self) -> bool:
        """Whether its last answer was cut off."""
        turns = self.sample.turns
        return bool(turns) and turns[-1].finish_reason == "length"

    @property
    def member(self) -> int:
        """Which of its task's rollouts it is of."""
        return member_of(self.sample)

    @property
    def versions(self) -> list[str]:
        """The weight versions that sampled what it trains on, each once, in their order."""
        known = (version for version, trained in zip(self.weight_versions, self.mask, strict=True) if trained)
        return list(dict.fromkeys(version for version in known if version is not None))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where the trained tokens lie among prompt and response together: [start, end) of each run of them."""
        found: list[tuple[int, int]] = []
        at = len(self.prompt_ids)
        for trained, run in itertools.groupby(self.mask):
            length = len(list(run))
            if trained:
                found.append((at, at + length))
            at += length
        return found

    def __repr__(self) -> str:
        return f"<Row {len(self.prompt_ids)} + {len(self.response_ids)} tokens of {self.sample.rollout_id}>"


def row_of(sample: TrainingSample, cut: int, mask: Sequence[int] | None = None) -> Row:
    """A branch, cut before the id at `cut`. `mask` takes the place of `trained`."""
    mask = trained(sample) if mask is None else mask
    return Row(
        sample=sample,
        prompt_ids=sample.token_ids[:cut].tolist(),
        response_ids=sample.token_ids[cut:].tolist(),
        mask=list(mask[cut:]),
        logprobs=logprobs_of(sample)[cut:],
        weight_versions=sample.weight_versions[cut:],
    )


def trained(sample: TrainingSample, mask: Sequence[int] | None = None) -> list[int]:
    """Its loss mask, or another one in its place, without the tokens whose logprob is no number."""
    mask = sample.loss_mask if mask is None else mask
    return [int(on and math.isfinite(value)) for on, value in zip(mask, sample.logprobs, strict=True)]


def logprobs_of(sample: TrainingSample) -> list[float]:
    """Those of all its tokens, 0 where one is no number."""
    return [value if math.isfinite(value) else 0.0 for value in sample.logprobs]


def rows(samples: Iterable[TrainingSample]) -> Iterator[Row]:
    """The rows of samples, rollout by rollout; a rollout's samples lie next to each other, as `Group.samples` has them.

    Holds one rollout's at a time.
    """
    unknown = 0
    for _, of_rollout in itertools.groupby(samples, key=lambda sample: (sample.task_id, sample.rollout_id)):
        masks = [(sample, trained(sample)) for sample in of_rollout]
        known = [(sample, mask) for sample, mask in masks if sample.reward_known]
        unknown += len(masks) - len(known)
        found = [row_of(sample, mask.index(1), mask) for sample, mask in known if 1 in mask]
        for branch, row in enumerate(found):
            yield msgspec.structs.replace(row, branch=branch, branches=len(found))
    if unknown:
        _log.warning("samples_without_reward", samples=unknown, so="left out", remedy="rewards that an outcome gives")


def text_rows(samples: Iterable[TrainingSample], trainer: str) -> Iterator[Row]:
    """The rows for a trainer whose form holds no pixels. Raises ConfigError for one with images."""
    for row in rows(samples):
        refuse_images(row.sample, trainer)
        yield row


def refuse_images(sample: TrainingSample, trainer: str) -> None:
    """Raises ConfigError for a sample with images: its placeholders without their pixels are another prompt."""
    if sample.images:
        raise ConfigError(
            f"rollout {sample.rollout_id} has images, whose pixels cannot be handed on to {trainer}: train on tasks "
            "without images, or make rows of your own by rollout.trainers.rows, whose Row.sample.images names each"
        )


def member_of(sample: TrainingSample) -> int:
    """Which of its task's rollouts a sample is of. Raises ValueError where its ids do not say it."""
    prefix, _, member = sample.rollout_id.rpartition("-")
    if prefix != sample.task_id or not member.isdigit():
        raise ValueError(f"rollout {sample.rollout_id!r} does not say which of task {sample.task_id!r} it is")
    return int(member)


def known_temperatures(sample: TrainingSample) -> list[float]:
    """Its temperatures. Raises ValueError where one is not known: a trainer would divide its logits by it."""
    found = sample.temperatures.tolist()
    if any(math.isnan(value) for value in found):
        raise ValueError(
            f"rollout {sample.rollout_id!r} was sampled at a temperature that its server did not say: give one by "
            "`sampling`"
        )
    return found
