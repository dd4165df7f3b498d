"""Real processes that die, hang and lie: after each, every task has one result or a recorded failure, ids exact.

`--verify` checks every turn while it is played; `assert_sound` checks the run folder and the server afterwards.
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from rollout.records import FailureKind, Rollout
from rollout.store.folder import read_rollouts
from rollout.tokens.verify import check_trajectory
from tests.live.bad_env import KINDS
from tests.live.install import PROJECT
from tests.live.proxy import FAULTS, faulty_proxy
from tests.live.servers import Server, dynamo_mocker, embedded_server, vllm_server
from transports.embedded import MODEL_DIR

pytestmark = pytest.mark.live

TASKS, MEMBERS = 40, 4
GUESS = ["guess_number", "-n", str(TASKS), "-r", str(MEMBERS), "--max-tokens", "32", "--verify", "-c", "32"]
TOKENIZER = ["--tokenizer", str(MODEL_DIR)]


@pytest.fixture(scope="module")
def doomed(logs: Path) -> Iterator[Server]:
    """A vLLM to be killed: no other module's."""
    with vllm_server(MODEL_DIR, logs) as server:
        yield server


@pytest.fixture(autouse=True)
def no_client_is_left() -> Iterator[None]:
    """A test that fails leaves no client running."""
    yield
    while Client.started:
        Client.started.pop().kill()


class Client:
    """`rollout run` in a process of its own, ended with its test."""

    started: ClassVar[list[Client]] = []

    def __init__(self, *args: str, folder: Path, file_limit: int | None = None) -> None:
        def limit() -> None:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        self.folder = folder
        self.started.append(self)
        command = [sys.executable, "-m", "rollout", "run", *args, "-o", str(folder), "--json"]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit
        )

    def wait_for(self, rollouts: int) -> None:
        """Until so many rollouts are on disk. Raises AssertionError where the run ends before."""
        until = time.monotonic() + 240
        while _lines(self.folder) < rollouts:
            assert self.process.poll() is None, f"ended before: {self.process.stderr and self.process.stderr.read()}"
            assert time.monotonic() < until, f"{_lines(self.folder)} rollouts after 240 s"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, where it has not ended."""
        self.process.kill()
        self.process.communicate()

    def end(self, status: int = 0, *, tracebacks: int = 0) -> tuple[dict[str, Any], str]:
        """(the object of --json, what was said). Raises AssertionError for another exit status.

        `tracebacks` is how many are shown: the first of a run's environments, and none of ours.
        """
        out, err = self.process.communicate(timeout=400)
        assert self.process.returncode == status, err
        assert err.count("Traceback") == tracebacks, err
        return (json.loads(out.splitlines()[-1]) if out.strip() else {}), err


def _lines(folder: Path) -> int:
    path = folder / "rollouts.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def assert_sound(folder: Path, *servers: Server, members: int = TASKS * MEMBERS) -> list[Rollout]:
    """Exactly one end for each rollout, each trajectory sound, nothing left running; returns the ends."""
    ends: dict[tuple[int, int], Rollout] = {}
    for rollout in read_rollouts(folder):
        key = rollout.task_index, rollout.member
        before = ends.get(key)
        assert before is None or (before.failure and before.failure.kind is FailureKind.CANCELLED), f"{key} ended twice"
        ends[key] = rollout
        check_trajectory(rollout.trajectory, sum(turn.completion_tokens for turn in rollout.turns))
        assert not any(turn.prefix_break for turn in rollout.turns)
        assert rollout.failure is None or rollout.failure.message
    assert len(ends) == members
    for server in servers:
        assert_idle(server)
    return list(ends.values())


def assert_idle(server: Server, deadline_s: float = 30.0) -> None:
    """The server's own gauges come to nothing running and nothing waiting."""
    until = time.monotonic() + deadline_s
    gauge = re.compile(
        r"^(?:vllm:num_requests_(?:running|waiting)|dynamo_frontend_inflight_requests)\b.*? (\S+)$", re.M
    )
    while True:
        values = [float(value) for value in gauge.findall(httpx.get(f"{server.url}/metrics", timeout=10).text)]
        assert values
        if not any(values):
            return
        assert time.monotonic() < until, f"requests left on {server}: {values}"
        time.sleep(0.2)


