"""`rollout run` as a user meets it: what environments share, and how workers are started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rollout.cli.logs import EventLog
from rollout.log import takes_structlog
from rollout.store.folder import read_config
from tests.cases.commands import env_file, kinds, lines, ran

SHARES = """
from contextlib import asynccontextmanager
class E(Env):
    def __init__(self, image: str = "plain"):
        self.image = image
    @classmethod
    @asynccontextmanager
    async def setup(cls, image):
        with open("said", "a") as file: file.write(f"entered {image}\\n")
        if image == "broken": raise RuntimeError("no docker")
        yield image
        with open("said", "a") as file: file.write("left\\n")
    def reset(self, task): return [user(self.shared)]
    def step(self, m): return Step(done=True, reward=1.0)
"""

PROCESSES = [[], pytest.param(["--processes", "2"], marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("more", PROCESSES)
def test_what_rollouts_share_is_made_once_in_a_process_and_ended(more: list[str], tmp_path: Path) -> None:
    """With the argument that the command gives the environment."""
    out, env = tmp_path / "r", env_file(tmp_path, SHARES)
    done = ran("run", env, "-n", 4, "-a", "image=mine", "--max-tokens", 2, "-o", out, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = sorted((tmp_path / "said").read_text().splitlines())
    assert said == ["entered mine"] * (len(said) // 2) + ["left"] * (len(said) // 2)
    assert len(said) == (4 if more else 2)
    assert {line["messages"][0]["content"] for line in lines(out)} == {"mine"}


@pytest.mark.slow
@pytest.mark.parametrize("more", PROCESSES)
def test_a_setup_that_raises_is_the_users_mistake(more: list[str], tmp_path: Path) -> None:
    """One line that names it, status 2, its traceback on the terminal and in the log; the run can be gone on with."""
    out, env = tmp_path / "r", env_file(tmp_path, SHARES)
    done = ran("run", env, "-n", 4, "-a", "image=broken", "--max-tokens", 2, "-o", out, *more, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("rollout: ")]
    (line,) = [line for line in said if "run folder" not in line]
    assert line.startswith(
        "rollout: environment E: setup raised RuntimeError: no docker; what has ended is kept; go on"
    )
    events = [json.loads(line) for line in (out / "events.log").read_text().splitlines()]
    (failed, *_) = [event for event in events if event["event"] == "setup_failed"]
    assert 'RuntimeError("no docker")' in failed["exception"]
    assert done.stderr.count("Traceback (most recent call last)") == 1


@pytest.mark.slow
def test_a_launcher_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One line with those that there are, status 2."""
    done = ran("run", "echo", "--processes", 2, "--launch", "lokal", "-o", tmp_path / "r")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["rollout: no launcher 'lokal', did you mean 'local'?; there are: local, ray"]


@pytest.mark.slow
@pytest.mark.parametrize("option", [("--ray-address", "10.0.0.1:6379"), ("--ray-resource", "pool=1")])
def test_a_clusters_option_without_the_cluster_is_refused(option: tuple[str, str], tmp_path: Path) -> None:
    """It would do nothing, and all would be played on one host unnoticed."""
    done = ran("run", "echo", *option, "-o", tmp_path / "r")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"rollout: {option[0]} is of a Ray cluster: add --launch ray, or leave it out"]
    assert not (tmp_path / "r").exists()


LOGS = """
import structlog
class E(Env):
    def reset(self, task): return [user("x")]
    def step(self, m):
        structlog.get_logger().warning("mine", n=1)
        return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", PROCESSES)
def test_what_an_environment_logs_by_structlog_is_in_the_log(more: list[str], tmp_path: Path) -> None:
    """From other processes, too, and once for people; a library leaves it as it is."""
    out, env = tmp_path / "r", env_file(tmp_path, LOGS)
    done = ran("run", env, "-n", 3, "--max-tokens", 2, "-o", out, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (out / "events.log").read_text().splitlines()]
    assert [event["n"] for event in events if event["event"] == "mine"] == [1] * 3
    assert done.stderr.count("warning: mine n=1") == 1


def test_in_a_library_structlog_stays_the_programs_own() -> None:
    """The command's log takes it, and gives it back."""
    before = takes_structlog()
    with EventLog(lambda line: None):
        assert takes_structlog()
    assert takes_structlog() is before is False


