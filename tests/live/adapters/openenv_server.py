# mypy: disable-error-code="misc,untyped-decorator"
"""Real OpenEnv servers for tests, of the package's own classes.

python openenv_server.py guess|tools|dataset|broken PORT [SESSIONS]
"""

from __future__ import annotations

import os
import random
import sys
import threading
from typing import Any

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field

from tests.live.adapters.with_key import only_with_key


class Guess(Action):
    number: int = Field(description="Between 1 and 100", ge=1, le=100)


class Answer(Observation):
    hint: str = ""
    left: int = 0


class GuessNumber(Environment):
    """Guess a number in 4 tries: 0.1 for each that comes nearer, 1 for the number."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.secret, self.left, self.nearest = 0, 0, 100

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Answer:
        self.secret, self.left, self.nearest = random.Random(seed).randint(1, 100), 4, 100
        return Answer(hint="Guess a number between 1 and 100.", left=self.left)

    def step(self, action: Guess, timeout_s: float | None = None, **more: Any) -> Answer:
        self.left -= 1
        far = abs(action.number - self.secret)
        if far == 0:
            return Answer(hint="right", done=True, reward=1.0)
        nearer, self.nearest = far < self.nearest, min(far, self.nearest)
        hint = "higher" if action.number < self.secret else "lower"
        return Answer(hint=hint, left=self.left, reward=0.1 * nearer, done=self.left == 0)

    @property
    def state(self) -> State:
        return State()


class Broken(GuessNumber):
    """As above, but it raises on 13, and hangs on 66."""

    def step(self, action: Guess, timeout_s: float | None = None, **more: Any) -> Answer:
        if action.number == 13:
            raise RuntimeError("unlucky")
        if action.number == 66:
            threading.Event().wait()
        return super().step(action)


class Dataset(GuessNumber):
    """Its tasks are listed."""

    def list_splits(self) -> list[str]:
        return ["train", "test"]

    def list_tasks(self, split: str) -> list[int]:
        return list(range(self.num_tasks(split)))

    def num_tasks(self, split: str) -> int:
        return {"train": 50, "test": 5}[split]

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Answer:
        super().reset(seed)
        self.secret = 1 + more["index"]
        return Answer(hint=f"{more['split']} {more['index']}", left=4)


class Basket(MCPEnvironment):
    """Put things into a basket by a tool; the episode ends when it is handed over, with a reward for each thing."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        server: Any = FastMCP("basket")
        self.things: list[str] = []
        self.steps = 0

        @server.tool()
        def put(thing: str) -> str:
            """Put a thing into the basket."""
            if thing == "stone":
                raise ValueError("no stones")
            self.things.append(thing)
            return f"{len(self.things)} in the basket"

        @server.tool()
        def hand_over() -> str:
            """Hand the basket over."""
            return "thank you"

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Observation:
        self.things.clear()
        self.steps = 0
        return Observation(metadata={"message": f"Fill the basket with {1 + (seed or 0) % 3} things."})

    async def step_async(self, action: Any, timeout_s: float | None = None, **more: Any) -> Any:
        self.steps += 1
        observation = await super().step_async(action)
        if isinstance(action, CallToolAction) and action.tool_name == "hand_over":
            return observation.model_copy(update={"done": True, "reward": 0.5 * len(self.things)})
        return observation

    def _step_impl(self, action: Any, timeout_s: float | None = None, **more: Any) -> Observation:
        raise NotImplementedError

    @property
    def state(self) -> State:
        return State(step_count=self.steps)


def main(kind: str, port: str, sessions: str = "256") -> None:
    most = int(sessions)
    if kind == "tools":
        app = create_app(Basket, CallToolAction, CallToolObservation, env_name="basket", max_concurrent_envs=most)
    else:
        made = {"guess": GuessNumber, "broken": Broken, "dataset": Dataset}[kind]
        app = create_app(made, Guess, Answer, env_name=kind, max_concurrent_envs=most)
    if key := os.environ.get("KEY"):
        app = only_with_key(app, key)
    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
