"""Multi-turn rollouts for reinforcement learning of language models, token-in from turn 2."""

from rollout.agent import Agent, Answer, Model, Outcome
from rollout.chat.messages import Message, system, tool, user
from rollout.chat.tool_spec import tool_spec
from rollout.config import EngineConfig
from rollout.engine import Engine
from rollout.env import Env, Step, Task
from rollout.moved import forward_names, install
from rollout.records import Group, Rollout
from rollout.thread import EngineThread
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.samples import TrainingSample

install()

__version__ = "0.1.0"

__all__ = [
    "Engine",
    "EngineThread",
    "EngineConfig",
    "Env",
    "Step",
    "Agent",
    "Model",
    "Answer",
    "Outcome",
    "Task",
    "Message",
    "system",
    "user",
    "tool",
    "tool_spec",
    "Rollout",
    "Group",
    "FallbackReason",
    "TrainingSample",
]

forward_names("rollout")
