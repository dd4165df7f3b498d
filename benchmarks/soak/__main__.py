"""Servers, jobs and storm together: see the package's own words for what is shown."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.soak import checks, storm, zoo
from benchmarks.soak.jobs import CommandJob, TrainerJob
from benchmarks.soak.storm import World, say
from benchmarks.soak.trainer import Plan
from benchmarks.soak.weights import write_folders
from rollout.records import Rollout
from rollout.store.folder import read_rollouts
from tests.live.proxy import faulty_proxy
from tests.live.servers import dynamo_mocker, vllm_server

#: The command's disk: what its run folder may take.
DISK_MB = 256

#: In the environment of each of the jobs' processes, so that those that are left are found.
MARK = "ROLLOUT_SOAK"


class Form(msgspec.Struct, kw_only=True):
    """How much is played."""

    command_tasks: int
    trainer_tasks: int
    members: int = 2
    memory_rollouts: int
    turns: int
    """Live turns at least, of both jobs together."""
    deadline_s: float
    rounds: int
    """How often each fault is thrown."""
    proofs: int
    """Turns whose logprobs are calculated."""


FORMS = {
    "ci": Form(
        command_tasks=600, trainer_tasks=160, memory_rollouts=1_600, turns=1_500, deadline_s=330, rounds=1, proofs=40
    ),
    "full": Form(
        command_tasks=1_700,
        trainer_tasks=500,
        memory_rollouts=4_000,
        turns=10_000,
        deadline_s=1_800,
        rounds=3,
        proofs=200,
    ),
}


@contextlib.contextmanager
def small_disk(where: Path) -> Iterator[Path]:
    """A file system of its own, which can be filled. Needs root, as in CI."""
    where.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def play(world: World, form: Form, seed: int) -> list[str]:
    """Both jobs to their end, under the storm. Returns what went wrong."""
    until = time.monotonic() + form.deadline_s
    over = threading.Event()
    wrong: list[str] = []

    def blow(faults: storm.Faults, salt: int, progress: storm.Progress, alive: storm.Condition) -> None:
        def still() -> bool:
            return alive() and not over.is_set()

        try:
            storm.blow(world, faults, seed + salt, rounds=form.rounds, progress=progress, alive=still)
        except Exception as error:
            wrong.append(f"the storm itself broke: {type(error).__name__}: {error}")

    command, trainer = world.command, world.trainer
    most = trainer.plan.tasks * trainer.plan.members
    on_command = (storm.ON_COMMAND, 1, lambda: command.ended / command.members, lambda: not command.done)
    on_trainer = (storm.ON_TRAINER, 2, lambda: trainer.state.get("ended", 0) / most, lambda: trainer.running)
    threads = [threading.Thread(target=blow, args=args) for args in (on_command, on_trainer)]
    for thread in threads:
        thread.start()
    while not world.command.done or world.trainer.running:
        if time.monotonic() > until:
            wrong.append(f"not done after {form.deadline_s:g} s: {world.command!r}, {world.trainer!r}")
            break
        world.command.tend()
        time.sleep(0.3)
    over.set()
    for thread in threads:
        thread.join(300)
    return wrong


def soak(name: str, seed: int, home: Path) -> list[str]:
    """The whole of it. Prints as it goes; returns what was wrong."""
    form, mark, ledger = FORMS[name], f"{MARK}={os.getpid()}-{seed}", home / "ledger.jsonl"
    os.environ[zoo.LEDGER] = str(ledger)
    folders = write_folders(home / "weights", 3)
    logs = home / "servers"
    logs.mkdir()
    with contextlib.ExitStack() as stack:
        dynamo = stack.enter_context(dynamo_mocker(folders[0], logs, speedup_ratio=1.0))
        vllm = stack.enter_context(vllm_server(folders[0], logs))
        # From here on: the servers are not the jobs' children, and do not carry the mark.
        os.environ[MARK] = mark.partition("=")[2]
        disk = stack.enter_context(small_disk(home / "disk"))
        command_url, command_proxy = stack.enter_context(faulty_proxy(dynamo.url, seed))
        trainer_url, trainer_proxy = stack.enter_context(faulty_proxy(vllm.url, seed + 1))
        say(f"servers are up: {dynamo}, {vllm}")
        plan = Plan(
            url=trainer_url,
            folder=str(home / "trainer"),
            tasks=form.trainer_tasks,
            members=form.members,
            seed=seed,
            weights=[str(folder) for folder in folders],
        )
        command = CommandJob(
            disk / "run", home / "command.log", command_url, tasks=form.command_tasks, members=form.members, seed=seed
        )
        trainer = TrainerJob(plan)
        stack.callback(trainer.kill)
        stack.callback(command.hit, signal.SIGKILL, group=True)
        trainer.until("ready", 120)
        command.start()
        world = World(vllm=vllm, dynamo=dynamo, command=command, trainer=trainer, disk=disk)
        wrong = play(world, form, seed)
        say("the storm is over")
        met = command_proxy.met + trainer_proxy.met
        wrong += look(world, form, folders, ledger, mark, met)
        del os.environ[MARK]
        wrong += memory(home, dynamo.url, form, seed)
    return wrong


def look(world: World, form: Form, folders: list[Path], ledger: Path, mark: str, met: Counter[str]) -> list[str]:
    """Checks what the storm left, and prints it."""
    command, trainer = world.command, world.trainer
    if trainer.running:
        trainer.kill()
        status = None
    else:
        status = trainer.wait(10)
    wrong = [*world.faults, *([f"the trainer ended with status {status}"] if status != 0 else [])]
    leaked, strange = checks.left_processes(ledger, mark)
    wrong += strange
    for pid in leaked:
        os.kill(pid, signal.SIGKILL)
    hanging, otherwise = checks.hanging_threads(command.said_to_hang, ledger)
    wrong += otherwise
    ends, twice = checks.ends_of(read_rollouts(command.folder))
    wrong += twice + checks.sound("command", ends, command.members)
    theirs, twice = checks.ends_of(checks.written(trainer.folder))
    wrong += twice + checks.sound("trainer", theirs, trainer.plan.tasks * trainer.plan.members)
    wrong += checks.delivered(trainer.folder, trainer.plan.tasks, trainer.plan.members)
    proof, off = checks.versions(theirs, folders, form.proofs)
    wrong += off
    for server in (world.vllm, world.dynamo):
        wrong += checks.idle(server)
    wrong += checks.usable(command.folder)
    turns = sum(len(rollout.turns) for rollout in [*ends.values(), *theirs.values()])
    if turns < form.turns:
        wrong.append(f"{turns} live turns are kept, fewer than {form.turns}")
    missing = [name for name in [*storm.ON_COMMAND, *storm.ON_TRAINER] if not world.thrown[name]]
    wrong += [f"{name}: was never thrown" for name in missing]
    notes = Counter(entry["kind"] for entry in zoo.read_ledger(ledger))
    silent = [kind for kind in zoo.OUTCOMES if kind != "well" and not notes[kind]]
    wrong += [f"the zoo's {kind!r} was never played" for kind in silent]
    _print_counts("thrown by the storm", world.thrown)
    _print_counts("thrown by the proxies, of each request one", met)
    _print_counts("thrown by the zoo", notes)
    for name, found in (("command", ends), ("trainer", theirs)):
        _print_counts(f"what came of the {name}'s {len(found)} rollouts", Counter(map(_end, found.values())))
    _print_counts("how the command's lives ended", command.lives)
    say(f"turns kept: {turns}, of them on vLLM {sum(len(rollout.turns) for rollout in theirs.values())}")
    say(f"trainer: {trainer.state.get('deaths')} workers died, {trainer.state.get('retried')} attempts were retried")
    say(f"versions: {proof.tokens} tokens calculated, logprobs differ by {proof.worst:.1e} at most")
    say(f"processes that the zoo leaked on purpose and that were left: {len(leaked)}, ended now")
    say(f"threads that the zoo hung and that the command said it left: {hanging}")
    return wrong


def memory(home: Path, url: str, form: Form, seed: int) -> list[str]:
    """A calm job: what a thousand rollouts leave in the engine's process."""
    quiet = [kind for kind in zoo.PLAIN_KINDS if kind not in ("hangs", "leaks_process", "slow_close", "starts_process")]
    plan = Plan(
        url=url,
        folder=str(home / "memory"),
        tasks=form.memory_rollouts // 2,
        members=2,
        seed=seed,
        env="PlainZoo",
        processes=1,
        concurrency=64,
        max_tokens=8,
        retries=0,
        kinds=quiet,
    )
    job = TrainerJob(plan)
    try:
        status = job.wait(900)
    finally:
        job.kill()
    slope, wrong = checks.growth(job.events, warm_up=form.memory_rollouts // 3)
    say(f"memory: {slope:+.2f} MB in a thousand rollouts, over {job.state.get('ended')} rollouts after the warm-up")
    return wrong + ([f"the calm job ended with status {status}"] if status else [])


def _end(rollout: Rollout) -> str:
    return "ok" if rollout.failure is None else f"{rollout.failure.kind.value} ({rollout.failure.error or 'no error'})"


def _print_counts(title: str, counts: Counter[str]) -> None:
    print(f"{title}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="A real job under a storm.")
    parser.add_argument("--form", choices=list(FORMS), default="ci", help="how much is played [ci]")
    parser.add_argument("--seed", type=int, default=11, help="of tasks and storm [11]")
    parser.add_argument("-o", "--output", type=Path, help="where everything is kept; thrown away if not given")
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    say(f"python -m benchmarks.soak {shlex.join(sys.argv[1:])} at {commit.stdout.strip()}")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        home = given.output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rollout-soak-")))
        home.mkdir(parents=True, exist_ok=True)
        wrong = soak(given.form, given.seed, home.resolve())
    for line in wrong[:60]:
        say(f"WRONG: {line}")
    say(f"{'FAILED' if wrong else 'passed'}: {len(wrong)} wrong, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
