"""A run goes on with what is missing of it, and with nothing else."""

from __future__ import annotations

import json
import random
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rollout.cli.app import app
from rollout.cli.resume import Plan, go_on, resumed_settings
from rollout.env import Env, Task
from rollout.errors import ConfigError, UsageError
from rollout.records import Failure, FailureKind, Rollout, StopReason
from rollout.request import Sampling
from rollout.schedule.scheduler import task_id
from rollout.store.config import FORMAT
from rollout.store.folder import ROLLOUTS, TASKS, read_config, read_rollouts
from rollout.store.settings import RunSettings
from tests.log_kit import capture_logs

FORMAT_1, FORMAT_2 = (Path(__file__).parents[2] / "fixtures" / f"run-format-{number}" for number in (1, 2))

WORDS = [f"w{index}" for index in range(30)]


class Shuffled(Env):
    """Its tasks are others, index by index, for every number of them."""

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        words = WORDS[:n]
        random.Random(seed).shuffle(words)
        return [{"word": word} for word in words]


class Random(Env):
    """Its tasks are new ones with every call."""

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        return [{"word": random.random()} for _ in range(n)]


class Unmakable(Env):
    def __init__(self) -> None:
        raise RuntimeError("no docker here")


async def played(
    path: Path, settings: RunSettings, env: type[Env], count: int, failure: FailureKind | None = None
) -> None:
    """Begins a run, and ends it after so many rollouts."""
    with Plan.new(settings, env) as plan:
        folder = plan.folder(path, "model")
        members = settings.rollouts_per_task
        for number in range(count):
            await folder.write(rollout_of(plan, number // members, number % members, failure))


def rollout_of(plan: Plan, index: int, member: int, failure: FailureKind | None = None) -> Rollout:
    name = task_id(index, plan.tasks[index])
    return Rollout(
        id=f"{name}-{member}",
        task_id=name,
        task_index=index,
        member=member,
        task=plan.tasks[index],
        stop=None if failure else StopReason.DONE,
        failure=Failure(kind=failure, message="x") if failure else None,
    )


def missing(plan: Plan, members: int = 1) -> list[tuple[str, int]]:
    keys = ((index, member) for index in range(len(plan.tasks)) for member in range(members))
    return sorted((plan.tasks[index]["word"], member) for index, member in keys if (index, member) not in plan.skip)


def going_on(path: Path, make: type[Env], /, **flags: Any) -> Plan:
    settings, given = resumed_settings(path, None, flags)
    return Plan.resumed(path, settings, given, make)


@pytest.mark.parametrize("env", [Shuffled, Random])
async def test_the_folder_alone_plays_what_is_missing(env: type[Env], tmp_path: Path) -> None:
    """Size and tasks are the folder's, also where the environment would give others by now."""
    await played(tmp_path, RunSettings(env="x", num_tasks=4, rollouts_per_task=2), env, 3)
    with going_on(tmp_path, env) as plan:
        assert (len(plan.tasks), plan.missing, len(list(plan.on_disk()))) == (4, 5, 3)
        assert plan.skip == {(0, 0), (0, 1), (1, 0)}


async def test_more_tasks_of_a_shuffled_set_are_found_by_what_they_hold(tmp_path: Path) -> None:
    """After -n 4 and -n 8 each of the eight was played once; the next --resume knows of eight."""
    await played(tmp_path, RunSettings(env="x", num_tasks=4), Shuffled, 4)
    with going_on(tmp_path, Shuffled, num_tasks=8) as plan:
        assert missing(plan) == [(word, 0) for word in WORDS[4:8]]
        plan.folder(None, "model")
    assert read_config(tmp_path)["num_tasks"] == 8
    with going_on(tmp_path, Shuffled) as plan:
        assert plan.missing == 4


async def test_more_tasks_of_others_are_refused(tmp_path: Path) -> None:
    """The first task that is not among them is named, and what to do; the folder stays as it was."""
    await played(tmp_path, RunSettings(env="x", num_tasks=4), Random, 2)
    with pytest.raises(ConfigError, match=r"its task 0 .*is not among the 8 of x; leave -n and --tasks out"):
        going_on(tmp_path, Random, num_tasks=8)
    with going_on(tmp_path, Random, num_tasks=4) as plan:
        assert plan.missing == 2


async def test_an_edited_file_of_tasks(tmp_path: Path) -> None:
    """Given anew its further tasks are played; not given, the run's own are, and that is said."""
    file, run = tmp_path / "tasks.jsonl", tmp_path / "run"
    file.write_text('{"word": "a"}\n{"word": "b"}\n')
    await played(run, RunSettings(env="x", tasks=str(file)), Shuffled, 1)
    file.write_text('{"word": "new"}\n{"word": "a"}\n{"word": "b"}\n')
    with capture_logs() as logs, going_on(run, Shuffled) as plan:
        assert missing(plan) == [("b", 0)]
    assert [log["event"] for log in logs] == ["tasks_file_changed"]
    with going_on(run, Shuffled, tasks=str(file)) as plan:
        assert missing(plan) == [("b", 0), ("new", 0)]
    file.write_text('{"word": "new"}\n{"word": "b"}\n')
    with pytest.raises(ConfigError, match="its task 0"):
        going_on(run, Shuffled, tasks=str(file))
    file.unlink()
    with going_on(run, Shuffled) as plan:
        assert missing(plan) == [("b", 0)]


async def test_equal_tasks_are_counted(tmp_path: Path) -> None:
    """Two equal tasks are two tasks; a third one is a new one."""
    file, run = tmp_path / "tasks.jsonl", tmp_path / "run"
    file.write_text('{"word": "a"}\n' * 2)
    await played(run, RunSettings(env="x", tasks=str(file)), Shuffled, 2)
    file.write_text('{"word": "a"}\n' * 3)
    with going_on(run, Shuffled, tasks=str(file)) as plan:
        assert plan.skip == {(0, 0), (1, 0)}
        assert plan.missing == 1


async def test_more_rollouts_per_task_play_the_further_members(tmp_path: Path) -> None:
    """-r 1 and then -r 3 plays members 1 and 2."""
    await played(tmp_path, RunSettings(env="x", num_tasks=2), Shuffled, 2)
    with going_on(tmp_path, Shuffled, rollouts_per_task=3) as plan:
        assert {member for _, member in missing(plan, 3)} == {1, 2}
        assert plan.missing == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_tasks": 2}, "has 4 tasks, and 2 are asked for: a run can grow"),
        ({"rollouts_per_task": 1}, "has 2 rollouts per task, and -r 1 asks for fewer"),
        ({"num_tasks": 0}, "-n must be 1 or more"),
        ({"seed": 3}, "seed: 0 before, 3 now"),
        ({"env": "y"}, "env: 'x' before, 'y' now"),
        ({"routed_experts": True}, "routed_experts: False before, True now"),
        ({"env_args": {"a": "1"}}, r"env_args: \{\} before, \{'a': '1'\} now"),
    ],
)
async def test_what_is_no_more_of_the_same_run_is_refused(flags: dict[str, Any], said: str, tmp_path: Path) -> None:
    """By the name of what was given."""
    await played(tmp_path, RunSettings(env="x", num_tasks=4, rollouts_per_task=2), Shuffled, 1)
    with pytest.raises(ConfigError, match=said):
        going_on(tmp_path, Shuffled, **flags)


