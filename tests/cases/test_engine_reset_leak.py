"""Case engine/reset_leak: `close` before an abandoned `reset` has returned leaves what it takes."""

from __future__ import annotations

import threading
from typing import Any

from rollout import Engine, EngineConfig, Env, Message, Step, user
from transports.scripted import ScriptedTransport, reply

live: set[object] = set()
made = threading.Event()


class Sandbox(Env):
    """Its container is made in a call that cannot be interrupted."""

    box: object = None

    def reset(self, task: Any) -> list[Message]:
        made.wait(60)
        self.box = object()
        live.add(self.box)
        return [user("x")]

    def step(self, message: Message) -> Step:
        return Step(done=True)

    def close(self) -> None:
        if self.box is not None:
            live.discard(self.box)


async def test_close_comes_after_the_reset_that_it_abandoned() -> None:
    """The rollouts fail at once, and at the engine's end nothing is left of them."""
    config = EngineConfig(concurrency=4, step_timeout_s=0.05)
    async with Engine(config, Sandbox, transport=ScriptedTransport([reply("x")] * 9)) as engine:
        groups = [group async for group in engine.stream([{"n": n} for n in range(4)])]
        assert engine.stats().hanging_calls == 4
        made.set()
    kinds = [rollout.failure.kind for group in groups for rollout in group.rollouts if rollout.failure]
    assert kinds == ["timeout"] * 4
    assert not live
    assert engine.stats().hanging_calls == 0
