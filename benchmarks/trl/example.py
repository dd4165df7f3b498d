"""TRL's GRPOTrainer on the embedded model, on a CPU: `guess_number`, played by the engine.

    python -m benchmarks.trl.example [--steps 30] [--seed 0 1 2] [--at-least 0.05] [-o DIR]

The embedded model is a Qwen3 in Hugging Face's format: transformers loads its folder, and TRL trains it as any other.
Each step: TRL's sampler -> `rollout_func` pushes the policy's weights and plays the prompts -> rows -> TRL's loss. For
each seed it prints a line per step, the mean reward of the first ten steps and of the last ten, and the largest
difference between a sampled token's logprob and the one that the trainer's model gives it.

With `--at-least` a seed that learned less fails. Needs the extra `trl`.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` may change: live tests say when it has
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from envs.guess_number import GuessNumber
from rollout import EngineConfig, EngineThread
from rollout.trainers import trl
from transports.embedded import MODEL_DIR

HEAD = """| seed | first ten steps | last ten | difference | largest logprob disagreement | failed | took |
|---|---|---|---|---|---|---|"""


#: Settings of any trainer of TRL's, on a CPU and without a program that watches.
ON_CPU: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
}


class Settings(msgspec.Struct, kw_only=True):
    """What can be set from the command line."""

    steps: int = 30
    high: int = 8
    """The largest number, of `guesses` guesses: smaller than by default, so that a step takes seconds on two cores."""
    guesses: int = 3
    tasks_per_step: int = 8
    rollouts_per_task: int = 8
    micro_batch: int = 32
    """Rows of one forward pass."""
    lr: float = 0.3
    """Of plain gradient descent with momentum, as in benchmarks/grpo: Adam learns less of so few rollouts."""
    max_gradient: float = 0.2
    output: str = "runs/trl"


class Learned(msgspec.Struct, kw_only=True):
    """What came of one seed."""

    seed: int
    rewards: list[float]
    """Mean of each step's rollouts, before its update."""
    disagreement: float
    """The largest difference between a sampled token's logprob and the trainer's, over all steps."""
    failed: int
    seconds: float

    @property
    def first(self) -> float:
        return _mean(self.rewards[:10])

    @property
    def last(self) -> float:
        return _mean(self.rewards[-10:])

    @property
    def line(self) -> str:
        return (
            f"| {self.seed} | {self.first:.3f} | {self.last:.3f} | {self.last - self.first:+.3f} | "
            f"{self.disagreement:.1e} | {self.failed} | {self.seconds:.0f} s |"
        )


class Measured:
    """A `rollout_func` whose rows are held against the trainer's model before it trains on them."""

    def __init__(self, inner: trl.RolloutFunc) -> None:
        self._inner = inner
        self._at = time.monotonic()
        self.rewards: list[float] = []
        self.disagreement = 0.0
        self.failed = 0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        fields = self._inner(prompts, trainer)
        played = time.monotonic()
        rewards = [reward for reward in fields["rollout_reward"] if reward is not None]
        self.rewards.append(_mean(rewards))
        self.failed += len(prompts) - len(rewards)
        apart = disagreement(trainer.model, fields, trainer.args.per_device_train_batch_size)
        self.disagreement = max(self.disagreement, apart)
        took = f"whole step {played - self._at:.1f} s"
        print(
            f"step {trainer.state.global_step:3}  reward {_mean(rewards):.3f}  disagreement {apart:.1e}  {took}",
            flush=True,
        )
        self._at = played
        return fields


def disagreement(model: Any, fields: dict[str, list[Any]], micro_batch: int) -> float:
    """The largest difference between the sampler's logprobs and the model's own, over the sampled tokens."""
    rows = list(
        zip(fields["prompt_ids"], fields["completion_ids"], fields["logprobs"], fields["env_mask"], strict=True)
    )
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    return max(_apart(model, rows[at : at + micro_batch]) for at in range(0, len(rows), micro_batch))