async def test_what_a_stop_cut_short_is_played_again(tmp_path: Path) -> None:
    """A cancelled rollout is not finished; one that failed otherwise is."""
    await played(tmp_path / "a", RunSettings(env="x", num_tasks=2), Shuffled, 1, FailureKind.CANCELLED)
    await played(tmp_path / "b", RunSettings(env="x", num_tasks=2), Shuffled, 1, FailureKind.ENVIRONMENT)
    for name, count in (("a", 2), ("b", 1)):
        with going_on(tmp_path / name, Shuffled) as plan:
            assert plan.missing == count


async def test_a_folder_whose_tasks_were_edited_is_refused(tmp_path: Path) -> None:
    """What was played must be what stands there."""
    await played(tmp_path, RunSettings(env="x", num_tasks=2), Shuffled, 2)
    (tmp_path / TASKS).write_text('{"word": "other"}\n{"word": "w1"}\n')
    with pytest.raises(UsageError, match=r"tasks\.jsonl was changed: .*put the file back"):
        going_on(tmp_path, Shuffled)


async def test_an_environment_that_cannot_be_made_plays_nothing(tmp_path: Path) -> None:
    """It is found out before anything fails of it, and leaves no lock; where nothing is missing it is not needed."""
    await played(tmp_path, RunSettings(env="x", num_tasks=2), Shuffled, 1)
    with pytest.raises(ConfigError, match="no docker here"):
        going_on(tmp_path, Unmakable)
    with going_on(tmp_path, Shuffled) as plan:
        await plan.folder(None, "model").write(rollout_of(plan, 1, 0))
    with going_on(tmp_path, Unmakable) as plan:
        assert plan.missing == 0


