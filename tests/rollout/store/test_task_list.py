"""A run's tasks: drawn from user code and files as they are, or refused in one line."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.env import Env, Task
from rollout.errors import ConfigError
from rollout.store.settings import RunSettings
from rollout.store.task_list import NotAmong, TaskList, key_of, load_tasks, merged, tasks_of_file
from tests.log_kit import capture_logs


class Giving(Env):
    """Its `tasks` does what it is told."""

    def __init__(self, give: Any) -> None:
        self.give = give

    def tasks(self, n: int, seed: int) -> Any:
        return self.give(n)


def loaded(give: Any, **settings: Any) -> list[Task]:
    return list(load_tasks(RunSettings(env="e.py:E", **settings), lambda: Giving(give)))


def refused(give: Any, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(give, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def raising(error: BaseException) -> Any:
    def give(n: int) -> Any:
        raise error

    return give


def halfway(n: int) -> Any:
    yield {"n": 0}
    raise FileNotFoundError(2, "No such file or directory", "data.parquet")


async def coroutine(n: int) -> Any:
    return []


def test_no_more_tasks_are_drawn_than_are_played() -> None:
    """There may be no end of them."""
    drawn: list[int] = []

    def give(n: int) -> Any:
        for number in itertools.count():
            drawn.append(number)
            yield {"n": number}

    assert loaded(give, num_tasks=3) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (
            raising(RuntimeError("no data here")),
            "e.py:E: tasks() raised RuntimeError: no data here (test_task_list.py:",
        ),
        (raising(SystemExit("bye")), "tasks() raised SystemExit: bye"),
        (raising(asyncio.CancelledError()), "tasks() raised CancelledError"),
        (halfway, "tasks() raised FileNotFoundError: [Errno 2] No such file or directory: 'data.parquet'"),
        (lambda n: None, "e.py:E: tasks() gave NoneType, not an iterable of tasks"),
        (coroutine, "tasks() gave coroutine, not an iterable of tasks"),
        (lambda n: [], "tasks() gave none of the 8 tasks that were asked for"),
        (lambda n: ["a"], "e.py:E: task 0 is of type str"),
        (lambda n: [{}, {"image": b"x"}], "task 1 cannot be written: image"),
        (lambda n: [{"x": float("nan")}], "task 0 cannot be written: x"),
    ],
)
def test_what_tasks_does_wrong_is_one_line(give: Any, said: str) -> None:
    """The environment is named, and what it gave or raised, with the place."""
    assert said in refused(give)


def test_an_environment_that_cannot_be_made_is_one_line() -> None:
    """Also where the tasks come from a file: it is found out before anything is played."""

    def make() -> Env:
        raise RuntimeError("no docker here")

    with pytest.raises(ConfigError, match=r"^e\.py:E: making it raised RuntimeError: no docker here"):
        load_tasks(RunSettings(env="e.py:E", tasks="t.jsonl"), make)


@pytest.mark.parametrize("kind", [classmethod, staticmethod])
def test_tasks_of_a_class_need_no_object(kind: Any, tmp_path: Path) -> None:
    """What an environment takes to be made, a container say, is not taken to list what it plays."""
    listed = {
        classmethod: classmethod(lambda cls, n, seed: [{"n": n, "seed": seed}] * n),
        staticmethod: staticmethod(lambda n, seed: [{"n": n, "seed": seed}] * n),
    }

    class Heavy(Env):
        tasks = listed[kind]  # type: ignore[assignment]

        def __init__(self) -> None:
            raise RuntimeError("it was made")

    (tmp_path / "t.jsonl").write_text('{"a": 1}\n')
    assert list(load_tasks(RunSettings(env="e.py:E", num_tasks=2), Heavy)) == [{"n": 2, "seed": 0}] * 2
    assert list(load_tasks(RunSettings(env="e.py:E", tasks=str(tmp_path / "t.jsonl")), functools.partial(Heavy))) == [
        {"a": 1}
    ]


def test_fewer_tasks_than_asked_for_are_said(tmp_path: Path) -> None:
    """Of an environment as of a file."""
    (tmp_path / "t.jsonl").write_text('{"n": 1}\n')
    with capture_logs() as logs:
        assert len(loaded(lambda n: [{}] * 5, num_tasks=9)) == 5
        assert len(loaded(None, num_tasks=2, tasks=str(tmp_path / "t.jsonl"))) == 1
        loaded(None, tasks=str(tmp_path / "t.jsonl"))
    assert [(log["event"], log["asked"], log["given"]) for log in logs] == [
        ("fewer_tasks", 9, 5),
        ("fewer_tasks", 2, 1),
    ]


def test_tasks_are_what_was_written(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, empty lines, no last newline, half an emoji and big numbers are no obstacle."""
    content = (
        b'\xef\xbb\xbf{"n": 1}\r\n\r\n  {"n": "\\ud800", "m": 1, "m": 2}\r\n{"big": 123456789012345678901234567890}'
    )
    (tmp_path / "t.jsonl").write_bytes(content)
    tasks = list(tasks_of_file(str(tmp_path / "t.jsonl"), None))
    assert tasks == [{"n": 1}, {"n": "\ufffd", "m": 2}, {"big": 123456789012345678901234567890}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"a": 1} x\n', "t.jsonl, line 2: not a JSON object: JSON is malformed: trailing characters"),
        (b'{"a": 1}\n\n{"a": NaN}\n', "line 3: task 2 cannot be written: a"),
        (b'{"a": "\xff"}\n', "line 1: not UTF-8: invalid start byte at byte 0"),
        (b'[{"a": 1}]\n', "line 1: it is a list; each line is one task"),
        (b"null\n", "line 1: it is null"),
        (b"7\n", "line 1: it is of type int"),
        (b"[" * 9000 + b"\n", "line 1: not a JSON object"),
        ('{"a": 1}\n'.encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"\x1f\x8b\x08", "is compressed"),
        (b"\n \n", "has no tasks"),
    ],
)
def test_a_broken_line_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    """With file, line and what is wrong."""
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        tasks_of_file(str(tmp_path / "t.jsonl"), None)
    assert said in str(caught.value)


