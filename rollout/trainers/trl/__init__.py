"""The engine in TRL's trainers: `GRPOTrainer` by its `rollout_func`, `AsyncGRPOTrainer` by its two protocols.

    from rollout.trainers import trl

    with EngineThread(config, GuessNumber) as engine:
        trainer = GRPOTrainer(
            model=...,
            rollout_func=trl.rollout_func(engine),
            reward_funcs=trl.reward,
            train_dataset=Dataset.from_list(trl.prompts(GuessNumber().tasks(64, seed=0))),
            ...
        )
        trainer.train()

    prompts   tasks as a data set's prompts, and how many rollouts TRL wants of each
    rows      a rollout -> the one row that TRL takes of it
    rewards   reward functions that read what the rows carry
    playing   `rollout_func`: prompts are played, and become rows
    engines   which engines and settings these take
    folders   the policy as a folder that the engine's servers load
    worker    `AsyncGRPOTrainer`: rollouts streamed into its queue, tensors streamed into a folder

Written for TRL 1.16, whose `rollout_func` and `AsyncGRPOTrainer` are experimental: live tests hold this against the
installed release. TRL is imported where something of it is used, and nowhere else.
"""

from __future__ import annotations

from rollout.trainers.trl.folders import save_policy
from rollout.trainers.trl.playing import RolloutFunc, rollout_func
from rollout.trainers.trl.prompts import prompts, task_of
from rollout.trainers.trl.rewards import reward, scored
from rollout.trainers.trl.worker import FolderTransfer, RolloutWorker

__all__ = [
    "FolderTransfer",
    "RolloutFunc",
    "RolloutWorker",
    "prompts",
    "reward",
    "rollout_func",
    "save_policy",
    "scored",
    "task_of",
]
