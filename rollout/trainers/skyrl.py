"""SkyRL: what its generators give back, `GeneratorOutput`.

Defined in NovaSky-AI/SkyRL, skyrl/train/generators/base.py at 73251e12c43575a2393b2943dc5d1e85ac9d5662, with more
fields in release 0.4.0; what must hold of them is `validate_generator_output` in skyrl/train/utils/trainer_utils.py.

    class Ours(GeneratorInterface):
        async def generate(self, input_batch):
            ...                                     # play input_batch, by `engine.submit` or a stream
            return generator_output(samples, trajectory_id=TrajectoryID)

What is filled of what: prompt_token_ids, response_ids, loss_masks and rollout_logprobs (a row, see `rows.py`), rewards
(one number a row), stop_reasons (`length` where the last answer was cut off), trajectory_ids (the task's id and which
of its rollouts). Not filled, None: rollout_metrics, times, experts, sampling masks, env_metrics. A row with
images is refused: a sample has no pixels.

Several branches are what SkyRL calls steps of a trajectory: `step_wise=True` gives `is_last_step`, with
`generator.step_wise_trajectories` set there. SkyRL then takes the advantage from a rollout's last row and gives it to
its others: rewards of single agents are lost. Without it a rollout with several branches is refused. SkyRL wants a row
for each prompt that it asked for: play failed rollouts again (`rollout_retries`), or leave their prompts out.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from rollout.tokens.samples import TrainingSample
from rollout.trainers.rows import Row, text_rows

#: Columns that have an entry for each row.
_COLUMNS = (
    "prompt_token_ids", "response_ids", "rewards", "loss_masks", "stop_reasons", "rollout_logprobs", "trajectory_ids",
    "is_last_step",
)  # fmt: skip

#: What is not known here.
_EMPTY = (
    "rollout_metrics", "trajectory_generation_times", "trajectory_time_splits", "rollout_expert_indices",
    "rollout_sample_support", "env_metrics", "pixel_values", "image_grid_thw",
)  # fmt: skip


def generator_output(
    samples: Iterable[TrainingSample],
    *,
    trajectory_id: Callable[..., Any] = dict,
    step_wise: bool = False,
) -> dict[str, Any]:
    """SkyRL's output of samples. `trajectory_id` is its class of that name.

    Raises ValueError for a rollout with several branches, unless it is `step_wise`.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for row in text_rows(samples, "SkyRL"):
        if row.branches > 1 and not step_wise:
            raise ValueError(
                f"rollout {row.sample.rollout_id!r} has {row.branches} branches: give step_wise=True, and set "
                "generator.step_wise_trajectories"
            )
        for name, value in _cells(row, trajectory_id).items():
            columns[name].append(value)
    found: dict[str, Any] = {**columns, **dict.fromkeys(_EMPTY)}
    return found if step_wise else {**found, "is_last_step": None}


def _cells(row: Row, trajectory_id: Callable[..., Any]) -> dict[str, Any]:
    return {
        "prompt_token_ids": row.prompt_ids,
        "response_ids": row.response_ids,
        "rewards": row.sample.reward,
        "loss_masks": row.mask,
        "stop_reasons": "length" if row.truncated else "stop",
        "rollout_logprobs": row.logprobs,
        "trajectory_ids": trajectory_id(instance_id=row.sample.task_id, repetition_id=row.member),
        "is_last_step": row.is_last,
    }


def write(path: Path, samples: Iterable[TrainingSample]) -> None:
    """One JSON object of all rows, step-wise. Its columns are written beside it, and put together at the end."""
    encoder = msgspec.json.Encoder()
    with ExitStack() as stack, path.open("wb") as file:
        spills = {name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for name in _COLUMNS}
        for row in text_rows(samples, "SkyRL"):
            for name, value in _cells(row, dict).items():
                spills[name].write((b"," if spills[name].tell() else b"") + encoder.encode(value))
        for at, (name, spill) in enumerate(spills.items()):
            file.write((b"{" if at == 0 else b",") + encoder.encode(name) + b":[")
            spill.seek(0)
            shutil.copyfileobj(spill, file)
            file.write(b"]")
        file.write(b"".join(b"," + encoder.encode(name) + b":null" for name in _EMPTY) + b"}\n")