def test_a_file_is_read_no_further_than_needed(tmp_path: Path) -> None:
    """What is behind the last task that is played is not looked at."""
    (tmp_path / "t.jsonl").write_bytes(b'{"a": 1}\n{broken\n')
    assert len(tasks_of_file(str(tmp_path / "t.jsonl"), 1)) == 1
    with pytest.raises(ConfigError, match=r"cannot read the tasks of .*: Is a directory"):
        tasks_of_file(str(tmp_path), None)


def listed(names: str) -> TaskList:
    return TaskList(msgspec.json.encode({"name": name}) for name in names)


def name_of(task: Task) -> Hashable:
    name: str = task["name"]
    return name


@pytest.mark.slow
@given(st.text("abc", max_size=8), st.text("abc", max_size=4), st.randoms())
def test_a_grown_run_plays_what_is_wanted_and_keeps_its_places(old: str, new: str, chance: Any) -> None:
    """Known tasks stay where they are, the others fill up, and equal ones are counted, in whatever order they come."""
    shuffled = list(old + new)
    chance.shuffle(shuffled)
    places = chance.sample(range(len(old)), chance.randint(0, len(old))) if old else []
    known = {place: old[place] for place in places}
    found = "".join(task["name"] for task in merged(known, listed("".join(shuffled)), name_of))
    assert Counter(found) == Counter(old + new)
    assert all(found[place] == name for place, name in known.items())


@pytest.mark.parametrize(("known", "first"), [("ab", 1), ("aa", 1), ("cabb", 2), ("cca", 1)])
def test_a_task_that_is_not_wanted_is_found(known: str, first: int) -> None:
    """The first one is named; a task that was played twice must be wanted twice."""
    with pytest.raises(NotAmong) as caught:
        merged(dict(enumerate(known)), listed("ac"), name_of)
    assert caught.value.index == first


def test_equal_tasks_have_equal_keys() -> None:
    """The order of the keys is no difference; every value is."""
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert len({key_of(task) for task in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"b": 1})}) == 4
