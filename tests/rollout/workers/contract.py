"""What workers must do however they were started, as one suite: in processes of this machine, and as Ray actors.

A launcher is held to it by a fixture of settings:

    class TestMine(WorkersContract):
        @pytest.fixture
        def launch(self):
            return {"launch": "mine"}

The settings start real processes, which find this package, and the files of this machine.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout import Engine, EngineConfig, Group
from rollout.errors import UserCodeFailed
from rollout.records import FailureKind
from rollout.request import Sampling
from rollout.store.folder import encode_rollout
from tests.local_server import serving
from tests.rollout.workers.kit import Asking, Dying, Ending, Forever, Hanging, Sharing, Unshared
from transports.embedded.app import create_app

Launch = dict[str, Any]

#: How long anything may take that is to happen, on a busy machine.
SOON_S = 90.0


def engine(launch: Launch, make_env: Any = Asking, **config: Any) -> Engine:
    """Two processes."""
    return Engine(EngineConfig(**{"processes": 2, "max_tokens": 4, "verify": True, **launch, **config}), make_env)


def tasks(count: int, **task: Any) -> list[dict[str, Any]]:
    return [{"n": n, **task} for n in range(count)]


async def collect(running: Engine, count: int, task: dict[str, Any] | None = None, **options: Any) -> list[Group]:
    return [group async for group in running.stream(tasks(count, **task or {}), **options)]


async def all_there(running: Engine) -> None:
    """Waits until both processes play: where they come as there is room, one of them may be late."""
    with anyio.fail_after(SOON_S):
        while running.stats().processes < 2:  # noqa: ASYNC110  # nothing of the engine says that
            await anyio.sleep(0.05)


async def played(running: Engine, turns: int) -> None:
    """Waits until so many turns were played."""
    with anyio.fail_after(SOON_S):
        while running.stats().turns < turns:  # noqa: ASYNC110  # as above
            await anyio.sleep(0.05)


async def both_play(running: Engine, task: dict[str, Any]) -> list[Group]:
    """Plays until both processes have; one that was started again plays later than the other."""
    pids: set[float] = set()
    groups: list[Group] = []
    with anyio.fail_after(SOON_S):
        while len(pids) < 2:
            groups += await collect(running, 8, task)
            pids |= {rollout.metrics["process"] for group in groups for rollout in group.rollouts if rollout.ok}
    return groups


def versions(groups: list[Group]) -> set[str | None]:
    """Of the sampled tokens."""
    nodes = [node for group in groups for rollout in group.rollouts for node in rollout.nodes if node.sampled]
    return {span.version for node in nodes for span in node.weight_versions}


def ended_after(turns: int) -> Asking:
    """An environment of so many turns."""
    env = Asking()
    env.turns = turns
    return env


class WorkersContract:
    """The suite."""

    async def test_what_a_step_saw_and_gave_comes_from_a_process(self, launch: Launch) -> None:
        """How its answer ended, and each turn's own reward, metrics and settings; samples have them all the same."""
        async with engine(launch, Ending, sampling={"min_tokens": 4, "temperature": 1.5}) as running:
            (group,) = await collect(running, 1)
        (rollout,) = group.rollouts
        assert [(turn.reward, turn.metrics) for turn in rollout.turns] == [(0.5, {"cut_off": 1.0})] * 2
        assert [turn.sampling for turn in rollout.turns] == [Sampling(temperature=1.5)] * 2
        assert (rollout.step_reward, rollout.score) == (1.0, None)
        (sample,) = group.samples()
        assert [(turn.end - turn.start, turn.reward, turn.temperature) for turn in sample.turns] == [(4, 0.5, 1.5)] * 2

    async def test_groups_come_whole(self, launch: Launch) -> None:
        """Every group has its members and its task, in one process, and every turn was counted once."""
        async with engine(launch) as running:
            await all_there(running)
            groups = await collect(running, 6, rollouts_per_task=3)
            stats = running.stats()
        assert sorted(group.task_index for group in groups) == list(range(6))
        for group in groups:
            assert [rollout.member for rollout in group.rollouts] == [0, 1, 2]
            assert len({rollout.metrics["process"] for rollout in group.rollouts}) == 1
            for rollout in group.rollouts:
                assert rollout.ok, rollout.failure
                assert (rollout.task, rollout.reward, len(rollout.turns)) == ({"n": group.task_index}, 1.0, 2)
                assert rollout.messages[-2].role == "assistant"
                assert encode_rollout(rollout)
        assert len({rollout.metrics["process"] for group in groups for rollout in group.rollouts}) == 2
        assert (stats.finished, stats.turns, stats.running, stats.processes) == (18, 36, 0, 2)
        assert (stats.token_in_turns, stats.message_in_turns) == (18, 18)

    async def test_leaving_a_stream_ends_what_runs(self, launch: Launch) -> None:
        """What was played of a cancelled rollout comes back, as cancelled, and no process plays on."""
        async with engine(launch, Forever, concurrency=4) as running:
            stream = running.stream(tasks(4))
            async with anyio.create_task_group() as group:
                group.start_soon(anext, stream, None)
                await played(running, 8)
                group.cancel_scope.cancel()
            await stream.aclose()
            assert running.stats().running == 0
        ended = [rollout for group in running.untaken for rollout in group.rollouts]
        assert {rollout.failure.kind for rollout in ended if rollout.failure} == {FailureKind.CANCELLED}
        assert sum(len(rollout.turns) for rollout in ended) >= 8

    async def test_stopping_ends_rollouts_after_their_turn(self, launch: Launch) -> None:
        """`stop_admitting` reaches the processes."""
        async with engine(launch, Forever, concurrency=2) as running:
            kinds: list[FailureKind] = []
            async with anyio.create_task_group() as group:

                async def take() -> None:
                    async for found in running.stream(tasks(2)):
                        kinds.extend(rollout.failure.kind for rollout in found.rollouts if rollout.failure)

                group.start_soon(take)
                await played(running, 4)
                running.stop_admitting()
        assert kinds == [FailureKind.CANCELLED] * 2

    async def test_a_process_that_dies_costs_its_rollouts_only(self, launch: Launch, tmp_path: Path) -> None:
        """Its rollouts fail as `process`, the others are played, and it is there again for the next ones."""
        once = {"once": str(tmp_path / "died")}
        async with engine(launch, Dying, concurrency=4) as running:
            await all_there(running)
            first = await collect(running, 8, once)
            again = await both_play(running, once)
            stats = running.stats()
        failures = [rollout.failure for group in first for rollout in group.rollouts if rollout.failure]
        assert {failure.kind for failure in failures} == {FailureKind.PROCESS}
        assert failures[0].message.startswith("the process that played it ended: ")
        assert len(first) == 8
        assert sum(len(group.finished) for group in first) == 8 - len(failures)
        assert all(rollout.ok for group in again for rollout in group.rollouts)
        assert (stats.process_deaths, stats.processes) == (1, 2)

    async def test_a_process_that_hangs_is_ended_and_replaced(self, launch: Launch, tmp_path: Path) -> None:
        """Whatever holds its interpreter: it is known by its silence, and its rollouts are played again."""
        once = {"once": str(tmp_path / "hung")}
        async with engine(launch, Hanging, concurrency=4, rollout_retries=1, worker_silence_s=3.0) as running:
            groups = await collect(running, 4, once)
            await both_play(running, once)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        assert all(rollout.ok for rollout in rollouts)
        earlier = [failure for rollout in rollouts for failure in rollout.earlier_failures]
        assert {failure.kind for failure in earlier} == {FailureKind.PROCESS}
        assert "it was silent for" in earlier[0].message

    async def test_a_dead_processes_rollouts_are_played_again(self, launch: Launch, tmp_path: Path) -> None:
        """`rollout_retries` is for them too; and a group's members are in one process."""
        once = {"once": str(tmp_path / "died")}
        async with engine(launch, Dying, concurrency=4, rollout_retries=1) as running:
            groups = await collect(running, 4, once, rollouts_per_task=2)
        assert all(rollout.ok for group in groups for rollout in group.rollouts)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        assert FailureKind.PROCESS in [failure.kind for rollout in rollouts for failure in rollout.earlier_failures]
        whole = [group for group in groups if not any(rollout.earlier_failures for rollout in group.rollouts)]
        assert all(len({rollout.metrics["process"] for rollout in group.rollouts}) == 1 for group in whole)

    async def test_new_weights_reach_every_process(self, launch: Launch) -> None:
        """After an update, also behind a pause, every process samples with the new version, and nothing is stale."""
        app = create_app()
        with serving(app) as url:
            async with engine(launch, base_url=url, max_staleness=0) as running:
                await all_there(running)
                before = await collect(running, 4)
                await running.update_weights("7")
                after = await collect(running, 4)
                await running.pause()
                await running.update_weights("8")
                await running.resume()
                last = await collect(running, 4)
        app.state.engine.close()
        assert (versions(after), versions(last)) == ({"7"}, {"8"})
        assert not versions(before) & {"7", "8"}
        assert {rollout.submitted_at for group in last for rollout in group.rollouts} == {2}
        assert all(rollout.ok for group in before + after + last for rollout in group.rollouts)

    async def test_what_an_update_overtakes_is_stale(self, launch: Launch) -> None:
        """A rollout that a process plays ends before its next turn once it is older than it may be."""
        app = create_app()
        with serving(app) as url:
            async with engine(launch, Forever, base_url=url, max_staleness=0, concurrency=2) as running:
                stream = running.stream(tasks(2))
                async with anyio.create_task_group() as group:
                    groups: list[Group] = []

                    async def take() -> None:
                        groups.extend([each async for each in stream])

                    group.start_soon(take)
                    await played(running, 4)
                    await running.update_weights("7")
        app.state.engine.close()
        kinds = [rollout.failure.kind for each in groups for rollout in each.rollouts if rollout.failure]
        assert kinds == [FailureKind.STALE] * 2

    async def test_a_process_that_comes_back_knows_the_weights(self, launch: Launch, tmp_path: Path) -> None:
        """A process that was started after an update stands as the others do: its rollouts are not stale."""
        app = create_app()
        once = {"once": str(tmp_path / "died")}
        with serving(app) as url:
            async with engine(launch, Dying, concurrency=4, base_url=url, max_staleness=0) as running:
                await running.update_weights("7")
                await collect(running, 4, once)
                again = await both_play(running, once)
        app.state.engine.close()
        assert all(rollout.ok and rollout.staleness == 0 for group in again for rollout in group.rollouts)

    async def test_a_stream_may_play_another_environment(self, launch: Launch) -> None:
        """The processes get it by pickle, and play it beside the engine's own, whatever numbers a task has."""
        async with engine(launch) as running:
            (own,) = [group async for group in running.stream([{"n": 2**70}])]
            (other,) = await collect(running, 1, env=functools.partial(ended_after, 1))
            submission = await running.submit({"n": 3}, env=functools.partial(ended_after, 3))
            submitted = await submission.result()
        assert own.rollouts[0].task == {"n": 2**70}
        assert [len(group.rollouts[0].turns) for group in (own, other, submitted)] == [2, 1, 3]

    async def test_what_rollouts_share_is_entered_in_the_processes_that_play(
        self, launch: Launch, tmp_path: Path
    ) -> None:
        """Once in each, and left there when the engine closes; the engine's own process enters nothing."""
        log = tmp_path / "log"
        async with engine(launch, functools.partial(Sharing, str(log))) as running:
            await all_there(running)
            groups = await collect(running, 6)
        assert [group.rewards for group in groups] == [[1.0]] * 6
        said = sorted(line.split() for line in log.read_text().splitlines())
        assert [word for word, _ in said] == ["entered"] * 2 + ["left"] * 2
        processes = {process for _, process in said}
        assert len(processes) == 2
        assert str(os.getpid()) not in processes

    async def test_a_setup_that_fails_in_a_process_ends_the_run(self, launch: Launch) -> None:
        """Its error is named, with the traceback of the process; what ran ends as cancelled."""
        async with engine(launch, Unshared) as running:
            with pytest.raises(UserCodeFailed, match="environment Unshared: setup raised OSError: no docker") as seen:
                await collect(running, 4)
            assert "no docker" in "".join(seen.value.__notes__)
        kinds = {rollout.failure.kind for group in running.untaken for rollout in group.rollouts if rollout.failure}
        assert kinds <= {FailureKind.CANCELLED}
