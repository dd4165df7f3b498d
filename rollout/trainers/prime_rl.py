"""prime-rl: samples as its orchestrator makes them, for `prepare_batch`, which packs them for its trainer.

Defined in PrimeIntellect-ai/prime-rl, src/prime_rl/transport/types.py at 2487f8342e751c23a380518ded8d966a748b4cd5:
`TrainingSample`, a branch as one flat row, as ours is. The definition changes often, and its arrays go by position: so
samples are made of the class that is installed, by the names of its fields, where that is handed in.

    from prime_rl.transport.types import TrainingSample
    examples = training_samples(group.samples(), "guess_number", of=TrainingSample)

What is filled of what: token_ids, mask (`loss_mask`), logprobs, temperatures, env_name, advantages (the sample's at
each token that is trained on, 0 elsewhere; None without one), reward, trace_id (the rollout's id), branch_index and
routed_experts; of earlier definitions, which cut a row in two, prompt_ids, prompt_mask, completion_ids,
completion_mask, completion_logprobs, completion_temperatures, advantage. Not filled: what a teacher or a reference
model says, weights of a loss's parts, sampling masks. A row with images is refused: a sample has their places and
digests, and no pixels.

A rollout with several branches is several samples with one trace_id.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from rollout.tokens.samples import TrainingSample
from rollout.trainers.rows import Row, known_temperatures, logprobs_of, text_rows


class Experts(msgspec.Struct, array_like=True, omit_defaults=True):
    """`RoutedExperts` there: bytes of an array of (tokens, layers, top k)."""

    data: bytes
    shape: list[int]
    dtype: str


class PrimeSample(msgspec.Struct, array_like=True, omit_defaults=True):
    """`TrainingSample` of the definition that the module names, field by field: they go by position."""

    token_ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    temperatures: list[float]
    env_name: str
    ref_logprobs: list[float] | None = None
    mm_kwargs: None = None
    routed_experts: Experts | None = None
    mm_token_type_ids: list[int] | None = None
    rl_weights: list[float] | None = None
    ce_weights: list[float] | None = None
    ref_kl_weights: list[float] | None = None
    advantages: list[float] | None = None


def training_samples(
    samples: Iterable[TrainingSample], env_name: str = "rollout", *, of: type[Any] = PrimeSample
) -> Iterator[Any]:
    """prime-rl's samples. `of` is the installed class. Raises ValueError for a field of it that has to be filled and is
    not known here."""
    wanted = {field.name: field for field in msgspec.structs.fields(of)}
    for row in text_rows(samples, "prime-rl"):
        known = _fields(row, env_name, of)
        missing = [name for name, field in wanted.items() if field.required and name not in known]
        if missing:
            raise ValueError(f"{of.__module__}.{of.__name__} wants {missing[0]!r}, which is not known here")
        yield of(**{name: value for name, value in known.items() if name in wanted})


def _fields(row: Row, env_name: str, of: type[Any]) -> dict[str, Any]:
    """Every field that any of the definitions has, as far as it is known."""
    sample, cut = row.sample, len(row.prompt_ids)
    temperatures = known_temperatures(sample)
    advantage, mask = sample.advantage, [0] * cut + row.mask
    return {
        "token_ids": sample.token_ids.tolist(),
        "mask": [bool(trained) for trained in mask],
        "logprobs": logprobs_of(sample),
        "temperatures": temperatures,
        "env_name": env_name,
        "routed_experts": _experts(sample, of),
        "advantages": None if advantage is None else [advantage * trained for trained in mask],
        "reward": sample.reward,
        "trace_id": sample.rollout_id,
        "branch_index": row.branch,
        "prompt_ids": row.prompt_ids,
        "prompt_mask": [False] * cut,
        "completion_ids": row.response_ids,
        "completion_mask": [bool(trained) for trained in row.mask],
        "completion_logprobs": row.logprobs,
        "completion_temperatures": temperatures[cut:],
        "advantage": advantage,
    }


def _experts(sample: TrainingSample, of: type[Any]) -> Any:
    """In the class that a definition has beside its sample's."""
    if sample.routed_experts is None:
        return None
    array = sample.routed_experts.to_numpy()
    made = Experts if of is PrimeSample else vars(sys.modules[of.__module__])["RoutedExperts"]
    return made(data=array.tobytes(), shape=list(array.shape), dtype=str(array.dtype))


def write(path: Path, samples: Iterable[TrainingSample]) -> None:
    """A msgpack array of them: `msgspec.msgpack.decode(data, type=list[TrainingSample])` reads it.

    The array's length stands before it, so that they are written beside the file first.
    """
    encoder, count = msgspec.msgpack.Encoder(), 0
    with tempfile.TemporaryFile(dir=path.parent) as spill, path.open("wb") as file:
        for one in training_samples(samples):
            spill.write(encoder.encode(one))
            count += 1
        file.write(b"\xdd" + count.to_bytes(4, "big"))
        spill.seek(0)
        shutil.copyfileobj(spill, file)