def respawned(server: Server, index: int, ready: Callable[[str], bool], deadline_s: float) -> threading.Thread:
    """Starts a killed process again, beside the test."""
    server.respawn(index)
    thread = threading.Thread(target=server.wait, args=(ready, deadline_s))
    thread.start()
    return thread


def _well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def poison(server: Server) -> list[int]:
    """The answers' statuses to prompts so long that some do not fit one step: what a seed then asks of a generator
    cannot be had on a CPU (vLLM 0.32, vllm/v1/worker/gpu_model_runner.py, `get_offset`)."""

    def post(length: int) -> int:
        body = {"model": "tiny", "prompt": [5] * length, "max_tokens": 4, "temperature": 1.0, "seed": 1}
        try:
            return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code
        except httpx.TransportError:
            return 0  # the server went after its engine

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(post, range(4000, 4004)))


def test_a_proxy_that_goes_wrong(doomed: Server, tmp_path: Path) -> None:
    """Dropped connections, delays, cut bodies, 429, 500 and 503: retried, by request and by rollout."""
    with faulty_proxy(doomed.url, seed=1) as (url, proxy):
        # Once in sixty runs a request meets five faults in a row, and its rollout is played again.
        options = ["--base-url", url, "--token-route", "/inference/v1/generate", "--rollout-retries", "2"]
        client = Client(*GUESS, *options, folder=tmp_path / "run")
        result, _ = client.end()
    rollouts = assert_sound(tmp_path / "run", doomed)
    assert all(rollout.ok for rollout in rollouts)
    assert result["prefix_breaks"] == 0
    assert all(proxy.met[fault] for fault in FAULTS), proxy.met


def test_environments_that_go_wrong(doomed: Server, tmp_path: Path) -> None:
    """Each kind is a recorded failure that says what happened, and the others are played as ever."""
    args = ["tests/live/bad_env.py:BadEnv", "-n", "28", "-r", "2", "--max-tokens", "16", "--verify"]
    client = Client(*args, "--step-timeout", "1.5", "--base-url", doomed.url, folder=tmp_path / "run")
    result, _ = client.end(1, tracebacks=1)
    rollouts = assert_sound(tmp_path / "run", doomed, members=56)
    said = {
        "raises": "step raised RuntimeError: the simulator is gone",
        "hangs": "step took longer than 1.5 s",
        "blocks": "step took longer than 1.5 s",
        "garbage": "step must return a Step, not dict",
        "bad_number": "step gave str where a number belongs",
    }
    for rollout in rollouts:
        message = rollout.failure.message if rollout.failure else None
        # A deadline also says where the call hangs, where that can be seen.
        assert (message and message.partition(" (")[0]) == said.get(rollout.task["kind"]), rollout
    assert Counter(rollout.task["kind"] for rollout in rollouts) == {
        kind: 8 * KINDS.count(kind) for kind in dict.fromkeys(KINDS)
    }
    assert result["loop_lag_max_s"] < 1.5, "an environment that blocks does not stall the loop"


def test_a_full_disk(doomed: Server, tmp_path: Path) -> None:
    """The run ends and says so; what was written is kept, and the run goes on once there is room."""
    args = [*GUESS, "--base-url", doomed.url]
    client = Client(*args, folder=tmp_path / "run", file_limit=200_000)
    _, said = client.end(2)
    assert "cannot write the run folder" in said
    assert 0 < _lines(tmp_path / "run") < TASKS * MEMBERS
    assert_idle(doomed)
    Client(*args, "--resume", folder=tmp_path / "run").end()
    assert all(rollout.ok for rollout in assert_sound(tmp_path / "run", doomed))


