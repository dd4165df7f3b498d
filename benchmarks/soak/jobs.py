"""The two jobs as the storm sees them: started, hit, gone on with, and awaited."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.soak.trainer import Plan
from rollout.records import FailureKind
from rollout.store.folder import read_rollouts
from tests.live.install import PROJECT
from transports.embedded import MODEL_DIR

#: How long a job's process may take to end once it was told to.
END_S = 60.0

#: The command is gone on with so often before the soak gives up on it.
MOST_LIVES = 200

#: The command's last line, where it leaves threads behind.
_HANGING = re.compile(rb"rollout: (\d+) threads? still hangs? in calls")


class CommandJob:
    """`rollout run`, again and again on one folder, until everything was played."""

    def __init__(self, folder: Path, log: Path, url: str, *, tasks: int, members: int, seed: int) -> None:
        """`log` is on another disk than the folder, which is filled: what it says then is to be read."""
        self.folder, self.log = folder, log
        self.members = tasks * members
        self.lives: Counter[str] = Counter()
        """How its processes ended."""
        self._url, self._tasks, self._per_task, self._seed = url, tasks, members, seed
        self.lock = threading.RLock()
        """Held by who hits it, until the next life has begun."""
        self.done = False
        """Whether everything was played."""
        self._process: subprocess.Popen[bytes] | None = None
        self.said_to_hang: dict[int, int] = {}
        """Of each life that ended by itself, by process id: how many threads it said that it left hanging."""
        self._began_at = 0

    def __repr__(self) -> str:
        return f"<CommandJob {self.ended} of {self.members} ended, {self.lives.total()} lives>"

    @property
    def pid(self) -> int | None:
        """The process's, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def ended(self) -> int:
        """Lines of the run folder: those that were cancelled and played again count twice."""
        path = self.folder / "rollouts.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def start(self) -> None:
        """The first life."""
        args = ["benchmarks/soak/zoo.py:PlainZoo", "-n", str(self._tasks), "-r", str(self._per_task)]
        args += ["--base-url", self._url, "--tokenizer", str(MODEL_DIR), "--max-model-len", "4096", "-c", "64"]
        args += ["--max-tokens", "16", "--verify", "--rollout-retries", "3", "--step-timeout", "4"]
        args += ["--seed", str(self._seed), "--server-wait", "120"]
        self._spawn([*args, "-o", str(self.folder)])

    def resume(self) -> None:
        """The next life: nothing but the folder is named. Every other one has two processes."""
        processes = ["--processes", str(1 + self.lives.total() % 2)]
        self._spawn(["--resume", "-o", str(self.folder), *processes])

    def _spawn(self, args: Sequence[str]) -> None:
        command = [sys.executable, "-m", "rollout", "run", *args, "--json"]
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            self._began_at = log.tell()
            self._process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)

    def hit(self, sign: signal.Signals, *, group: bool = False) -> None:
        """Sends a signal to the process, or to its whole group."""
        if (pid := self.pid) is not None:
            (os.killpg if group else os.kill)(pid, sign)

    def wait(self, timeout_s: float) -> int:
        """The exit status of this life. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        status = self._process.wait(timeout_s)
        self.lives[f"status {status}" if status >= 0 else signal.Signals(-status).name] += 1
        if status >= 0:
            said = _HANGING.search(self.log.read_bytes(), self._began_at)
            self.said_to_hang[self._process.pid] = int(said[1]) if said else 0
        return status

    def tend(self) -> None:
        """Goes on where a life has ended by itself before everything was played."""
        with self.lock:
            if self.done or self.pid is not None:
                return
            self.wait(1.0)
            self.done = self.complete
            if not self.done and self.lives.total() < MOST_LIVES:
                self.resume()

    @property
    def complete(self) -> bool:
        """Whether every rollout has an end that is no stop's."""
        return len(self.final()) == self.members

    def final(self) -> dict[tuple[str, int], Any]:
        """The end of each rollout by task and member, those that a stop cut short left out."""
        return {
            (rollout.task_id, rollout.member): rollout
            for rollout in read_rollouts(self.folder)
            if rollout.failure is None or rollout.failure.kind is not FailureKind.CANCELLED
        }


class TrainerJob:
    """The embedded engine's process: orders go in, events come out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = Path(plan.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "plan.json"
        path.write_bytes(msgspec.json.encode(plan))
        self.log = self.folder / "trainer.log"
        self.events: list[dict[str, Any]] = []
        """All but where it stood."""
        self.state: dict[str, Any] = {}
        """Where it stood last."""
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.soak.trainer", str(path)],
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        return f"<TrainerJob {self.state.get('ended', 0)} rollouts, {self.state.get('turns', 0)} turns>"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
                kind = event["event"]
            except (ValueError, TypeError, KeyError):
                with self.log.open("a") as log:
                    log.write(line)  # an environment printed, or a library logged
                continue
            if kind in ("stands", "memory", "played"):
                self.state = event
            if kind != "stands":
                self.events.append(event)
            if kind in ("obeyed", "refused"):
                self._answers.put(event)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def workers(self) -> list[int]:
        """The ids of its worker processes: its children."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found: set[int] = set()
        with contextlib.suppress(OSError):
            for thread in children.parent.parent.iterdir():
                found.update(map(int, (thread / "children").read_text().split()))
        return sorted(found)

    def order(self, order: str, timeout_s: float) -> dict[str, Any]:
        """Has it do something; returns what came of it, also where it ended meanwhile. Raises queue.Empty."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._answers.get(timeout=0.5)
            except queue.Empty:
                if not self.running:
                    return {"event": "ended meanwhile", "order": order}
                if time.monotonic() > deadline:
                    raise

    def wait(self, timeout_s: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        status = self._process.wait(timeout_s)
        self._reader.join(5.0)
        return status

    def kill(self) -> None:
        """Ends it, where it has not ended."""
        self._process.kill()
        self._process.wait()

    def until(self, event: str, timeout_s: float) -> None:
        """Waits for an event. Raises RuntimeError where it does not come."""
        deadline = time.monotonic() + timeout_s
        while all(one["event"] != event for one in self.events):
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"the trainer has not said {event!r}:\n{self.log.read_text('utf-8')[-3000:]}")
            time.sleep(0.1)
