"""Tasks as the prompts of a TRL data set, and how many rollouts TRL wants of each. Pure.

TRL hands a `rollout_func` the data set's `prompt` column and no other. What an environment plays is a task, any JSON
object, and its own messages follow from that: so a prompt is the task, as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from rollout.env import Task
from rollout.errors import ConfigError


def prompts(tasks: Iterable[Task]) -> list[dict[str, str]]:
    """A data set's rows, one a task: `Dataset.from_list(prompts(GuessNumber().tasks(64, seed=0)))`.

    Raises ConfigError for a task that JSON has no form for.
    """
    try:
        return [{"prompt": msgspec.json.encode(task, order="sorted").decode()} for task in tasks]
    except (TypeError, msgspec.MsgspecError) as error:
        raise ConfigError(f"a task is a JSON object, and this one cannot be written: {error}") from None


def task_of(prompt: Any) -> Task:
    """The task that `prompts` wrote. Raises ConfigError for a prompt of another kind."""
    remedy = "make the data set by trl.prompts(tasks), or give rollout_func a task= that makes a task of a prompt"
    if not isinstance(prompt, str):
        raise ConfigError(f"a prompt here is a task as JSON, not {_shown(prompt)}: {remedy}")
    try:
        task: Task = msgspec.json.decode(prompt, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise ConfigError(f"a prompt here is a task as JSON, not {_shown(prompt)}: {remedy}") from None
    return task


class Wanted(msgspec.Struct, frozen=True):
    """Rollouts of one prompt, which stand next to each other in what TRL is answered."""

    prompt: Any
    rollouts: int


def wanted(given: Sequence[Any], generations: int, *, once: bool) -> list[Wanted]:
    """What is to be played for the prompts of one call, in their order: `once` as `Sampler.once` says it.

    Copies are played as one group, of `generations` at most. A process of several may have a part of a group.
    """
    if once:
        return [Wanted(prompt, generations) for prompt in given]
    runs = _runs(given)
    return [
        Wanted(prompt, min(generations, count - at)) for prompt, count in runs for at in range(0, count, generations)
    ]


class Sampler:
    """In which form a trainer's sampler hands out prompts.

    TRL's sampler repeats each prompt as often as it has generations, in a row, and a row is wanted for each copy; its
    docstring says that every prompt comes once, and that many rows are wanted of it. A whole batch tells the two apart
    by its number of prompts, for good. Before there was one, such as in an evaluation that is smaller than a batch,
    prompts go by whether any follows itself.
    """

    def __init__(self) -> None:
        self._once: bool | None = None
        """None until a whole batch has told."""

    def __repr__(self) -> str:
        known = {None: "not known yet", True: "once", False: "repeated"}
        return f"<Sampler {known[self._once]}>"

    def once(self, given: Sequence[Any], generations: int, rows: int, *, training: bool) -> bool:
        """Whether each prompt stands for `generations` rows. `rows` is what TRL has room for in a whole batch.

        A batch of training is a whole one; an evaluation's last may be smaller, by any number.
        """
        if generations == 1:
            return True
        if len(given) == rows:
            self._once = False
        elif training and len(given) * generations == rows:
            self._once = True
        return self._once if self._once is not None else len(_runs(given)) == len(given)


def _runs(given: Sequence[Any]) -> list[tuple[Any, int]]:
    """Equal neighbours, counted."""
    found: list[tuple[Any, int]] = []
    for prompt in given:
        if found and found[-1][0] == prompt:
            found[-1] = (prompt, found[-1][1] + 1)
        else:
            found.append((prompt, 1))
    return found


def _shown(prompt: Any) -> str:
    text = repr(prompt)
    return text if len(text) <= 60 else f"{text[:57]}..."
