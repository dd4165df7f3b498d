"""slime: its `Sample`, as a rollout function of a user's gives them.

Defined in THUDM/slime, slime/utils/types.py at 0d234f3e3a83c81b7d37209994e0b994deacbb24; what is made of samples is
`_convert_samples_to_train_data` in slime/ray/rollout.py at a51f0714179da87b1abdff81f99ae1e22034be92.

    def generate_rollout(args, rollout_id, data_source, evaluation=False):      # --rollout-function-path
        ...                                                                     # play, by an EngineThread
        return [Sample.from_dict(one) for one in sample_dicts(samples)]

What is filled of what: tokens, response_length, loss_mask and rollout_log_probs (a row, see `rows.py`; the last two
have the response's length), reward, weight_versions, status (`truncated` where the last answer was cut off),
group_index and index (tasks and rows as they come), session_id (the rollout's id), and in metadata the task's id, which
of its rollouts it is, the branch and the advantage. Empty: the texts `prompt` and `response`, and `label`: ids are what
is trained on. Not filled: experts, what a teacher says, statistics of speculation and of the prefix cache. A
row with images is refused: a sample has no pixels.

slime takes GRPO's baseline over rows of n_samples_per_prompt, and over the whole batch where groups have other sizes,
as they do with several branches or with failed members. Give our advantages in its place, taken over the rollouts of a
task: `--custom-reward-post-process-path rollout.trainers.slime.our_advantages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rollout.tokens.samples import TrainingSample
from rollout.trainers.rows import text_rows


def sample_dicts(samples: Iterable[TrainingSample]) -> Iterator[dict[str, Any]]:
    """What slime's `Sample.from_dict` reads, one for each branch."""
    group, last_task = -1, None
    for index, row in enumerate(text_rows(samples, "slime")):
        sample = row.sample
        if sample.task_id != last_task:
            group, last_task = group + 1, sample.task_id
        yield {
            "group_index": group,
            "index": index,
            "prompt": "",
            "tokens": [*row.prompt_ids, *row.response_ids],
            "response": "",
            "response_length": len(row.response_ids),
            "label": None,
            "reward": sample.reward,
            "loss_mask": row.mask,
            "weight_versions": row.versions,
            "rollout_log_probs": row.logprobs,
            "status": "truncated" if row.truncated else "completed",
            "session_id": sample.rollout_id,
            "metadata": {
                "task_id": sample.task_id,
                "member": row.member,
                "branch": row.branch,
                "branches": row.branches,
                "advantage": sample.advantage,
            },
        }


def our_advantages(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Rewards as they are, and the advantages that `Group.samples` took: slime's `--custom-reward-post-process-path`.

    Raises ValueError for a sample without one.
    """
    advantages = [sample.metadata.get("advantage") for sample in samples]
    if None in advantages:
        raise ValueError("a sample has no advantage: take them by group.samples(), without advantage=None")
    return [sample.reward for sample in samples], advantages


def write(path: Path, samples: Iterable[TrainingSample]) -> None:
    """A sample a line, as JSON."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for one in sample_dicts(samples):
            file.write(encoder.encode(one) + b"\n")