LOSES = """
import pathlib, shutil
class E(Env):
    def __init__(self, how: str = ""):
        self.how = how
    def reset(self, task):
        self.index = task["index"]
        return [user("x")]
    def step(self, m):
        run = pathlib.Path("r").absolute()
        if self.index == 1 and run.is_dir():
            if self.how == "folder":
                shutil.rmtree(run)
            elif (run / "rollouts.jsonl").stat().st_size:
                (run / "rollouts.jsonl").unlink()
                if self.how == "replaced":
                    (run / "rollouts.jsonl").touch()
        return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["folder", "file", "replaced"])
def test_a_folder_that_is_taken_away_is_one_line(how: str, tmp_path: Path) -> None:
    """Status 2; what had ended is in a folder beside it, which the line that says so goes on with."""
    env = env_file(tmp_path, LOSES)
    run = ("run", env, "-n", 4, "-c", 1, "-a", f"how={how}", "--max-tokens", 2, "-o", "r")
    done = ran(*run, cwd=tmp_path)
    kept = tmp_path / "r.kept"
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("rollout: ")]
    assert said == [
        f"rollout: the run folder '{tmp_path}/r' was removed or replaced while the run wrote it; what the run has is "
        f"in '{kept}' now; go on with: rollout run --resume -o {kept}"
    ]
    assert f"run folder: {kept}" in done.stderr
    assert len([line for line in lines(kept) if not line.get("failure")]) >= 1
    assert json.loads((kept / "summary.json").read_text())["run_dir"] == str(kept)
    again = ran("run", "--resume", "-o", kept, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len({line["task_index"] for line in lines(kept) if not line.get("failure")}) == 4


BLOCKS = """
from contextlib import asynccontextmanager
class E(Env):
    @classmethod
    @asynccontextmanager
    async def setup(cls):
        yield 1
        time.sleep(10 ** 6)
    def reset(self, task): return [user("x")]
    def step(self, m): return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", PROCESSES)
def test_a_setup_that_blocks_when_it_is_left_does_not_keep_the_command(more: list[str], tmp_path: Path) -> None:
    """After its close timeout it is broken off, which is said; the run has its result and its status."""
    out, env = tmp_path / "r", env_file(tmp_path, BLOCKS)
    command = ("run", env, "-n", 2, "--max-tokens", 2, "--close-timeout", 1, "--json", "-o", out, *more)
    done = ran(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rollouts"] == 2
    if more:
        assert "process_killed why=it did not end within 11 s at " in done.stderr
        assert " in setup\n" in done.stderr
    else:
        assert (
            "setup_close_failed env=E error=setup raised LoopBlocked: it blocked the event loop for 1 s" in done.stderr
        )


LEAVES = """
class E(Env):
    def reset(self, task):
        self.index = task["index"]
        return [user("x")]
    def step(self, m):
        if self.index == 1: os._exit(0)
        if self.index == 2: signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(0.2)
        return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
def test_leaving_the_process_is_its_rollouts_failure(tmp_path: Path) -> None:
    """`os._exit(0)` would end the run as one that went well; an alarm without a handler would end it without a word."""
    out, env = tmp_path / "r", env_file(tmp_path, LEAVES)
    done = ran("run", env, "-n", 4, "-c", 1, "--max-tokens", 2, "-o", out, "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["failures_by_kind"] == {"environment": 1}
    assert [(line.get("failure") or {}).get("message") for line in lines(out)] == [
        None,
        "step raised SystemExit: 0",
        None,
        None,
    ]
    assert "rollout: SIGALRM came, which nothing here asked for: it is ignored" in done.stderr


@pytest.mark.slow
def test_processes_that_always_end_are_said_with_how(tmp_path: Path) -> None:
    """None is started for ever; what had ended is kept, each rollout with its process's end."""
    source = LEAVES.replace("self.index == 1: os._exit(0)", "True: os._exit(3)")
    out, env = tmp_path / "r", env_file(tmp_path, source)
    done = ran("run", env, "-n", 30, "-c", 4, "--max-tokens", 2, "--processes", 2, "-o", out, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    said = (
        "every process ended, again and again, before it had played a rollout, the last: exit status 3; what has ended"
    )
    assert said in done.stderr
    assert set(kinds(out)) == {"process"}


@pytest.mark.slow
def test_experts_and_masks_are_asked_for_by_a_flag(tmp_path: Path) -> None:
    """The folder keeps that, and a server that reports none is told of once, with what to do; the run plays on."""
    asked = ["--routed-experts", "--sampling-mask", "-s", "top_k=5"]
    done = ran("run", "guess_number", "-n", 1, "--max-turns", 1, "--max-tokens", 2, *asked, "-o", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("routed_experts", "sampling_mask"):
        assert done.stderr.count(f"{name}_not_reported") == 1
        assert read_config(tmp_path / "r")[name] is True
