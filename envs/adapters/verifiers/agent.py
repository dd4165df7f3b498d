"""`verifiers:TASKSET`: an episode of verifiers as a rollout, with its own rewards and metrics.

    rollout run verifiers:my_taskset -a num_tasks=100          # an installed package, or a module
    rollout run verifiers:envs/my_taskset.py -a harness=bash   # a file; the program that plays
    rollout run verifiers:best-of-n+my_taskset -a n=4          # one of the package's environments over a taskset

A task is a row of the taskset, `{"index": 3, "data": {"prompt": "...", ...}}`, made into the taskset's own task where
it is played. Each trace of an episode is an agent: its turns lie in branches of its own and take its reward.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from envs.adapters.common import package
from envs.adapters.verifiers.apart import Apart
from rollout.agent import Agent, Model, Outcome, Task
from rollout.errors import ConfigError

#: Of a taskset without an end, a run's tasks are drawn from so many times as many.
_DRAWN_FROM = 4


class Shared:
    """What a process has of one environment: the loop on which it is served."""

    def __init__(self, apart: Apart, served: Any) -> None:
        self.apart, self.served = apart, served


class Verifiers(Agent):
    """Play an episode of a verifiers taskset or environment by its own harness; rewards and metrics are its own."""

    @classmethod
    @asynccontextmanager
    async def setup(
        cls,
        taskset: str,
        harness: str = "",
        runtime: str = "subprocess",
        start_s: float = 180.0,
        shuffle: bool = True,
        **settings: Any,
    ) -> AsyncIterator[Shared]:
        """The environment is served once in a process: its interception server, and tools that rollouts share."""

        async def started() -> Any:
            _package()  # what takes seconds to import keeps nobody from going on there
            from envs.adapters.verifiers.play import Served
            from envs.adapters.verifiers.settings import load

            served = Served(load(taskset, harness, runtime, settings), f"verifiers:{taskset}", start_s)
            await served.start()
            return served

        apart = Apart("verifiers")
        try:
            served = await apart.run(started)
            try:
                yield Shared(apart, served)
            finally:
                await apart.run(served.stop)
        finally:
            await apart.close()

    def __init__(
        self,
        taskset: str,
        harness: str = "",
        runtime: str = "subprocess",
        start_s: float = 180.0,
        shuffle: bool = True,
        **settings: Any,
    ) -> None:
        """The arguments of `-a`.

        `taskset` is the name of an installed package or module, or a file (.py), that exports a taskset of verifiers or
        has `load_environment`; ENVIRONMENT+TASKSET has one of the package's environments over it. `harness` is the
        program that plays, by its name in verifiers, and `runtime` where it runs: both for every seat that does not say
        otherwise. Without a harness the taskset's own plays, or else a chat loop in this process. `start_s` bounds the
        start of what rollouts share. Tasks come shuffled by the run's seed, or in the taskset's order. Any other
        setting is of the taskset's configuration, or, with dots, of the environment's: `agent.max_turns=4`. Raises
        ConfigError.
        """
        _package()
        from envs.adapters.verifiers.settings import checked

        if start_s <= 0:
            raise ConfigError(f"verifiers: start_s must be above 0, not {start_s:g}")
        self.taskset, self.shuffle = taskset, shuffle
        self._asked = (taskset, harness, runtime, settings)
        self.notes: dict[str, str] = {}
        checked(taskset, harness, runtime, msgspec.json.encode(settings, order="deterministic").decode())

    @staticmethod
    def absolute_target(target: str) -> str:
        """That of a file, from everywhere."""
        environment, plus, name = target.rpartition("+")
        found = os.path.abspath(os.path.expanduser(name))
        return f"{environment}{plus}{found}" if name.endswith(".py") and os.path.isfile(found) else target

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` rows of the taskset, or as many as there are."""
        from envs.adapters.verifiers.settings import load, said

        env = load(*self._asked)
        rows = env.taskset
        try:
            if self.shuffle:
                rows = (rows if rows.bounded else rows.take(_DRAWN_FROM * n)).shuffle(seed)
            found = list(_rows(rows.take(n), type(rows).task_type()))
        except ConfigError as error:
            raise ConfigError(f"verifiers:{self.taskset} {error}") from error
        except Exception as error:  # a taskset reads files, downloads, and raises what it likes
            raise ConfigError(f"verifiers:{self.taskset} cannot load its tasks: {said(error)}") from error
        if not found:
            raise ConfigError(f"verifiers:{self.taskset} has no tasks")
        return found

    async def run(self, task: Task, model: Model) -> Outcome:
        """Has the package play one episode."""
        shared: Shared = self.shared
        endpoint = model.endpoint
        played = await shared.apart.run(lambda: shared.served.play(task, endpoint, lambda: model.limit))
        self.notes = played.notes
        return Outcome(reward=played.reward, rewards=played.rewards, metrics=played.metrics)


def _rows(tasks: Iterable[Any], kind: Any) -> Iterator[Task]:
    """Tasks as JSON, without the fields that nobody has set. Where it is played a task is made of what its taskset
    declares: one that would become another raises ConfigError."""
    for task in tasks:
        data = task.data
        if (type(task), type(data)) != (kind, kind.data_type()):
            raise ConfigError(
                f"has tasks of {type(task).__name__} with {type(data).__name__}, and declares {kind.__name__} with "
                f"{kind.data_type().__name__}: write class MyTask(vf.Task[MyData]) and vf.Taskset[MyTask, ...]"
            )
        fields = type(data).model_fields.items()
        unset = {name for name, field in fields if getattr(data, name) == field.get_default(call_default_factory=True)}
        yield {"index": data.idx, "data": data.model_dump(mode="json", exclude={*unset, "idx"})}


def _package() -> None:
    package("verifiers", "verifiers.v1", "verifiers>=0.4,<0.5")
