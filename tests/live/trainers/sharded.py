"""One sharded update of the example's, against the same update by one process: run by `torch.distributed.run`.

Prints the largest difference of a weight, and how far the update moved one.
"""

from __future__ import annotations

from array import array

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from benchmarks.grpo.fsdp import gathered, sharded_policy, train
from rollout.tokens.batch import pad, to_torch
from rollout.tokens.samples import TrainingSample
from rollout.tokens.trajectory import ids_array
from transports.embedded import MODEL_DIR

#: So large that no gradient is cut: a wrong scale would be seen.
CUT = 1e9


def batch() -> dict[str, torch.Tensor]:
    """Rows of several lengths, with advantages of both signs: each rank has others of them."""
    samples = [
        TrainingSample(
            token_ids=ids_array(range(10, 20 + 2 * at)),
            loss_mask=array("b", [0] * 4 + [1] * (6 + 2 * at)),
            logprobs=array("d", [-5.0] * (10 + 2 * at)),
            weight_versions=[None] * (10 + 2 * at),
            advantage=(-1.0) ** at * (1 + at),
        )
        for at in range(5)
    ]
    return to_torch(pad(samples))


def alone(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights after an update of the whole batch in one process."""
    policy = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.3)
    ids, mask = data["token_ids"].long(), data["loss_mask"][:, 1:]
    logprobs = policy(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    ratio = (logprobs - data["logprobs"][:, 1:].float()).exp()
    advantages = data["advantages"].float()[:, None]
    loss = -(torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * mask).sum() / mask.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), CUT)
    optimizer.step()
    return {name: value.detach() for name, value in policy.state_dict().items()}


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    data, policy = batch(), sharded_policy()
    before = {name: value.clone() for name, value in gathered(policy).items()}
    train(policy, torch.optim.SGD(policy.parameters(), lr=0.3), data, max_gradient=CUT)
    after = gathered(policy)
    if dist.get_rank() == 0:
        expected = alone(data)
        apart = max(float((after[name] - expected[name]).abs().max()) for name in after)
        moved = max(float((after[name] - before[name]).abs().max()) for name in after)
        print(f"apart {apart:.1e}  moved {moved:.1e}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