async def test_what_was_not_kept_is_said(tmp_path: Path) -> None:
    """Headers may be secrets: the one who goes on is told that they are to be given again."""
    await played(tmp_path, RunSettings(env="x", headers={"X-Auth": "secret"}), Shuffled, 1)
    with capture_logs() as logs:
        resumed_settings(tmp_path, None, {})
    assert [(log["event"], log["settings"]) for log in logs] == [("secrets_are_not_kept", "headers.X-Auth")]


def test_the_line_that_goes_on_works_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is absolute, and quoted for the shell."""
    monkeypatch.chdir(tmp_path)
    command = go_on("my run").removeprefix("go on with: ")
    assert shlex.split(command) == ["rollout", "run", "--resume", "-o", str(tmp_path / "my run")]


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


@pytest.mark.slow
def test_the_command_needs_only_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, size and a file's environment are found from another place, after a cut in the middle of a line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("from envs.echo import Echo\nclass Mine(Echo):\n    pass\n")
    args = ["mine.py:Mine", "-n", "3", "-r", "2", "-a", "turns=2", "--max-tokens", "4", "-s", 'stop=["a"]']
    assert invoke("run", *args, "-o", "run").exit_code == 0
    rollouts = tmp_path / "run" / ROLLOUTS
    lines = rollouts.read_bytes().splitlines(keepends=True)
    rollouts.write_bytes(b"".join(lines[:4]) + lines[4][:50])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = invoke("run", "--resume", "-o", "../run", "-c", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rollouts"] == 6
    found = list(read_rollouts(tmp_path / "run"))
    assert len({rollout.id for rollout in found}) == len(found) == 6
    assert rollouts.read_bytes().startswith(b"".join(lines[:4]))
    assert read_config(tmp_path / "run")["concurrency"] == 2


@pytest.mark.slow
def test_a_run_of_format_1_goes_on(tmp_path: Path) -> None:
    """A folder from before there were versions: its rollouts stay, the torn one is played, and it is of today then."""
    folder = tmp_path / "run"
    shutil.copytree(FORMAT_1, folder)
    before = [rollout.id for rollout in read_rollouts(folder)]
    assert len(before) == 2
    result = invoke("run", "--resume", "-o", str(folder), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rollouts"] == 3
    assert [rollout.id for rollout in read_rollouts(folder)] == [*before, "2-eaa85c46-0"]
    assert (folder / TASKS).is_file()
    assert (folder / "config.toml").read_text().startswith(f"format = {FORMAT}\n")
    more = invoke("run", "--resume", "-o", str(folder), "-n", "4", "--json")
    assert json.loads(more.stdout)["rollouts"] == 4


@pytest.mark.slow
def test_a_run_of_format_2_goes_on(tmp_path: Path) -> None:
    """What it has stays as it was, beside what is played now, which has what format 2 did not keep."""
    folder = tmp_path / "run"
    shutil.copytree(FORMAT_2, folder)
    before = list(read_rollouts(folder))
    result = invoke("run", "--resume", "-o", str(folder), "-n", "3", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rollouts"] == 6
    after = list(read_rollouts(folder))
    assert after[:4] == before
    assert [rollout.step_reward is None for rollout in after] == [True] * 4 + [False] * 2
    assert {turn.sampling for rollout in after[4:] for turn in rollout.turns} == {Sampling(temperature=0.7)}
    assert (folder / "config.toml").read_text().startswith(f"format = {FORMAT}\n")


def test_a_run_of_format_1_names_its_file_from_an_unknown_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the name of an environment's file means nothing from here, the line says how to give it."""
    folder = tmp_path / "run"
    shutil.copytree(FORMAT_1, folder)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('env = "guess_number"', 'env = "envs/mine.py:Mine"'))
    monkeypatch.chdir(tmp_path)
    result = invoke("run", "--resume", "-o", "run")
    assert result.exit_code == 2
    assert "rollout run PATH/mine.py:Mine --resume -o run" in result.stderr
