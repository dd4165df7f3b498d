"""What dies costs what it must, and no more: a node, the head, the driver."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from rollout import Engine, EngineConfig, Rollout
from rollout.records import FailureKind
from tests.live.ray.cluster import Cluster, cluster
from tests.live.ray.runs import played, start, wait_for
from tests.rollout.workers.kit import Asking

pytestmark = [pytest.mark.live, pytest.mark.ray]

#: An actor is back within so many seconds after its node has died: Ray finds that out after 12.
BACK_S = 30.0


async def until(holds: Callable[[], bool], limit_s: float = 90.0) -> float:
    """Waits until it holds; the seconds that it took."""
    started = time.monotonic()
    with anyio.fail_after(limit_s):
        while not holds():  # noqa: ASYNC110  # a cluster tells nobody
            await anyio.sleep(0.05)
    return time.monotonic() - started


async def test_workers_join_and_leave_with_their_nodes() -> None:
    """The engine begins with those that have room, others join; a node that dies costs its rollouts only, which
    are played again, and its actor is back within 30 s."""
    with cluster() as running:
        config = EngineConfig(
            launch="ray",
            ray_address=running.address,
            ray_num_cpus=2.0,  # one for each node
            processes=4,
            concurrency=16,
            rollout_retries=2,
            max_tokens=4,
            verify=True,
        )
        async with Engine(config, Asking) as engine:
            await until(lambda: engine.stats().processes == 3)
            running.add()
            await until(lambda: engine.stats().processes == 4)
            running.add()  # room for the one that is about to lose its node
            ended: list[Rollout] = []

            async def take() -> None:
                async for group in engine.stream({"n": n} for n in range(10**9)):
                    ended.extend(group.rollouts)

            async with anyio.create_task_group() as beside:
                beside.start_soon(take)
                await until(lambda: len(ended) > 16)
                running.kill(1)
                await until(lambda: engine.stats().process_deaths == 1)
                back_s = await until(lambda: engine.stats().processes == 4)
                before = len(ended)
                await until(lambda: len(ended) > before + 64)
                beside.cancel_scope.cancel()
            stats = engine.stats()
    assert back_s < BACK_S
    assert all(rollout.ok for rollout in ended), [rollout.failure for rollout in ended if rollout.failure]
    lost = [failure for rollout in ended for failure in rollout.earlier_failures]
    assert {failure.kind for failure in lost} == {FailureKind.PROCESS}
    assert len({(rollout.task_index, rollout.member) for rollout in ended}) == len(ended)
    assert stats.process_deaths == 1


def test_the_death_of_the_head_ends_the_run_and_it_can_be_resumed(tmp_path: Path) -> None:
    """In one line, with status 1; what was played is kept, and what was cut short is played again, elsewhere."""
    folder = tmp_path / "run"
    with cluster(nodes=1) as running:
        asked = ("run", "echo", "-n", "20000", "-a", "turns=4", "--max-tokens", "4", "-o", str(folder))
        ray = ("--launch", "ray", "--ray-address", running.address, "--processes", "2", "--rollout-retries", "2")
        process = start(*asked, *ray, cwd=tmp_path)
        try:
            wait_for(folder, 16, process)
            running.kill_head()
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 1, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("rollout: ")]
    assert line.startswith(f"rollout: the Ray cluster at {running.address} is gone: ")
    assert "what has ended is kept; go on with: rollout run --resume -o " in line
    assert "Traceback" not in errors
    before = played(folder)
    kinds = {rollout["failure"]["kind"] for rollout in before if rollout["failure"]}
    assert kinds == {"cancelled"}
    cut_short = {rollout["task_index"] for rollout in before if rollout["failure"]}
    again = ("--resume", "--launch", "local", "--processes", "1")
    process = start("run", "-o", str(folder), *again, cwd=tmp_path)
    try:
        wait_for(folder, len(before) + len(cut_short) + 128, process)  # the first that is missing is played first
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    last = {rollout["task_index"]: rollout for rollout in played(folder)}
    assert cut_short
    assert [last[task]["failure"] for task in cut_short if last[task]["failure"]] == [], errors


async def test_the_death_of_the_driver_ends_the_actors(ray_cluster: Cluster, tmp_path: Path) -> None:
    """However it dies: nothing of a run plays on in the cluster, though its rollouts would never end."""
    before = actors(ray_cluster)
    process = start(
        *("run", "echo", "-a", "turns=1000000", "--max-tokens", "4", "-o", str(tmp_path / "run")),
        *("--launch", "ray", "--ray-address", ray_cluster.address, "--processes", "2", "--ray-num-cpus", "0.5"),
        cwd=tmp_path,
    )
    try:
        await until(lambda: len(actors(ray_cluster) - before) == 2 and (tmp_path / "run").exists())
    finally:
        process.kill()
    process.communicate()
    await until(lambda: not actors(ray_cluster) - before, 30)


def actors(running: Cluster) -> set[int]:
    """Processes of a cluster that are actors of ours, by the name that Ray gives them."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # it has ended, or is none
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in running.raylets and (entry / "cmdline").read_bytes().startswith(b"ray::RolloutWorker"):
                found.add(int(entry.name))
    return found
