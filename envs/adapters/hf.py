"""Prompts of a data set, by the package `datasets`: a hub's, a folder's or a file's.

    rollout run hf:openai/gsm8k:train -a config=main -a prompt=question -a reward=judges.py:judge
    rollout run hf:problems.jsonl -a reward=judges.py:judge

A task is a row: its index, and its columns as they are in the data. The reward is a function of the user's, of the row
and the answer's text; it may be asynchronous:

    def judge(row, text):
        return float(row["answer"] in text)
"""

from __future__ import annotations

import inspect
import os
import random
import re
import string
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from envs.adapters.aside import aside
from envs.adapters.common import function, one_line, package
from envs.adapters.common import reward as reward_of
from rollout.chat.messages import Message, system, user
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import ConfigError

#: What reads a file, by how its name ends.
_READERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}

#: A split, and which of its rows.
_PART = re.compile(r"(\w+)(?:\[(-?\d*):(-?\d*)\])?")

#: Data sets that are kept open in a process. Their rows stay on disk.
_MOST = 4
_loaded: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
_loading = threading.Lock()


class HuggingFace(Env):
    """Ask the prompts of a data set, one turn each; the reward is a function of the row and of the answer."""

    def __init__(
        self,
        dataset: str,
        reward: str,
        prompt: str = "prompt",
        template: str = "",
        system: str = "",
        config: str = "",
        columns: str = "",
        shuffle: bool = True,
    ) -> None:
        """The arguments of `-a`.

        `dataset` is DATASET[:SPLIT], where DATASET is a hub's name, a folder, or a file (.jsonl, .json, .csv, .parquet,
        .arrow, .txt), and SPLIT is train unless it says otherwise; `train[:100]` is a part of it. `config` names a
        configuration of the data set. `reward` is `file.py:function` or `module:function`. The user message is the
        column `prompt`, text or a list of messages; or `template`, in which `{column}` stands for a column's text.
        `system` is a system message before it. `columns` names, with commas, those that a task keeps. Tasks come
        shuffled by the run's seed, or in the data's order. Raises ConfigError.
        """
        self.dataset, self.config = dataset, config
        self.prompt, self.template, self.system = prompt, template, system
        self.columns = [name.strip() for name in columns.split(",") if name.strip()]
        self.shuffle = shuffle
        self._fields = _fields(template)
        self._judge = function("reward", reward, "row", "text")
        self._row: Mapping[str, Any] = {}
        package("hf", "datasets", "datasets")

    @staticmethod
    def absolute_target(target: str) -> str:
        """That of a file or a folder, from everywhere."""
        path, split = parts(target)
        found = os.path.abspath(os.path.expanduser(path))
        return f"{found}:{split}" if os.path.exists(found) else target

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` rows, or as many as there are."""
        rows = loaded(self.dataset, self.config)
        if not len(rows):
            raise ConfigError(f"hf:{self.dataset} has no rows")
        self._check(list(rows.column_names))
        count = min(n, len(rows))
        at = random.Random(seed).sample(range(len(rows)), count) if self.shuffle else range(count)
        return self._drawn(rows, at)

    def _drawn(self, rows: Any, indices: Iterable[int]) -> Iterator[Task]:
        for index in indices:
            row = rows[index]
            kept = {name: row[name] for name in self.columns} if self.columns else row
            try:
                self._opening(kept)
            except ConfigError as error:
                raise ConfigError(f"hf:{self.dataset}, row {index}: {error}") from error
            yield {"index": index, **kept}

    def _check(self, there: list[str]) -> None:
        """Raises ConfigError for a column that the data has not, before anything is played."""
        asked = self._fields if self.template else [self.prompt]
        setting = "template" if self.template else "prompt"
        for name, by in [*((name, "columns") for name in self.columns), *((name, setting) for name in asked)]:
            if name not in there:
                raise ConfigError(
                    f"hf:{self.dataset} has no column {name!r}; it has: {', '.join(there)}: name one by -a {by}="
                )
            if self.columns and name not in self.columns:
                raise ConfigError(f"columns={','.join(self.columns)} leaves out {name!r}, which {by} needs: add it")

    def preflight(self, task: Task) -> None:
        """The task has a prompt."""
        self._opening(task)

    def reset(self, task: Task) -> Sequence[MessageLike]:
        """The row's prompt."""
        self._row = task
        return self._opening(task)

    def _opening(self, task: Task) -> Sequence[MessageLike]:
        """What the model is told of a row. Raises ConfigError where it has nothing to be told."""
        opening: list[MessageLike] = [system(self.system)] if self.system else []
        if self.template:
            return [*opening, user(self._filled(task))]
        value = task.get(self.prompt)
        if isinstance(value, str):
            return [*opening, user(value)]
        if not isinstance(value, list) or not value:
            raise ConfigError(f"column {self.prompt!r} must be text or a list of messages, not {type(value).__name__}")
        return [*opening, *(_without_nulls(message) for message in value)]

    def _filled(self, task: Task) -> str:
        try:
            return self.template.format_map(task)
        except Exception as error:  # whatever a value raises that has not the form that the template takes it to have
            raise ConfigError(f"template={self.template!r:.100} cannot be filled: {one_line(error)}") from error

    def step(self, message: Message) -> Any:
        """Has the answer judged."""
        given = self._judge(self._row, message.text)
        return self._awaited(given) if inspect.isawaitable(given) else self._judged(given)

    async def _awaited(self, given: Any) -> Step:
        return self._judged(await given)

    def _judged(self, given: Any) -> Step:
        return Step(done=True, reward=reward_of("the reward function", given))


def _fields(template: str) -> list[str]:
    """The columns that a template names. Raises ConfigError for one that is none."""
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(
            f"template={template!r:.100} cannot be read: {error}: a brace that is text is {{{{"
        ) from error
    if "" in found:
        raise ConfigError(f"template={template!r:.100} has {{}}, which names no column: write {{COLUMN}}")
    return [re.split(r"[.\[]", name)[0] for name in found]


def parts(dataset: str) -> tuple[str, str]:
    """DATASET and SPLIT. What is there as a file or a folder is one, whatever colons its name has."""
    ends = [at for at, letter in enumerate(dataset) if letter == ":"]
    for end in (len(dataset), *reversed(ends)):
        if os.path.exists(os.path.expanduser(dataset[:end])):
            return dataset[:end], dataset[end + 1 :] or "train"
    path, _, split = dataset.partition(":")
    return path, split or "train"


def loaded(dataset: str, config: str = "") -> Any:
    """The rows of DATASET[:SPLIT], read once. Raises ConfigError."""
    key = (*parts(dataset), config)
    with _loading:
        if key not in _loaded:
            with aside("hf"):
                _loaded[key] = _load(*key)
            while len(_loaded) > _MOST:
                _loaded.popitem(last=False)
        _loaded.move_to_end(key)
        return _loaded[key]


def _load(path: str, split: str, config: str) -> Any:
    datasets = package("hf", "datasets", "datasets")
    datasets.disable_progress_bars()
    if _ending(path) in _READERS and not os.path.exists(path):
        raise ConfigError(f"hf: there is no file {path!r}")
    try:
        if os.path.isfile(path):
            ending = _ending(path)
            if config:
                raise ConfigError(f"hf:{path} is a file, which has no configurations: leave config={config} out")
            if ending not in _READERS:
                raise ConfigError(f"hf:{path} is a file of no known kind: it may be {', '.join(_READERS)}")
            if not os.path.getsize(path):
                raise ConfigError(f"hf:{path} has no rows")
            return datasets.load_dataset(_READERS[ending], data_files=path, split=split)
        if any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json")):
            return _saved(datasets.load_from_disk(path), path, split)
        return datasets.load_dataset(path, config or None, split=split)
    except ConfigError:
        raise
    except Exception as error:  # whatever the package and the network say
        cause = error.__cause__ or error  # a file that cannot be read is one of its own, and says no more than that
        said = one_line(cause)[:300]
        hint = (
            ""
            if os.path.exists(path)
            else ": is the name right (a file, a folder, or a hub's data set), and can this machine reach the hub?"
        )
        raise ConfigError(f"hf:{path}: its split {split!r} cannot be loaded: {said}{hint}") from error


def _ending(path: str) -> str:
    return os.path.splitext(path.lower().removesuffix(".gz"))[1]


def _saved(found: Any, path: str, split: str) -> Any:
    """A split, or a part of it, of what `save_to_disk` wrote. Raises ConfigError."""
    if (match := _PART.fullmatch(split)) is None:
        raise ConfigError(f"hf:{path}: a split of a saved folder is NAME or NAME[FROM:TO], in rows, not {split!r}")
    name, first, last = match.groups()
    if isinstance(found, dict):
        if name not in found:
            raise ConfigError(f"hf:{path} has no split {name!r}; it has: {', '.join(found)}")
        found = found[name]
    elif name != str(found.split or "train"):
        raise ConfigError(f"hf:{path} is one split, {found.split or 'train'}, not {name!r}")
    bounds = slice(int(first) if first else None, int(last) if last else None)
    return found if bounds == slice(None) else found.select(range(*bounds.indices(len(found))))


def _without_nulls(message: Any) -> Any:
    """Arrow gives every message of a column all keys that any has."""
    return {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else message
