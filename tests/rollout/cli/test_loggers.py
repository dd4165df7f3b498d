"""`--log NAME:REST` as a user meets it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout.cli import loggers
from rollout.errors import ConfigError
from rollout.observe.loggers import Logger
from rollout.store.settings import given_settings
from tests.cases.commands import ran
from tests.rollout.observe.test_loggers import Kept

#: What stands in for a tracker that is not installed here, on the command's path.
STAND_IN = """
import json, sys
class SummaryWriter:
    def __init__(self, folder, **more):
        if "refused" in folder: raise ConnectionError("no server\\nat all")
        self.file = open(folder, "a")
    def add_text(self, tag, text, step=None): print("a tracker that prints", file=sys.stdout)
    def add_scalar(self, tag, value, step):
        if "raises" in self.file.name: raise OSError("disk full")
        self.file.write(json.dumps([tag, value, step]) + "\\n")
    def close(self): self.file.close()
"""


def run(folder: Path, *options: object) -> Any:
    (folder / "tensorboardX.py").write_text(STAND_IN)
    path = {**os.environ, "PYTHONPATH": str(folder)}
    return ran("run", "echo", "-n", 4, "-r", 2, "--max-tokens", 4, *options, cwd=folder, env=path)


@pytest.mark.slow
def test_a_run_is_logged(tmp_path: Path) -> None:
    """Each group, and at the end where the run stands; standard output is still one object."""
    done = run(tmp_path, "--log", "tensorboard:told", "--json", "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rollouts"] == 8
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [step for tag, _, step in told if tag == "reward/mean"] == [1, 2, 3, 4]
    assert [value for tag, value, _ in told if tag == "engine/finished"][-1] == 8


@pytest.mark.slow
def test_a_run_that_goes_on_counts_its_groups_on(tmp_path: Path) -> None:
    """Its trackers' x axis never goes back, however often it is resumed, also where its folder lost what it kept."""
    folder, options = tmp_path / "r", ("--log", "tensorboard:told")
    assert run(tmp_path, *options, "-o", folder, "-n", 2).returncode == 0
    assert json.loads((folder / loggers.TRACKERS).read_bytes()) == {"groups": 2, "runs": {}}
    assert run(tmp_path, *options, "-o", folder, "--resume", "-n", 4).returncode == 0
    (folder / loggers.TRACKERS).write_text("[]")
    done = run(tmp_path, *options, "-o", folder, "--resume", "-n", 5)
    assert done.returncode == 0
    assert "trackers not readable" in done.stderr.replace("_", " ")
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [step for tag, _, step in told if tag == "reward/mean"] == [1, 2, 3, 4, 5]
    assert json.loads((folder / loggers.TRACKERS).read_bytes())["groups"] == 5


@pytest.mark.slow
def test_a_logger_that_raises_leaves_the_run_alone(tmp_path: Path) -> None:
    """It is said once, and how much it missed at the end; all is played and written."""
    done = run(tmp_path, "--log", "tensorboard:raises", "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "r" / "events.log").read_text().splitlines()]
    said = [event for event in events if event["event"].startswith("logger_")]
    assert [event["event"] for event in said] == ["logger_raised", "logger_missed"]
    assert said[0]["error"] == "OSError: disk full"
    assert said[1]["failed"] >= 5


@pytest.mark.slow
def test_a_logger_that_cannot_begin_is_one_line(tmp_path: Path) -> None:
    """Status 2, before there is a folder."""
    done = run(tmp_path, "--log", "tensorboard:refused", "-o", tmp_path / "r")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("rollout: ")]
    spec = f"tensorboard:{tmp_path / 'refused'}"
    assert line == f"rollout: --log {spec} cannot begin: ConnectionError: no server at all"
    assert not (tmp_path / "r").exists()


def test_a_folder_means_the_same_from_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that goes on from another place logs where it did; a project's name is no path."""
    monkeypatch.chdir(tmp_path)
    given = given_settings(None, {"env": "echo", "log": ["tensorboard:tb", "wandb:team/project"]})
    assert given["log"] == [f"tensorboard:{tmp_path / 'tb'}", "wandb:team/project"]


def test_a_trackers_password_is_not_said() -> None:
    """Its package quotes its whole address."""

    def refuses(rest: str, name: str, config: Mapping[str, Any]) -> Logger:
        raise ConnectionError("no answer of http://me:hunter2@tracker:5000")

    with pytest.raises(ConfigError, match=r"ConnectionError: no answer of http://tracker:5000$"):
        loggers.made([("b:x", refuses, "x")], "run", {})


def test_those_that_began_are_closed_where_another_cannot() -> None:
    """No run is left open at a tracker."""
    kept = Kept()

    def refuses(rest: str, name: str, config: Mapping[str, Any]) -> Logger:
        raise PermissionError("log in first")

    with pytest.raises(ConfigError, match=r"^--log b:x cannot begin: PermissionError: log in first$"):
        loggers.made([("a:x", lambda *_: kept, "x"), ("b:x", refuses, "x")], "run", {})
    assert kept.closed


class Tracker(Kept):
    """A tracker's logger, which can go on."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id


def test_a_tracker_goes_on_with_its_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By what it called it; one that has it no more begins another, which is said; one that knows no runs is made
    as ever."""

    def goes_on(rest: str, name: str, config: Mapping[str, Any], run_id: str = "new") -> Logger:
        if run_id == "deleted":
            raise LookupError("no such run")
        return Tracker(run_id)

    found: loggers.Found = [("a:x", goes_on, "x"), ("b:x", lambda *_: Kept(), "x"), ("c:x", goes_on, "x")]
    first = loggers.made(found, "run", {})
    assert loggers.run_ids(found, first) == {"a:x": "new", "c:x": "new"}
    loggers.Tracking(tmp_path, loggers.Tracked(groups=3, runs={"a:x": "old", "c:x": "deleted"}))
    told = loggers.tracked(tmp_path)
    assert told.groups == 3
    again = loggers.made(found, "run", {}, told.runs)
    assert loggers.run_ids(found, again) == {"a:x": "old", "c:x": "new"}
    (said,) = [record.getMessage() for record in caplog.records]
    assert "tracker_has_not_the_run log=c:x run=deleted error=LookupError: no such run" in said


async def test_a_tracker_that_does_not_begin_ends_the_run_in_time() -> None:
    """Its package may try a server that is not there again for minutes: the run does not wait for that."""
    released = threading.Event()

    def waits(rest: str, name: str, config: Mapping[str, Any]) -> Logger:
        released.wait()
        return Kept()

    with pytest.raises(ConfigError, match=r"^--log a:x has not begun within 0.05 s: is its server there\?$"):
        await loggers.begun([("a:x", waits, "x")], "run", {}, limit_s=0.05)
    released.set()
