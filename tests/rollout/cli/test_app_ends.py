"""How a run ends before its time: signals, and failures that are too many."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rollout.cli.app import app
from rollout.store.folder import read_rollouts
from tests.local_server import serving
from transports.embedded.app import create_app

FAILS = """
from rollout import Env, Step, user
class Fails(Env):
    def __init__(self, good: int = 0): self.good = good
    def tasks(self, n, seed): return [{"n": number} for number in range(n)]
    def reset(self, task):
        if task["n"] >= self.good: raise RuntimeError("boom")
        return [user("hi")]
    def step(self, message): return Step(done=True, reward=1.0)
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROLLOUT_API_KEY", raising=False)
    (tmp_path / "fails.py").write_text(FAILS)


def fails(*args: str) -> Result:
    return CliRunner().invoke(app, ["run", "fails.py:Fails", "-c", "2", "--max-tokens", "2", "-o", "run", *args])


def test_fail_fast_ends_with_the_first_failure() -> None:
    """Status 4, why, and the command that goes on; what has ended is kept and what ran is played again."""
    result = fails("-n", "50", "--fail-fast", "--json")
    assert result.exit_code == 4
    assert "boom" in result.stderr
    assert "go on with: rollout run --resume -o" in result.stderr
    failures = json.loads(result.stdout)["failures_by_kind"]
    assert 1 <= failures["environment"] < 10


def test_a_run_that_only_fails_is_ended_by_its_rate() -> None:
    """Half have failed once twenty have ended; before that a rate says nothing."""
    result = fails("-n", "200", "--max-failures", "50%", "--json")
    assert result.exit_code == 4
    assert 20 <= json.loads(result.stdout)["rollouts"] < 40


def test_failures_below_the_limit_end_nothing() -> None:
    """They are status 1, as ever."""
    result = fails("-n", "12", "-a", "good=9", "--max-failures", "4", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["rollouts"] == 12


def test_a_run_without_a_sample_says_why() -> None:
    """Everything failed: status 1, and the reason that most of it has."""
    result = fails("-n", "2")
    assert result.exit_code == 1
    assert "nothing to train on: all 2 rollouts failed, 2 of them as environment: " in result.stderr


@pytest.mark.slow
def test_control_c_ends_with_what_is_finished(tmp_path: Path) -> None:
    """After SIGINT running turns end, the summary is written, and --resume completes the run."""
    script = Path(sys.executable).with_name("rollout")
    args = ["run", "echo", "-n", "400", "-c", "4", "-a", "turns=4", "--max-tokens", "8", "-o", "run", "--json"]
    process = subprocess.Popen([script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = tmp_path / "run" / "rollouts.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.01)  # a busy loop would take the core that the command needs
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    result = json.loads(out)
    assert "Traceback" not in err
    assert 0 < result["rollouts"] < 400
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == result
    assert len(list(read_rollouts(tmp_path / "run"))) == result["rollouts"]


@pytest.mark.slow
def test_control_c_twice_stops_at_once(tmp_path: Path) -> None:
    """With requests that are never answered, the second SIGINT ends the run and keeps what was played."""
    served = create_app()
    asked = threading.Event()

    async def hanging(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/inference/v1/generate" and asked_for_a_turn(scope):
            asked.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await served(scope, receive, send)

    script = Path(sys.executable).with_name("rollout")
    with serving(hanging) as url:
        args = ["run", "echo", "-n", "2", "--max-tokens", "8", "--base-url", url, "-o", "run", "--json"]
        process = subprocess.Popen([script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert asked.wait(300)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("control-C again" in line for line in process.stderr)  # a busy machine warns before that
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    served.state.engine.close()
    assert process.returncode == 1, err
    assert "Traceback" not in err
    kept = list(read_rollouts(tmp_path / "run"))
    assert [len(rollout.turns) for rollout in kept] == [1, 1]
    assert {rollout.failure.kind for rollout in kept if rollout.failure} == {"cancelled"}
    assert json.loads(out)["rollouts"] == 2


def asked_for_a_turn(scope: Any) -> bool:
    """Whether a request is a rollout's, not the probe's."""
    return (b"x-session-id", b"probe") not in scope["headers"] and any(
        n == b"x-session-id" for n, _ in scope["headers"]
    )


@pytest.mark.slow
def test_a_signal_while_the_server_is_asked_is_a_clean_end(tmp_path: Path) -> None:
    """Nobody has answered yet: one line, status 1, and no folder that looks like a run."""
    asked = threading.Event()

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    script = Path(sys.executable).with_name("rollout")
    with serving(silent) as url:
        args = [str(script), "run", "fails.py:Fails", "--base-url", url, "-o", "run"]
        process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert asked.wait(300)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (1, "", "rollout: stopped\n")
    assert not (tmp_path / "run").exists()


BLOCKS = """
import time
from rollout import Env, Step, user
class Blocks(Env):
    async def reset(self, task): return [user("hi")]
    async def step(self, message):
        print("blocks", flush=True)
        time.sleep(10 ** 6)
        return Step(done=True)
"""


@pytest.mark.slow
def test_one_signal_ends_a_run_whose_event_loop_is_blocked(tmp_path: Path) -> None:
    """It says where it is blocked; when the grace is over that is broken off, is cancelled, and may be gone on with."""
    (tmp_path / "blocks.py").write_text(BLOCKS)
    script = Path(sys.executable).with_name("rollout")
    args = ["run", "blocks.py:Blocks", "-n", "2", "--max-tokens", "2", "--stop-grace", "1", "-o", "run"]
    process = subprocess.Popen([script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(line == "blocks\n" for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert "stopping: what blocks the event loop (blocks.py, line 8, in step) has 1 s to end" in err
    assert "rollout: stopped: 0 of 2 rollouts were played; go on with: rollout run --resume -o" in err
    kept = list(read_rollouts(tmp_path / "run"))
    assert [rollout.failure.kind for rollout in kept if rollout.failure] == ["cancelled", "cancelled"]


LEAVES_LATE = """
import asyncio
from contextlib import asynccontextmanager
from rollout import Env, Step, user
class Late(Env):
    @classmethod
    @asynccontextmanager
    async def setup(cls):
        yield 1
        print("leaving", flush=True)
        await asyncio.sleep(600)
    def reset(self, task): return [user("hi")]
    def step(self, message): return Step(done=True)
"""


@pytest.mark.slow
def test_a_signal_at_the_end_costs_no_result(tmp_path: Path) -> None:
    """All was played: what is still being closed is cut as it would be, and the run has its result and its status."""
    (tmp_path / "late.py").write_text(LEAVES_LATE)
    script = Path(sys.executable).with_name("rollout")
    args = ["run", "late.py:Late", "-n", "2", "--max-tokens", "2", "--close-timeout", "3", "-o", "run", "--json"]
    process = subprocess.Popen([script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(line == "leaving\n" for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, json.loads(out)["rollouts"]) == (0, 2), err
    assert "rollout: stopping; control-C again leaves at once" in err
    assert "setup_close_failed env=Late error=setup took longer than 3 s" in err
