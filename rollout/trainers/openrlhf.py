"""OpenRLHF: what an agent executor gives back for a prompt, of which it makes an `Experience`.

Defined in release 0.11.2 (OpenRLHF/OpenRLHF): `MultiTurnAgentExecutor.execute` in openrlhf/utils/agent.py, which at
f5b3f08a05fd6cbd9a5b712ed931bbb72c24f2c4 was without logprobs, and `_process_response_into_experience` in
openrlhf/trainer/ppo_utils/samples_generator.py.

    class AgentExecutor(AgentExecutorBase):                                     # --agent_func_path
        async def execute(self, prompt, label, sampling_params, **kwargs):
            ...                                                                 # play one rollout
            return next(responses(rollout.samples(), prompt=prompt, label=label))

What is filled of what: observation_tokens (all ids), action_ranges (runs of tokens that are trained on),
rollout_log_probs (of all ids, 0 where nothing was sampled), reward and scores (the branch's reward), truncated, prompt
and label (as they are handed in, else empty). extra_logs is empty, images and mm_train_inputs are None. A row with
images is refused: a sample has no pixels. It cannot hold experts, sampling masks, temperatures, weight versions or an
advantage: OpenRLHF takes its own, over n_samples_per_prompt answers of each prompt.

So a prompt has one answer there, and a rollout with several branches has no place: `responses` gives one a branch, with
`rollout_id` and `branch`, which OpenRLHF passes over, and an executor takes one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from rollout.tokens.samples import TrainingSample
from rollout.trainers.rows import logprobs_of, text_rows


def responses(samples: Iterable[TrainingSample], *, prompt: str = "", label: str = "") -> Iterator[dict[str, Any]]:
    """What `execute` gives back, one for each branch."""
    for row in text_rows(samples, "OpenRLHF"):
        yield {
            "prompt": prompt,
            "label": label,
            "images": None,
            "mm_train_inputs": None,
            "reward": row.sample.reward,
            "scores": row.sample.reward,
            "observation_tokens": [*row.prompt_ids, *row.response_ids],
            "action_ranges": row.spans,
            "rollout_log_probs": logprobs_of(row.sample),
            "truncated": row.truncated,
            "extra_logs": {},
            "task_id": row.sample.task_id,
            "rollout_id": row.sample.rollout_id,
            "branch": row.branch,
        }


def write(path: Path, samples: Iterable[TrainingSample]) -> None:
    """A response a line, as JSON."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for one in responses(samples):
            file.write(encoder.encode(one) + b"\n")
