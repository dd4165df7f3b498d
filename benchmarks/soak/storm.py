"""Which fault is thrown when: a seeded order, each thrown once what it needs is there.

A fault is a function of the world (servers, jobs, disk) that throws it and waits until it has been felt. What comes of
it is not checked here: `checks` does, when everything has ended.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec

from benchmarks.soak.jobs import END_S, CommandJob, TrainerJob
from tests.live.servers import Server

#: The share of a job within which its faults are thrown: what the last one left must still be played out.
WITHIN = 0.8

#: How long vLLM takes to be back, at most: a minute on two cores that play at the same time, mostly.
BACK_S = 240.0

#: How long a frozen worker may go unnoticed: the trainer gives one a minute to start.
FOUND_OUT_S = 90.0


class World(msgspec.Struct, kw_only=True):
    """What the storm can hit."""

    vllm: Server
    dynamo: Server
    command: CommandJob
    trainer: TrainerJob
    disk: Path
    """The file system of the command's folder, which is small."""
    thrown: Counter[str] = msgspec.field(default_factory=Counter)
    faults: list[str] = []
    """What went otherwise than it must, as it was thrown."""


def say(text: str) -> None:
    """A line of the soak's own."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def kill_vllm(world: World) -> None:
    """kill -9 of vLLM with all that it started; it is started again at once."""
    world.vllm.kill(0)
    world.vllm.respawn(0)
    world.vllm.wait(lambda url: _healthy(url), BACK_S)


def kill_mocker(world: World) -> None:
    """kill -9 of Dynamo's worker: its frontend lives on with no model."""
    world.dynamo.kill(1)
    time.sleep(2.0)
    world.dynamo.respawn(1)


def kill_frontend(world: World) -> None:
    """kill -9 of Dynamo's frontend."""
    world.dynamo.kill(0)
    time.sleep(1.0)
    world.dynamo.respawn(0)


def kill_worker(world: World) -> None:
    """kill -9 of a process that plays for the trainer."""
    if workers := world.trainer.workers:
        _signal(workers[0], signal.SIGKILL)


def freeze_worker(world: World) -> None:
    """SIGSTOP: a worker process that is silent and never ends by itself.

    One that plays is found out by its silence, one that was just starting when its time to start is over.
    """
    if workers := world.trainer.workers:
        _signal(workers[-1], signal.SIGSTOP)
        deadline = time.monotonic() + FOUND_OUT_S
        while _exists(workers[-1]) and world.trainer.running:
            if time.monotonic() > deadline:
                world.faults.append(f"a frozen worker was not found out within {FOUND_OUT_S:g} s")
                _signal(workers[-1], signal.SIGKILL)
                return
            time.sleep(0.2)


def kill_command(world: World) -> None:
    """kill -9 of the command; the next life goes on."""
    with world.command.lock:
        if world.command.pid is not None:
            world.command.hit(signal.SIGKILL)
            world.command.wait(END_S)
            world.command.resume()


def stop_command(world: World) -> None:
    """SIGTERM to the command's whole process group, as Slurm and systemd do; the next life goes on."""
    with world.command.lock:
        if world.command.pid is not None:
            world.command.hit(signal.SIGTERM, group=True)
            if (status := _wait(world, "SIGTERM")) not in (0, 1):
                world.faults.append(f"a command that was told to end did so with status {status}, not 1")
            world.command.resume()


def fill_disk(world: World) -> None:
    """No room on the command's disk: it must end and say so; there is room again, and the next life goes on."""
    ballast = world.disk / "ballast"
    with world.command.lock:
        if world.command.pid is None:
            return
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 65_536):
                pass
        status = _wait(world, "a full disk")
        ballast.unlink()
        if status not in (0, 1, 2):
            world.faults.append(f"on a full disk the command ended with status {status}, not 2")
        world.thrown["disk full, said"] += status == 2
        world.command.resume()


def _wait(world: World, what: str) -> int:
    """The command's exit status; it is killed where it does not end."""
    try:
        return world.command.wait(END_S)
    except subprocess.TimeoutExpired:
        world.faults.append(f"the command did not end within {END_S:g} s of {what}")
        world.command.hit(signal.SIGKILL, group=True)
        return world.command.wait(END_S)


def pause(world: World) -> None:
    """The trainer's own pause, longer than its environments' deadline."""
    _order(world, "pause 5")


def update_wait(world: World) -> None:
    """New weights; what is in flight is waited for."""
    _order(world, "update wait")


def update_abort(world: World) -> None:
    """New weights; what is in flight is aborted, and resumed from its sampled tokens."""
    _order(world, "update abort")


Condition = Callable[[], bool]
Progress = Callable[[], float]
Faults = dict[str, Callable[[World], None]]

#: What is thrown at the command and its servers, by name.
ON_COMMAND: Faults = {
    "mocker killed": kill_mocker,
    "frontend killed": kill_frontend,
    "command killed": kill_command,
    "command stopped": stop_command,
    "disk full": fill_disk,
}

#: And at the trainer and its server.
ON_TRAINER: Faults = {
    "vllm killed": kill_vllm,
    "worker killed": kill_worker,
    "worker frozen": freeze_worker,
    "paused": pause,
    "update, waited": update_wait,
    "update, aborted": update_abort,
}


def blow(world: World, faults: Faults, seed: int, *, rounds: int, progress: Progress, alive: Condition) -> None:
    """Throws each fault so many times, in a shuffled order, spread over what its job has to play.

    `progress` is the share of the job that has ended. Time would not do: a quick machine would be done before the last
    fault, and a busy one would get all of them in its first rollouts.
    """
    chance = random.Random(seed)
    order = [name for _ in range(rounds) for name in chance.sample(list(faults), len(faults))]
    for at, name in enumerate(order, 1):
        while alive() and progress() < WITHIN * at / len(order):
            time.sleep(0.05)
        if not alive():
            return
        say(f"{name}; {world.command!r}, {world.trainer!r}")
        world.thrown[name] += 1
        faults[name](world)


def _order(world: World, order: str) -> None:
    if not world.trainer.running:
        return
    answer = world.trainer.order(order, 300.0)
    world.thrown[f"orders {answer['event']}"] += 1
    say(f"  {answer}")


def _signal(pid: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