def test_a_client_that_is_killed_ten_times(doomed: Server, tmp_path: Path) -> None:
    """SIGKILL at random moments, and --resume: what was written is never played again, nothing is torn for good."""
    chance, folder = random.Random(0), tmp_path / "run"
    args = [*GUESS, "--base-url", doomed.url]
    kept: list[bytes] = []
    for attempt in range(10):
        client = Client(*args, *(["--resume"] if attempt else []), folder=folder)
        client.wait_for(_lines(folder) + chance.randint(1, 12))
        time.sleep(chance.uniform(0, 0.05))
        client.kill()
        whole = [
            line for line in (folder / "rollouts.jsonl").read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
        ]
        assert whole[: len(kept)] == kept, "a later run changes nothing that was written"
        kept = whole
    result, _ = Client(*args, "--resume", folder=folder).end()
    assert result["rollouts"] == TASKS * MEMBERS
    assert all(rollout.ok for rollout in assert_sound(folder, doomed))


def test_a_vllm_that_is_killed_and_restarted(doomed: Server, tmp_path: Path) -> None:
    """kill -9 with requests in flight: they wait, and go on where they were when the server is back."""
    client = Client(*GUESS, "--base-url", doomed.url, folder=tmp_path / "run")
    client.wait_for(20)
    doomed.kill(0)
    thread = respawned(doomed, 0, _well, 400)
    result, _ = client.end()
    thread.join()
    assert all(rollout.ok for rollout in assert_sound(tmp_path / "run", doomed))
    assert result["servers"][0]["deaths"] == 1


def test_an_engine_that_dies_behind_its_server(doomed: Server, logs: Path, tmp_path: Path) -> None:
    """A seed with a prompt that is computed in parts kills vLLM's engine on a CPU; all goes on at the other server."""
    with embedded_server(MODEL_DIR, logs) as other:
        urls = ["--base-url", doomed.url, "--base-url", other.url]
        client = Client(*GUESS, *urls, *TOKENIZER, folder=tmp_path / "run")
        client.wait_for(20)
        assert 500 in poison(doomed)
        result, _ = client.end()
        assert all(rollout.ok for rollout in assert_sound(tmp_path / "run", other))
    assert [(server["up"], server["deaths"]) for server in result["servers"]] == [(False, 1), (True, 0)]


def test_with_no_server_left_the_run_ends_and_goes_on_later(doomed: Server, logs: Path, tmp_path: Path) -> None:
    """After the wait it says so and ends with status 3; --resume at another server plays what is missing."""
    with embedded_server(MODEL_DIR, logs) as only:
        client = Client(*GUESS, *TOKENIZER, "--base-url", only.url, "--server-wait", "2", folder=tmp_path / "run")
        client.wait_for(10)
        only.kill(0)
        _, said = client.end(3)
        assert "no server came back within 2 s" in said
        assert "--resume" in said
        written = _lines(tmp_path / "run")
        assert 10 <= written <= TASKS * MEMBERS
    with embedded_server(MODEL_DIR, logs) as other:
        Client(*GUESS, *TOKENIZER, "--base-url", other.url, "--resume", folder=tmp_path / "run").end()
        assert all(rollout.ok for rollout in assert_sound(tmp_path / "run", other))


def test_a_dynamo_worker_that_is_killed(logs: Path, tmp_path: Path) -> None:
    """The frontend lives on without a worker; the rollouts wait for the next one."""
    with dynamo_mocker(MODEL_DIR, logs, speedup_ratio=1.0) as server:
        client = Client(*GUESS, *TOKENIZER, "--base-url", server.url, folder=tmp_path / "run")
        client.wait_for(10)
        server.kill(1)
        time.sleep(3)  # requests meet the frontend without a worker
        server.respawn(1)
        result, _ = client.end()
        rollouts = assert_sound(tmp_path / "run", server)
    assert all(rollout.ok for rollout in rollouts)
    assert result["servers"][0]["deaths"] == 1
