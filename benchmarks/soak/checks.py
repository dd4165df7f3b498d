"""What must hold when the storm is over. Each check answers what is wrong, in a sentence each; nothing is right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.soak.weights import Proof
from benchmarks.soak.zoo import OUTCOMES, read_ledger
from rollout.records import FailureKind, Rollout
from rollout.store.folder import decode_rollout, read_rollouts
from rollout.tokens.verify import InvariantBroken, check_trajectory
from tests.live.install import PROJECT
from tests.live.servers import Server

#: Failures that a storm may leave on a rollout that did nothing wrong, where all its retries met one.
STORM = frozenset({FailureKind.TRANSPORT, FailureKind.PROCESS, FailureKind.TIMEOUT})

#: Of the well-behaved rollouts so many may end as one of those.
STORM_SHARE = 0.03

#: Megabytes that a thousand rollouts may leave in the engine's memory.
GROWTH_MB = 1.0


def ends_of(rollouts: Iterable[Rollout]) -> tuple[dict[tuple[str, int], Rollout], list[str]]:
    """The one end of each rollout, and those that have two: only what a stop cut short is played again."""
    ends: dict[tuple[str, int], Rollout] = {}
    wrong = []
    for rollout in rollouts:
        key = rollout.task_id, rollout.member
        before = ends.get(key)
        if before is not None and (before.failure is None or before.failure.kind is not FailureKind.CANCELLED):
            wrong.append(f"{key} has two ends: {before} and {rollout}")
        ends[key] = rollout
    return ends, wrong


def sound(name: str, ends: Mapping[tuple[str, int], Rollout], expected: int) -> list[str]:
    """Each rollout has an end that is what its kind must come to, and its trajectory's ids are what was sampled."""
    wrong = [f"{name}: {len(ends)} ends of {expected} rollouts"] if len(ends) != expected else []
    excused = 0
    for rollout in ends.values():
        try:
            check_trajectory(rollout.trajectory, sum(turn.completion_tokens for turn in rollout.turns))
        except InvariantBroken as error:
            wrong.append(f"{name}: {rollout}: {error}")
        if any(turn.prefix_break for turn in rollout.turns):
            wrong.append(f"{name}: {rollout} has a prefix break")
        fault = misfit(rollout)
        if fault is not None and rollout.failure is not None and rollout.failure.kind in STORM:
            excused += 1
        elif fault is not None:
            wrong.append(f"{name}: {fault}")
    if excused > max(3, STORM_SHARE * expected):
        wrong.append(f"{name}: {excused} of {expected} rollouts were lost to the storm, for all their retries")
    return wrong


def misfit(rollout: Rollout) -> str | None:
    """How a rollout's end differs from what its kind must come to; None where it does not."""
    kind = rollout.task["kind"]
    wanted, failure = OUTCOMES[kind], rollout.failure
    if wanted == "ok":
        return None if failure is None else f"{kind}: {rollout}: {failure.kind}: {failure.message[:200]}"
    assert isinstance(wanted, tuple)
    failure_kind, error = wanted
    if failure is None or failure.kind.value != failure_kind or (error is not None and failure.error != error):
        found = f"{failure.kind} of {failure.error}: {failure.message[:120]}" if failure else "ok"
        return f"{kind}: {rollout.id} ended as {found}, not as {failure_kind} of {error or 'any error'}"
    return None


def delivered(folder: Path, expected: int, members: int) -> list[str]:
    """Every task's group came once, whole."""
    lines = [json.loads(line) for line in (folder / "groups.jsonl").read_bytes().splitlines()]
    counts = Counter(line["task_index"] for line in lines)
    wrong = [f"group {index} came {count} times" for index, count in counts.items() if count > 1]
    wrong += [
        f"group {line['task_index']} has members {line['members']}" for line in lines if len(line["members"]) != members
    ]
    return wrong + ([f"{len(counts)} groups came of {expected}"] if len(counts) != expected else [])


def written(folder: Path) -> Iterator[Rollout]:
    """The trainer's rollouts."""
    with (folder / "rollouts.jsonl").open("rb") as file:
        for line in file:
            yield decode_rollout(line)


