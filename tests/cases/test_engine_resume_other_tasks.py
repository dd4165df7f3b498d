"""Case engine/resume_other_tasks: a run goes on after its tasks have become others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.folder_kit import command, env_file, lines

ENV = """
WORDS = [f"w{i}" for i in range(20)]
class E(Env):
    def tasks(self, n, seed):
        words = WORDS[:n]; random.Random(seed).shuffle(words)
        return [{"word": word} for word in words]
    async def reset(self, task): return [user(task["word"])]
    async def step(self, m): return Step(done=True, reward=1.0)
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    return env_file(tmp_path, ENV)


def words(folder: Path) -> list[str]:
    return sorted(line["task"]["word"] for line in lines(folder))


@pytest.mark.slow
def test_more_tasks_of_a_shuffled_set_are_played_once_each(spec: str, tmp_path: Path) -> None:
    """-n 4 and then -n 8: the folder has exactly the eight words."""
    out = tmp_path / "run"
    assert command("run", spec, "-n", 4, "--max-tokens", 4, "-o", out).exit_code == 0
    assert command("run", spec, "-n", 8, "--max-tokens", 4, "-o", out, "--resume").exit_code == 0
    assert words(out) == sorted(f"w{index}" for index in range(8))


@pytest.mark.slow
def test_an_edited_file_of_tasks_plays_what_is_new(spec: str, tmp_path: Path) -> None:
    """A line that was put in front moves the others: each word is there once, all the same."""
    out, file = tmp_path / "run", tmp_path / "tasks.jsonl"
    file.write_text('{"word": "a"}\n{"word": "b"}\n')
    assert command("run", spec, "--tasks", file, "--max-tokens", 4, "-o", out).exit_code == 0
    file.write_text('{"word": "new"}\n{"word": "a"}\n{"word": "b"}\n')
    assert command("run", spec, "--tasks", file, "--max-tokens", 4, "-o", out, "--resume").exit_code == 0
    assert words(out) == ["a", "b", "new"]


def test_a_file_that_lost_a_task_is_refused(spec: str, tmp_path: Path) -> None:
    """A task that was played and is not wanted any more is named, with status 2."""
    out, file = tmp_path / "run", tmp_path / "tasks.jsonl"
    file.write_text('{"word": "a"}\n{"word": "b"}\n')
    assert command("run", spec, "--tasks", file, "--max-tokens", 4, "-o", out).exit_code == 0
    file.write_text('{"word": "new"}\n{"word": "b"}\n{"word": "c"}\n')
    result = command("run", spec, "--tasks", file, "--max-tokens", 4, "-o", out, "--resume")
    assert result.exit_code == 2
    assert f"its task 0 is not among the 3 of {file}" in result.stderr
    assert words(out) == ["a", "b"]
