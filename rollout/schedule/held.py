"""The rollouts of one engine whose agents its caller runs: named as tasks are, and ended with the engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from rollout import door
from rollout.agent import Agent
from rollout.errors import EngineClosed
from rollout.play.episode import Episode
from rollout.play.held import Held
from rollout.play.player import PlayedEnv, Player
from rollout.records import Job
from rollout.schedule.scheduler import task_id
from rollout.servers.weights import Weights


class HeldRollouts:
    """Beside the engine's slots: how many there are at once is the caller's to say."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._indices = itertools.count()
        self._open = set[Held]()
        self._closed = False

    def __repr__(self) -> str:
        return f"<HeldRollouts {len(self._open)} open>"

    def hold(
        self, player: Player, task: Mapping[str, Any], index: int | None, member: int, *, evaluation: bool
    ) -> Held:
        """One that begins when it is entered. Raises ConfigError for a task that cannot be written."""
        index = next(self._indices) if index is None else index
        checked = door.task(task, index)
        name = task_id(index, checked)

        def begin(make: Callable[[], Agent]) -> Episode:
            if self._closed:
                raise EngineClosed("the engine is closed: nothing more is played")
            updates = self._weights.updates
            job = Job(task_index=index, task_id=name, task=checked, member=member, submitted_at=updates)
            self._open.add(held)
            return PlayedEnv(player, make, asynchronous=True).episode(job, evaluation=evaluation)

        held = Held(begin, self._open.discard)
        return held

    async def aclose(self) -> None:
        """Ends those that are open, as cancelled."""
        self._closed = True
        for held in list(self._open):
            await held.cancel()
