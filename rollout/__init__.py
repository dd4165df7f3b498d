"""Multi-turn rollouts for reinforcement learning of language models, token-in from turn 2.

Each name is imported when it is first asked for: the command line takes control-C before anything large is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rollout.moved import forward_names, install

if TYPE_CHECKING:
    from rollout.agent import Agent, Answer, Model, Outcome
    from rollout.chat.messages import Message, system, tool, user
    from rollout.chat.tool_spec import tool_spec
    from rollout.config import EngineConfig
    from rollout.engine import Engine
    from rollout.env import Env, Step, Task
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

#: Where each is.
_PLACES = {
    "Engine": "rollout.engine",
    "EngineThread": "rollout.thread",
    "EngineConfig": "rollout.config",
    "Env": "rollout.env",
    "Step": "rollout.env",
    "Agent": "rollout.agent",
    "Model": "rollout.agent",
    "Answer": "rollout.agent",
    "Outcome": "rollout.agent",
    "Task": "rollout.env",
    "Message": "rollout.chat.messages",
    "system": "rollout.chat.messages",
    "user": "rollout.chat.messages",
    "tool": "rollout.chat.messages",
    "tool_spec": "rollout.chat.tool_spec",
    "Rollout": "rollout.records",
    "Group": "rollout.records",
    "FallbackReason": "rollout.tokens.prefix",
    "TrainingSample": "rollout.tokens.samples",
}

_moved = forward_names("rollout")


def _imported(name: str) -> Any:
    if (place := _PLACES.get(name)) is not None:
        value = globals()[name] = getattr(importlib.import_module(place), name)
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"rollout.{name}")  # as if it had been imported with its package
        except ModuleNotFoundError as error:
            if error.name != f"rollout.{name}":
                raise
    return _moved(name)


# Where no type checker sees it: to one, what is not there is an error.
globals().update(__getattr__=_imported, __dir__=lambda: sorted({*globals(), *__all__}))
