"""Signals by their count, and the end of a process that something keeps: shown in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rollout.cli import ends
from rollout.cli.ends import Signals

LEAVING = """
import atexit, sys, threading, time
from rollout.cli import ends
ends.LEAVE_S, ends.HOOKS_S = 1.0, 1.0
ending = ends.Ending(lambda line: print(line, file=sys.stderr, flush=True))
atexit.register(lambda: print("hook", flush=True))
{}
ending.leave(3)
"""


def left(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LEAVING.format(code)], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_process_that_nothing_keeps_ends_as_ever() -> None:
    """Exit hooks run, the status is right, nothing is said."""
    done = left("")
    assert (done.returncode, done.stdout, done.stderr) == (3, "hook\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "thread",
    [
        "threading.Thread(target=time.sleep, args=(60,)).start()",
        "threading.Thread(target=time.sleep, args=(60,), daemon=True, name='rollout-call').start()",
        "from concurrent.futures import ThreadPoolExecutor; ThreadPoolExecutor(1).submit(time.sleep, 60)",
    ],
)
def test_a_thread_that_hangs_is_said_and_left_behind(thread: str) -> None:
    """A thread that Python would wait for, ours, an executor's: hooks run, the status is right."""
    done = left(thread)
    assert (done.returncode, done.stdout) == (3, "hook\n")
    assert done.stderr == "1 thread still hangs in calls that cannot be ended, and left behind\n"


@pytest.mark.slow
def test_a_hook_that_hangs_does_not_keep_the_process() -> None:
    """It is given its time, and that is all."""
    assert left("atexit.register(time.sleep, 60)").returncode == 3


@pytest.mark.slow
def test_what_keeps_the_loop_does_not_keep_a_settled_process() -> None:
    """Once the status is known the main thread may hang wherever it does."""
    done = left("ending.settle(4); time.sleep(600)")
    assert (done.returncode, done.stdout) == (4, "hook\n")
    assert "left behind" in done.stderr


@pytest.mark.slow
def test_work_that_does_not_end_is_bounded() -> None:
    """With its own line and status, unless the work ends before."""
    assert left("ending.bound(0.1, 'enough'); time.sleep(600)").stderr == "enough\n"
    assert left("ending.bound(0.1, 'enough')").returncode == 3


SIGNALS = textwrap.dedent("""
    import asyncio, os, signal, sys, time
    from rollout.cli import ends
    ends.ONE_SIGNAL_S = 0.0
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    async def main(signals):
        loop, first, second = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        with signals.meaning(first.set, second.set):
            print("ready", flush=True)
            await first.wait(); print("first", flush=True)
            await second.wait(); print("second", flush=True)
            time.sleep(600)  # an environment that blocks the loop
    with ends.Signals() as signals:
        asyncio.run(main(signals))
""")


def test_the_third_signal_leaves_a_loop_that_is_blocked() -> None:
    """The first and the second mean what they are said to mean, whichever they are; the third needs no loop."""
    process = subprocess.Popen([sys.executable, "-c", SIGNALS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        for said, number in (("ready", signal.SIGTERM), ("first", signal.SIGHUP), ("second", signal.SIGINT)):
            assert process.stdout.readline() == f"{said}\n"
            process.send_signal(number)
        assert process.wait(300) == 1


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """coreutils' timeout tells the process, and then its group."""
    monkeypatch.setattr(ends, "ONE_SIGNAL_S", 60.0)
    with Signals() as signals:
        for _ in range(3):
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                assert signals.count == 1
        assert signals.count == 1


def test_signals_that_user_code_takes_are_taken_back() -> None:
    """A library that sets a handler of its own has it for a second; what was there before comes back at the end."""
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signals.hold()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_comes_too_late_stops_nothing() -> None:
    """The work is done, and its status stands; the third one still leaves."""
    with Signals() as signals:
        signals.too_late = True
        signal.raise_signal(signal.SIGTERM)
        assert signals.count == 1


async def test_a_signal_between_two_meanings_is_not_lost() -> None:
    """What came while nobody had said what it means is done as soon as somebody has."""
    import anyio

    came = anyio.Event()
    with Signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with signals.meaning(came.set), anyio.fail_after(60):
            await came.wait()


@pytest.mark.slow
def test_a_task_that_swallows_everything_does_not_keep_the_command(tmp_path: Path) -> None:
    """Its rollout is a timeout, and the process ends, though Python cannot even throw the task away."""
    (tmp_path / "swallows.py").write_text(
        "import asyncio\nfrom rollout import Env, user\n"
        "class Swallows(Env):\n"
        "    async def reset(self, task): return [user('hello')]\n"
        "    async def step(self, message):\n"
        "        while True:\n"
        "            try: await asyncio.sleep(1000)\n"
        "            except BaseException: pass\n"
    )
    command = [sys.executable, "-m", "rollout", "run", "swallows.py:Swallows", "-n", "1", "--max-tokens", "4"]
    command += ["--step-timeout", "0.5", "-o", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1, done.stderr
    assert "step took longer than 0.5 s" in done.stderr


BLOCKING = textwrap.dedent("""
    import asyncio, sys, time
    from rollout.cli import ends
    ends.ONE_SIGNAL_S, ends.ANSWER_S, ends.BLOCKED_S = 0.0, 0.1, 0.1
    async def env():
        print("blocks", flush=True)
        time.sleep(600)
    async def main(signals):
        with signals.meaning(lambda: print("first"), lambda: print("second"), patience_s=PATIENCE):
            for _ in range(TIMES):
                try: await env()
                except ends.Interrupted as error: print(error, flush=True)
            await asyncio.sleep(0)
    with ends.Signals(say=lambda line: print(line, flush=True)) as signals:
        asyncio.run(main(signals))
""")


def blocking(tmp_path: Path, *, patience_s: float, times: int = 1) -> subprocess.Popen[str]:
    file = tmp_path / "blocking.py"
    file.write_text(BLOCKING.replace("PATIENCE", str(patience_s)).replace("TIMES", str(times)))
    return subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)


INTERRUPTED = "it blocked the event loop when the command was stopped\n"


@pytest.mark.slow
def test_the_second_signal_breaks_off_what_blocks_the_loop(tmp_path: Path) -> None:
    """The first says where it stands; then both mean what they do, once the loop goes on."""
    process = blocking(tmp_path, patience_s=600)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "blocks\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == (
            "stopping: what blocks the event loop (blocking.py, line 7, in env) has 600 s to end; control-C again "
            "breaks it off\n"
        )
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == f"{INTERRUPTED}first\nsecond\n"
    assert process.wait(300) == 0


@pytest.mark.slow
def test_what_blocks_the_loop_has_the_grace_after_a_signal(tmp_path: Path) -> None:
    """One signal is enough, whatever blocks after that."""
    process = blocking(tmp_path, patience_s=0.2, times=2)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "blocks\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().endswith(f"breaks it off\n{INTERRUPTED}blocks\n{INTERRUPTED}first\n")
    assert process.wait(300) == 0


def test_an_alarm_that_nobody_asked_for_does_not_end_the_process() -> None:
    """An environment sets a timer and no handler: the default would end the command without a word."""
    before, said = signal.getsignal(signal.SIGALRM), list[str]()
    with Signals(say=said.append):
        signal.raise_signal(signal.SIGALRM)
        mine = signal.signal(signal.SIGALRM, lambda *_: said.append("mine"))
        signal.raise_signal(signal.SIGALRM)
        signal.signal(signal.SIGALRM, mine)
    assert said == ["SIGALRM came, which nothing here asked for: it is ignored", "mine"]
    assert signal.getsignal(signal.SIGALRM) == before
