"""Data sets of reasoning-gym, by its own generators and scorers: one, or a weighted mixture.

    rollout run reasoning-gym:leg_counting -a max_animals=5
    rollout run reasoning-gym:leg_counting,chain_sum -a weights=2,1 -a chain_sum.max_terms=3 -a system=default

A task says which item of which data set it is: `{"index", "seed", "size", "question", "source"}`. The package makes an
item anew from these wherever it is played, so whatever the scorer needs of it need not be JSON. A mixture is the
package's `CompositeDataset`, with the run's seed.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread

from envs.adapters.aside import aside
from envs.adapters.common import nearest, package
from envs.adapters.settings import checked, refusal
from rollout.chat.messages import Message, system, user
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import ConfigError

#: Data sets that are kept in a process, by what made them.
_MOST = 16
_made: OrderedDict[str, Any] = OrderedDict()
_making = threading.Lock()

#: What the run decides: its seed, and how many tasks there are.
_OURS = ("seed", "size")


class ReasoningGym(Env):
    """Ask the questions of reasoning-gym's data sets, one turn each; the reward is what its own scorer says."""

    @classmethod
    @asynccontextmanager
    async def setup(cls) -> AsyncIterator[None]:
        """The package, which takes seconds, is imported before the first deadline runs."""
        await anyio.to_thread.run_sync(package, "reasoning-gym", "reasoning_gym", "reasoning-gym")
        yield

    def __init__(self, names: str, weights: str = "", system: str = "", tag: str = "answer", **settings: Any) -> None:
        """The arguments of `-a`.

        `names` are data sets, with commas, and `weights` as many numbers. `system` is a system message, or the name of
        one of the package's. An answer is what stands in the last `<answer>` of a message, or all of its text where
        there is none; `tag` names another, and `tag=` takes the text as it is. Any other setting is the data sets' own:
        `KEY=VALUE` of every one, `NAME.KEY=VALUE` of one. Raises ConfigError.
        """
        gym = package("reasoning-gym", "reasoning_gym", "reasoning-gym")
        self.names = [name.strip() for name in names.split(",") if name.strip()]
        if self.names and len(self.names) != names.count(",") + 1:
            raise ConfigError(f"reasoning-gym:{names} has a comma with no data set behind it")
        self.weights = _weights(weights, self.names)
        self.settings = _settings(gym, self.names, settings)
        self.system = gym.utils.SYSTEM_PROMPTS.get(system, system)
        self.tag = tag
        self._extract = gym.utils.extract_answer
        self._data: Any = None
        self._item: dict[str, Any] = {}

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` items of the data set that the package makes of this seed."""
        return self._drawn(self.made(seed, n), n, seed)

    def _drawn(self, data: Any, n: int, seed: int) -> Iterator[Task]:
        for index in range(n):
            item = data[index]
            source = item["metadata"].get("source_dataset", self.names[0])
            yield {"index": index, "seed": seed, "size": n, "question": item["question"], "source": source}

    def made(self, seed: int, size: int) -> Any:
        """The package's data set of a seed. Raises ConfigError for settings that it refuses."""
        key = json.dumps([self.names, self.weights, self.settings, seed, size], sort_keys=True)
        with _making:
            if key not in _made:
                _made[key] = self._make(seed, size)
                while len(_made) > _MOST:
                    _made.popitem(last=False)
            _made.move_to_end(key)
            return _made[key]

    def _make(self, seed: int, size: int) -> Any:
        gym = package("reasoning-gym", "reasoning_gym", "reasoning-gym")
        try:
            with aside("reasoning-gym"):
                return self._created(gym, seed, size)
        except Exception as error:  # it checks by assertions, and by whatever a wrong type raises
            raise refusal(f"reasoning-gym:{','.join(self.names)}", _flat(self.settings), error) from error

    def _created(self, gym: Any, seed: int, size: int) -> Any:
        if len(self.names) == 1:
            return gym.create_dataset(self.names[0], seed=seed, size=size, **self.settings[self.names[0]])
        parts = [
            gym.composite.DatasetSpec(name=name, weight=weight, config=dict(self.settings[name]))
            for name, weight in zip(self.names, self.weights, strict=True)
        ]
        return gym.create_dataset("composite", seed=seed, size=size, datasets=parts)

    def preflight(self, task: Task) -> None:
        """The task's item is made."""
        self.reset(task)

    def reset(self, task: Task) -> Sequence[MessageLike]:
        """The item's question."""
        index, seed, size = (task.get(name) for name in ("index", "seed", "size"))
        if not isinstance(index, int) or not isinstance(seed, int) or not isinstance(size, int):
            raise ConfigError("a reasoning-gym task needs the whole numbers index, seed and size")
        self._data = self.made(seed, size)
        self._item = self._data[index]
        if (question := task.get("question")) is not None and question != self._item["question"]:
            raise ConfigError(
                f"item {index} of seed {seed} has another question now: the task is of other settings, or of another "
                "version of reasoning-gym"
            )
        opening: list[MessageLike] = [system(self.system)] if self.system else []
        return [*opening, user(self._item["question"])]

    def step(self, message: Message) -> Step:
        """What the package's scorer says of the answer."""
        found = self._extract(message.text, tag_name=self.tag) if self.tag else None
        answer = message.text.strip() if found is None else found
        reward = float(self._data.score_answer(answer, self._item))
        return Step(done=True, reward=reward, metrics={"tagged": float(found is not None)})


def _weights(text: str, names: Sequence[str]) -> list[float]:
    if not names:
        raise ConfigError("reasoning-gym: names no data set: reasoning-gym:leg_counting, or several with commas")
    if len(set(names)) < len(names):
        raise ConfigError(f"reasoning-gym:{','.join(names)} names a data set twice: give it a weight instead")
    try:
        weights = [float(part) for part in text.split(",")] if text else [1.0] * len(names)
    except ValueError:
        raise ConfigError(f"weights={text!r} must be numbers with commas, such as 2,1") from None
    if len(weights) != len(names) or not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"weights={text!r} must be {len(names)} numbers above 0, one for each data set")
    return weights


def _settings(gym: Any, names: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each data set's own settings. Raises ConfigError for a name or a setting that the package has not."""
    known: Mapping[str, tuple[type, Any]] = gym.factory.DATASETS
    for name in names:
        if name not in known or name == "composite":
            there = sorted(known.keys() - {"composite"})
            raise ConfigError(
                f"reasoning-gym has no data set {name!r}{nearest(name, there)}; it has {len(there)}: {', '.join(there)}"
            )
    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in given.items():
        one, dot, setting = key.rpartition(".")
        if dot and one not in settings:
            raise ConfigError(f"{key} is of none of the data sets{nearest(one, names)}: they are {', '.join(names)}")
        for name in [one] if dot else names:
            settings[name][setting] = value
    return {name: checked(name, own, known[name][1], but=_OURS) for name, own in settings.items()}


def _flat(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{name}.{key}": value for name, own in settings.items() for key, value in own.items()}
