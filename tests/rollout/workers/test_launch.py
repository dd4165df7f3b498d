"""Real processes, and what is done in them: it costs their own rollouts, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout import Engine, EngineConfig, Rollout
from rollout.errors import ConfigError, RolloutError
from rollout.records import FailureKind
from tests.log_kit import capture_logs
from tests.rollout.workers.kit import Asking, launch_task
from tests.rollout.workers.zoo import AsyncZoo, Slow, Zoo


def engine(make_env: Any = Zoo, **config: Any) -> Engine:
    """Two real processes. Their scripted transport has no answers: a rollout whose `reset` returned fails of it."""
    return Engine(EngineConfig(transport="scripted", processes=2, **config), make_env)


async def play(running: Engine, *deeds: str, **task: Any) -> list[Rollout]:
    tasks = [{"do": deed, **task} for deed in deeds]
    with anyio.fail_after(60):
        groups = [group async for group in running.stream(tasks)]
    return [group.rollouts[0] for group in sorted(groups, key=lambda group: group.task_index)]


def kinds(rollouts: list[Rollout]) -> list[FailureKind]:
    return [rollout.failure.kind for rollout in rollouts if rollout.failure]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "make_env", "how", "stack"),
    [
        ("exit", Zoo, "exit status 3", ""),
        ("kill", Zoo, "killed by SIGKILL", ""),
        ("segfault", Zoo, "killed by SIGSEGV", "zoo.py"),
        ("leak an exit", AsyncZoo, "exit status 1", "SystemExit: 5"),
        ("stop", Zoo, "silent", ""),
        ("regex", Zoo, "silent", "zoo.py"),
    ],
)
async def test_what_ends_a_process_costs_the_rollout_that_did_it(
    deed: str, make_env: Any, how: str, stack: str
) -> None:
    """It fails as `process` and says how that ended; the log says where it was. Others are played, also there."""
    with capture_logs() as log:
        async with engine(make_env, worker_silence_s=1.0, concurrency=1) as running:
            found = await play(running, deed, "nothing", "nothing", "nothing")
            stats = running.stats()
    assert kinds(found) == [FailureKind.PROCESS, *[FailureKind.TRANSPORT] * 3]
    assert found[0].failure is not None
    assert how in found[0].failure.message
    assert stats.process_deaths == 1
    assert stack in "".join(str(event.get("stack", "")) for event in log)


@pytest.mark.slow
async def test_nobody_waits_for_a_process_that_hangs() -> None:
    """Telling the processes of new weights, cancelling and closing end within seconds where one stands still."""
    async with engine(worker_silence_s=1.0) as running:
        assert running._pool is not None
        stream = running.stream([{"do": "stop"}, {"do": "nothing"}])
        await anext(stream)
        with anyio.fail_after(20):
            await running._pool.tell()
            await stream.aclose()
            assert running.stats().running == 0
        stream = running.stream([{"do": "stop"}, {"do": "nothing"}])
        await anext(stream)
        with anyio.fail_after(20):
            running.cancel()
            await stream.aclose()


@pytest.mark.slow
async def test_a_rollout_that_ends_every_process_is_given_up() -> None:
    """It costs three processes, whatever `rollout_retries` allows; the run goes on, and plays what comes after."""
    async with engine(rollout_retries=100) as running:
        await play(running, "nothing", "nothing")
        (poison,) = await play(running, "exit")
        assert running.stats().process_deaths == 3
    assert kinds([poison]) == [FailureKind.PROCESS]
    assert len(poison.earlier_failures) == 2


@pytest.mark.slow
async def test_a_process_in_whose_threads_too_much_hangs_is_replaced() -> None:
    """Its hanging threads end with it. That is no death, and other rollouts are played meanwhile and afterwards."""
    config: dict[str, Any] = {"step_timeout_s": 0.2, "max_abandoned_threads": 1, "concurrency": 4}
    with capture_logs() as log:
        async with engine(**config) as running:
            first = await play(running, *["hang"] * 8)
            while not any(event["event"] == "process_replaced" for event in log):
                await play(running, "nothing", "nothing")
            again = await play(running, "nothing", "nothing")
            stats = running.stats()
    assert kinds(first) == [FailureKind.TIMEOUT] * 8
    assert kinds(again) == [FailureKind.TRANSPORT] * 2
    assert stats.process_deaths == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "result"),
    # No pool that is forked: from a process with threads that may hang by itself (Python's os.fork says so), and did.
    [("pool, spawned", "6"), ("executor", "6"), ("terminate", "-15")],
)
async def test_an_environment_may_start_processes(deed: str, result: str, tmp_path: Path) -> None:
    """By multiprocessing in either way, by executors, by subprocess; and they end when they are told to."""
    async with engine() as running:
        assert kinds(await play(running, deed, to=str(tmp_path / "found"))) == [FailureKind.TRANSPORT]
    assert (tmp_path / "found").read_text() == result


@pytest.mark.slow
async def test_what_was_started_in_a_process_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that an environment left behind is ended with its worker's group."""
    monkeypatch.setenv("ROLLOUT_TEST_LEFT", str(tmp_path / "left"))
    async with engine() as running:
        assert kinds(await play(running, "leave a process")) == [FailureKind.PROCESS]
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(int((tmp_path / "left").read_text()))
        ended = select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)
        assert ended


async def test_a_jobs_signals_are_the_engines_to_answer() -> None:
    """SIGTERM, SIGINT and SIGHUP, which service managers send to every process of a job, end no worker."""
    async with engine() as running:
        assert kinds(await play(running, "terminate itself", "nothing")) == [FailureKind.TRANSPORT] * 2
        assert running.stats().process_deaths == 0


@pytest.mark.slow
async def test_a_process_starts_where_the_engine_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is started again has the folder, the path and the variables of the first, whatever changed since."""
    path, before = list(sys.path), os.getcwd()
    async with engine(concurrency=1) as running:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ROLLOUT_TEST_STANDS", "changed")
        monkeypatch.setattr(sys, "path", ["."])
        to = str(tmp_path / "found")
        await play(running, "exit", "exit")
        assert kinds(await play(running, "stands", to=to)) == [FailureKind.TRANSPORT]
        assert running.stats().process_deaths == 2
    assert (tmp_path / "found").read_text() == f"{before} {os.path.join(before, path[-1])} None"


@pytest.mark.slow
async def test_a_process_that_cannot_begin_in_time_is_said() -> None:
    """An import that hangs: one line that names the setting, and no process is left."""
    with capture_logs() as log, anyio.fail_after(30), pytest.raises(RolloutError, match="worker_start_s"):
        async with engine(Slow(), worker_start_s=2.0):
            pass
    assert "_wait_for_ever" in str(log)


async def test_a_launcher_that_is_not_there_is_named() -> None:
    """With those that there are."""
    with pytest.raises(ConfigError, match="no launcher 'lokal', did you mean 'local'"):
        async with Engine(EngineConfig(processes=2, launch="lokal"), Asking):
            pass


@pytest.mark.slow
async def test_how_processes_are_started_was_an_argument() -> None:
    """It is a setting now; the argument goes with the next release, and says so."""
    with pytest.warns(DeprecationWarning, match="EngineConfig.launch"):
        running = Engine(EngineConfig(processes=2, max_tokens=4), Asking, launch=launch_task)
    async with running:
        assert len([group async for group in running.stream([{"n": 1}])]) == 1
