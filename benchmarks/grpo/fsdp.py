"""GRPO with the policy sharded over two processes (FSDP2), on CPU: a sketch of a trainer of one's own on several cards.

    torchrun --nproc-per-node 2 -m benchmarks.grpo.fsdp --steps 3

Rank 0 has the engine. Each step it plays, and every rank is handed the samples and takes its share of them; a rank's
loss is over the tokens of all, so that the gradients that FSDP averages are those of the whole batch. Then the shards
are gathered on rank 0, which pushes them to the server. That they got there is seen in the next step: what the engine
sampled has the logprobs that the sharded policy gives it, before that step's update (`disagreement`).

On cards: `nccl`, `torch.cuda.set_device`, a mixed-precision policy, and a `base_url` in place of the embedded model.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from envs.guess_number import GuessNumber
from rollout import EngineConfig, EngineThread
from rollout.tokens.batch import pad, to_torch
from rollout.tokens.samples import TrainingSample
from transports.embedded import MODEL_DIR

#: Small numbers and few guesses: short rollouts.
MAKE_ENV = partial(GuessNumber, high=16, guesses=4)


def sharded_policy() -> Any:
    """The embedded model in transformers, each layer a group of its own, sharded over all ranks."""
    policy = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    for layer in policy.model.layers:
        fully_shard(layer)
    return fully_shard(policy)


def shared(samples: Sequence[TrainingSample] | None) -> dict[str, torch.Tensor]:
    """Rank 0's samples as one padded batch, on every rank."""
    batch = [None if samples is None else to_torch(pad(samples, multiple_of=8))]
    dist.broadcast_object_list(batch, src=0)
    assert batch[0] is not None
    return batch[0]


def train(
    policy: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], max_gradient: float = 0.2
) -> float:
    """One update on this rank's rows; the largest difference from the sampler's logprobs before it, on any rank."""
    total = batch["loss_mask"][:, 1:].sum()
    mine = {name: value[dist.get_rank() :: dist.get_world_size()] for name, value in batch.items()}
    ids, mask = mine["token_ids"].long(), mine["loss_mask"][:, 1:].bool()
    logprobs = policy(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][mask]
    sampled = mine["logprobs"][:, 1:][mask].float()
    advantages = mine["advantages"].float()[:, None].expand(mask.shape)[mask]
    ratio = (logprobs - sampled).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum() / total
    optimizer.zero_grad()
    (loss * dist.get_world_size()).backward()  # FSDP takes the mean over ranks, and this is a sum
    torch.nn.utils.clip_grad_norm_(policy.parameters(), max_gradient)
    optimizer.step()
    worst = (logprobs.detach() - sampled).abs().max()
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return float(worst)


def gathered(policy: Any) -> dict[str, torch.Tensor]:
    """The whole weights, on rank 0, by the names that servers know them by."""
    whole = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value.contiguous() for name, value in whole.items() if name != "lm_head.weight"}  # tied


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=8, help="tasks a step, each played eight times")
    given = parser.parse_args(argv)
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    policy = sharded_policy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.3, momentum=0.9)
    with ExitStack() as stack:
        engine = None
        if dist.get_rank() == 0:
            engine = stack.enter_context(EngineThread(EngineConfig(max_tokens=24), MAKE_ENV))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "policy"
            shutil.copytree(MODEL_DIR, folder)
        for step in range(1, given.steps + 1):
            groups = (
                []
                if engine is None
                else list(engine.stream(MAKE_ENV().tasks(given.tasks, seed=step), rollouts_per_task=8))
            )
            samples = [sample for group in groups for sample in group.samples()]
            worst = train(policy, optimizer, shared(samples if engine is not None else None))
            weights = gathered(policy)
            if engine is not None:
                save_file(weights, folder / "model.safetensors", {"format": "pt"})
                engine.update_weights(step, folder)
                rewards = [reward for group in groups for reward in group.rewards]
                print(f"step {step}  reward {sum(rewards) / len(rewards):.3f}  disagreement {worst:.1e}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
