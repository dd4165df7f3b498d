"""Multi-turn rollouts for reinforcement learning of language models, token-in from turn 2."""

from rollout.config import EngineConfig
from rollout.engine import Engine
from rollout.env import Env, Step, Task
from rollout.messages import Message, system, tool, user
from rollout.records import FallbackReason, Group, Rollout
from rollout.samples import TrainingSample, samples_of
from rollout.thread import EngineThread

__all__ = [
    "Engine",
    "EngineThread",
    "EngineConfig",
    "Env",
    "Step",
    "Task",
    "Message",
    "system",
    "user",
    "tool",
    "Rollout",
    "Group",
    "FallbackReason",
    "TrainingSample",
    "samples_of",
]