def _apart(model: Any, rows: Sequence[tuple[list[int], list[int], list[float], list[int]]]) -> float:
    width = max(len(prompt) + len(completion) for prompt, completion, _, _ in rows)
    ids, mask, sampled = (torch.zeros(len(rows), width, dtype=kind) for kind in (torch.long, torch.bool, torch.float))
    for at, (prompt, completion, logprobs, on) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(completion)
        ids[at, :end] = torch.tensor(prompt + completion)
        mask[at, start:end] = torch.tensor(on, dtype=torch.bool)
        sampled[at, start:end] = torch.tensor(logprobs)
    # Right padding needs no mask: a real token never looks at what comes after it.
    with torch.no_grad():
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[mask[:, 1:]]
        ours = model.lm_head(hidden).log_softmax(-1).gather(-1, ids[:, 1:][mask[:, 1:]][:, None])[:, 0]
    apart = (ours - sampled[mask]).abs()
    return float(apart.max()) if apart.numel() else 0.0


def train(settings: Settings, seed: int) -> Learned:
    """One seed."""
    started = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    env = partial(GuessNumber, high=settings.high, guesses=settings.guesses)
    tasks = env().tasks(settings.steps * settings.tasks_per_step, seed=seed)
    config = EngineConfig(max_tokens=64, concurrency=64, sampling={"temperature": 1.0})
    with EngineThread(config, env) as engine:
        measured = Measured(trl.rollout_func(engine))
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
        trainer = GRPOTrainer(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(MODEL_DIR),
            reward_funcs=trl.reward,
            rollout_func=measured,
            train_dataset=Dataset.from_list(trl.prompts(tasks)),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, _share_of_rate(settings.steps))),
            args=_arguments(settings, seed),
        )
        trainer.train()
    return Learned(
        seed=seed,
        rewards=measured.rewards,
        disagreement=measured.disagreement,
        failed=measured.failed,
        seconds=time.monotonic() - started,
    )


def _arguments(settings: Settings, seed: int) -> GRPOConfig:
    rows = settings.tasks_per_step * settings.rollouts_per_task
    return GRPOConfig(
        output_dir=f"{settings.output}/seed-{seed}",
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=rows // settings.micro_batch,
        num_generations=settings.rollouts_per_task,
        max_steps=settings.steps,
        max_grad_norm=settings.max_gradient,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        seed=seed,
        **ON_CPU,
    )


def _share_of_rate(steps: int) -> Any:
    """It grows over three steps, then falls, to nothing at the last."""
    return lambda done: min(1.0, (done + 1) / 3, 1.0 - done / steps)


def page(table: str, settings: Settings, argv: Sequence[str]) -> str:
    """The table, with what made it."""
    ask = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return (
        "# TRL's GRPOTrainer on the embedded model\n\n"
        f"`guess_number` from 1 to {settings.high} in {settings.guesses} guesses, {settings.steps} steps of "
        f"{settings.tasks_per_step} tasks with {settings.rollouts_per_task} rollouts each. Mean reward over the first\n"
        "ten steps and over the last ten, and the largest difference between a sampled token's logprob and the one\n"
        "that the trainer's model gives it.\n\n"
        f"{table}\n\n"
        f"`python -m benchmarks.trl.example {' '.join(argv)}`, commit {commit}, TRL {version('trl')}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores.\n"
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Settings()
    for name in ("steps", "high", "guesses", "tasks_per_step", "rollouts_per_task", "micro_batch"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    for name in ("lr", "max_gradient"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(defaults, name))
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--at-least", type=float, help="what the mean reward must rise by, with every seed")
    parser.add_argument("--write", metavar="FILE", type=Path, help="a page with the table, its command and its commit")
    parser.add_argument("-o", "--output", default=defaults.output, help="where the policy's weights go")
    argv = sys.argv[1:] if argv is None else argv
    given = vars(parser.parse_args(argv))
    seeds, at_least, write = given.pop("seed"), given.pop("at_least"), given.pop("write")
    settings = Settings(**given)
    learned = [train(settings, seed) for seed in seeds]
    table = "\n".join([HEAD, *(one.line for one in learned)])
    print(f"\n{table}", flush=True)
    if write is not None:
        named = [name for name in argv if name not in ("--write", str(write), "-o", "--output", settings.output)]
        write.write_text(page(table, settings, named), "utf-8")
    short = [one.seed for one in learned if at_least is not None and not one.last - one.first >= at_least]
    if short:
        print(f"the mean reward rose by less than {at_least:g} with seed {', '.join(map(str, short))}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