def versions(ends: Mapping[tuple[str, int], Rollout], folders: list[Path], most: int) -> tuple[Proof, list[str]]:
    """The logprobs of sampled turns are those of the weights that their versions name.

    `most` turns are calculated, those of several versions first: a turn that an update cut is the likeliest to be
    wrong.
    """
    turns = [(rollout, turn) for rollout in ends.values() for turn in rollout.turns if turn.weight_versions]
    turns.sort(key=lambda pair: (-len(pair[1].weight_versions), pair[0].id))
    cut = [pair for pair in turns if len(pair[1].weight_versions) > 1][: most // 2]
    whole = turns[len(cut) :: max(1, (len(turns) - len(cut)) // most)][: most - len(cut)]
    proof = Proof(folders)
    wrong = [
        f"{rollout.id}: a turn's logprobs are not those of {turn.weight_versions}"
        for rollout, turn in [*cut, *whole]
        if not proof.check(rollout, turn)
    ]
    unversioned = sum(not turn.weight_versions for rollout in ends.values() for turn in rollout.turns)
    return proof, wrong + ([f"{unversioned} turns have no weight version"] if unversioned else [])


_GAUGE = re.compile(r"^(?:vllm:num_requests_(?:running|waiting)|dynamo_frontend_inflight_requests)\b.*? (\S+)$", re.M)


def idle(server: Server, deadline_s: float = 30.0) -> list[str]:
    """No request is left on a server, by its own gauges."""
    until = time.monotonic() + deadline_s
    while True:
        values = [float(value) for value in _GAUGE.findall(httpx.get(f"{server.url}/metrics", timeout=10).text)]
        if not values:
            return [f"{server.url} has no gauges of requests"]
        if not any(values):
            return []
        if time.monotonic() > until:
            return [f"requests are left on {server.url}: {values}"]
        time.sleep(0.3)


def left_processes(ledger: Path, mark: str) -> tuple[list[int], list[str]]:
    """(processes that the zoo leaked on purpose and that are there, what is wrong).

    Every process of the jobs has the mark in its environment: whoever has it now and is not in the ledger was left.
    """
    leaked = {entry["leaked"] for entry in read_ledger(ledger) if entry["kind"] == "leaked"}
    deadline = time.monotonic() + 30.0
    while True:
        there = set(_marked(mark))
        strange = there - leaked - {os.getpid()}
        if not strange or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    wrong = [f"process {pid} is left: {_command(pid)}" for pid in sorted(strange)]
    if missing := leaked - there:
        wrong.append(
            f"{len(missing)} of {len(leaked)} processes that the zoo leaked on purpose are gone: {sorted(missing)[:5]}"
        )
    return sorted(there & leaked), wrong


def hanging_threads(said: Mapping[int, int], ledger: Path) -> tuple[int, list[str]]:
    """(threads that the command said it left hanging, what is wrong): each life says as many as the zoo hung in it."""
    thrown = Counter(entry["pid"] for entry in read_ledger(ledger) if entry["kind"] == "hangs")
    wrong = [
        f"process {pid} said that {count} threads hang; the zoo hung {thrown[pid]} there"
        for pid, count in said.items()
        if count != thrown[pid]
    ]
    return sum(said.values()), wrong


def _marked(mark: str) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if mark.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    yield int(entry)
            except OSError:
                continue


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:200]
    except OSError:
        return "gone meanwhile"


def usable(folder: Path) -> list[str]:
    """The run folder is exported, and `--resume` finds nothing to do."""
    before = sum(1 for _ in read_rollouts(folder))
    wrong = []
    for args, statuses in ((["export", str(folder)], (0,)), (["run", "--resume", "-o", str(folder), "--json"], (0, 1))):
        done = subprocess.run(
            [sys.executable, "-m", "rollout", *args],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if done.returncode not in statuses:
            wrong.append(f"rollout {args[0]} ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    if (after := sum(1 for _ in read_rollouts(folder))) != before:
        wrong.append(f"a complete run was gone on with: {after - before} rollouts were played")
    return wrong


def growth(events: Sequence[Mapping[str, Any]], warm_up: int) -> tuple[float, list[str]]:
    """(megabytes for a thousand rollouts after the first `warm_up`, what is wrong): a line through the looks."""
    looks = [
        (event["ended"], event["rss_mb"])
        for event in events
        if event["event"] == "memory" and event["ended"] >= warm_up
    ]
    if len(looks) < 8:
        return 0.0, [f"only {len(looks)} looks at the memory"]
    ended, rss = np.asarray(looks, np.float64).T
    slope = float(np.polyfit(ended, rss, 1)[0]) * 1000
    return slope, [f"memory grows by {slope:.2f} MB in a thousand rollouts"] if slope > GROWTH_MB else []
