"""Environments gone wrong, one way for each task: `rollout run tests/live/bad_env.py:BadEnv`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rollout.chat.messages import Message, user
from rollout.env import Env, MessageLike, Step, Task

KINDS = ("well", "raises", "hangs", "blocks", "garbage", "bad_number", "well")


class BadEnv(Env):
    """Goes wrong in its second turn as its task says; reward 1 for those that do not."""

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """All kinds, again and again."""
        return ({"kind": KINDS[number % len(KINDS)]} for number in range(n))

    def reset(self, task: Task) -> Sequence[MessageLike]:
        self.kind, self.turn = task["kind"], 0
        return [user("Say something.")]

    def step(self, message: Message) -> Any:
        self.turn += 1
        if self.turn == 1:
            return Step(messages=[user("And again.")])
        match self.kind:
            case "raises":
                raise RuntimeError("the simulator is gone")
            case "hangs":
                return asyncio.sleep(3600)  # awaited by the episode, which ends it
            case "blocks":
                time.sleep(8)  # in a thread that cannot be stopped: longer than the limit, not than the test
            case "garbage":
                return {"messages": 7}
            case "bad_number":
                return Step(reward="much", done=True)  # type: ignore[arg-type]  # what this kind is about
        return Step(reward=1.0, done=True)
