"""Several processes play as one would: groups whole, results kept, nothing left running."""

from __future__ import annotations

import functools
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout import Engine, EngineConfig, Group, Rollout
from rollout.errors import ConfigError, NoServerLeft, RolloutError, UserCodeFailed
from rollout.records import FailureKind
from rollout.request import Sampling
from rollout.store.folder import encode_rollout
from rollout.workers.pool import STRIKES
from tests.local_server import serving
from tests.rollout.workers.kit import (
    Asking,
    Dying,
    Ending,
    Endless,
    Sharing,
    Unshared,
    Wearing,
    launch_fainting,
    launch_garbling,
    launch_stillborn,
    launch_task,
)
from transports.embedded.app import create_app
from transports.scripted import ScriptedTransport


def engine(make_env: Any = Asking, **config: Any) -> Engine:
    settings = {"processes": 2, "max_tokens": 4, "verify": True, **config}
    return Engine(EngineConfig(launch=launch_task, **settings), make_env)


def tasks(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


async def collect(running: Engine, count: int, **options: Any) -> list[Group]:
    return [group async for group in running.stream(tasks(count), **options)]


@pytest.mark.slow
async def test_what_a_step_saw_and_gave_comes_from_a_process() -> None:
    """How its answer ended, and each turn's own reward, metrics and settings; samples have them all the same."""
    async with engine(Ending, sampling={"min_tokens": 4, "temperature": 1.5}) as running:
        (group,) = await collect(running, 1)
    (rollout,) = group.rollouts
    assert [(turn.reward, turn.metrics) for turn in rollout.turns] == [(0.5, {"cut_off": 1.0})] * 2
    assert [turn.sampling for turn in rollout.turns] == [Sampling(temperature=1.5)] * 2
    assert (rollout.step_reward, rollout.score) == (1.0, None)
    (sample,) = group.samples()
    assert [(turn.end - turn.start, turn.reward, turn.temperature) for turn in sample.turns] == [(4, 0.5, 1.5)] * 2


@pytest.mark.slow
async def test_groups_come_whole() -> None:
    """Every group has its members and its task, as from one process, and every turn was counted once."""
    async with engine() as running:
        groups = await collect(running, 6, rollouts_per_task=3)
        stats = running.stats()
    assert sorted(group.task_index for group in groups) == list(range(6))
    for group in groups:
        assert [rollout.member for rollout in group.rollouts] == [0, 1, 2]
        for rollout in group.rollouts:
            assert rollout.ok, rollout.failure
            assert (rollout.task, rollout.reward, len(rollout.turns)) == ({"n": group.task_index}, 1.0, 2)
            assert rollout.messages[-2].role == "assistant"
            assert encode_rollout(rollout)
    assert (stats.finished, stats.turns, stats.running, stats.processes) == (18, 36, 0, 2)
    assert (stats.token_in_turns, stats.message_in_turns) == (18, 18)


@pytest.mark.slow
async def test_no_text_is_held_twice() -> None:
    """The conversation's messages are the tree's own objects, as they are without processes."""
    async with engine() as running:
        (group,) = await collect(running, 1)
    (rollout,) = group.rollouts
    held = {id(node.message) for node in rollout.nodes}
    assert [id(message) in held for message in rollout.messages[:-1]] == [True] * (len(rollout.messages) - 1)


@pytest.mark.slow
async def test_leaving_a_stream_ends_what_runs() -> None:
    """What was played of a cancelled rollout comes back, as cancelled, and no process plays on."""
    async with engine(Endless, concurrency=4) as running:
        Endless.reset_all()
        stream = running.stream(tasks(4))
        async with anyio.create_task_group() as group:
            group.start_soon(anext, stream, None)
            await Endless.begun.wait()
            group.cancel_scope.cancel()
        await stream.aclose()
        assert running.stats().running == 0
        assert running._pool is not None
        assert all(not handle.playing for handle in running._pool._handles)
    ended = [rollout for group in running.untaken for rollout in group.rollouts]
    assert {rollout.failure.kind for rollout in ended if rollout.failure} == {FailureKind.CANCELLED}
    assert sum(len(rollout.turns) for rollout in ended) >= 8


@pytest.mark.slow
async def test_stopping_ends_rollouts_after_their_turn() -> None:
    """`stop_admitting` reaches the processes."""
    async with engine(Endless, concurrency=2) as running:
        Endless.reset_all()
        kinds: list[FailureKind] = []
        async with anyio.create_task_group() as group:

            async def take() -> None:
                async for found in running.stream(tasks(2)):
                    kinds.extend(rollout.failure.kind for rollout in found.rollouts if rollout.failure)

            group.start_soon(take)
            await Endless.begun.wait()
            running.stop_admitting()
    assert kinds == [FailureKind.CANCELLED] * 2


@pytest.mark.slow
async def test_a_process_that_dies_costs_its_rollouts_only(tmp_path: Path) -> None:
    """Its rollouts fail as `process`, the others are played, and it is there again for the next ones."""
    config = EngineConfig(processes=2, max_tokens=4, concurrency=4)
    once = {"once": str(tmp_path / "died")}
    async with Engine(config, Dying) as running:
        first = [g async for g in running.stream([{"n": n, **once} for n in range(8)])]
        pids: set[float] = set()
        while len(pids) < 2:  # the other process plays alone until this one is back
            again = [g async for g in running.stream([{"n": n, **once} for n in range(8)])]
            pids |= {rollout.metrics["process"] for group in again for rollout in group.rollouts}
        stats = running.stats()
    failures = [rollout.failure for group in first for rollout in group.rollouts if rollout.failure]
    assert {failure.kind for failure in failures} == {FailureKind.PROCESS}
    assert "SIGKILL" in failures[0].message
    assert len(first) == 8
    assert sum(len(group.finished) for group in first) == 8 - len(failures)
    assert all(rollout.ok for group in again for rollout in group.rollouts)
    assert (stats.process_deaths, stats.processes) == (1, 2)


@pytest.mark.slow
async def test_a_dead_processes_rollouts_are_played_again(tmp_path: Path) -> None:
    """`rollout_retries` is for them too; and a group's members are in one process."""
    config = EngineConfig(processes=2, max_tokens=4, concurrency=4, rollout_retries=1)
    async with Engine(config, Dying) as running:
        played = running.stream([{"n": n, "once": str(tmp_path / "died")} for n in range(4)], rollouts_per_task=2)
        groups = [group async for group in played]
    assert all(rollout.ok for group in groups for rollout in group.rollouts)
    earlier = [failure.kind for group in groups for rollout in group.rollouts for failure in rollout.earlier_failures]
    assert FailureKind.PROCESS in earlier
    whole = [group for group in groups if not any(rollout.earlier_failures for rollout in group.rollouts)]
    assert all(len({rollout.metrics["process"] for rollout in group.rollouts}) == 1 for group in whole)


@pytest.mark.slow
async def test_new_weights_reach_every_process() -> None:
    """After an update the tokens of every process carry the new version."""
    app = create_app()
    with serving(app) as url:
        async with engine(base_url=url) as running:
            before = await collect(running, 4)
            await running.update_weights("7")
            after = await collect(running, 4)
            await running.update_weights("8")
            last = await collect(running, 4)
    app.state.engine.close()

    def versions(groups: list[Group]) -> set[str]:
        nodes = [node for group in groups for rollout in group.rollouts for node in rollout.nodes if node.sampled]
        return {span.version for node in nodes for span in node.weight_versions}

    assert versions(after) == {"7"}
    assert versions(last) == {"8"}
    assert not versions(before) & {"7", "8"}
    assert {rollout.submitted_at for group in last for rollout in group.rollouts} == {2}


@pytest.mark.slow
async def test_a_process_that_comes_back_knows_the_weights(tmp_path: Path) -> None:
    """A process that was started after an update stands as the others do: its rollouts are not stale."""
    app = create_app()
    with serving(app) as url:
        config = EngineConfig(processes=2, max_tokens=4, concurrency=4, base_url=url, max_staleness=0)
        async with Engine(config, Dying) as running:
            await running.update_weights("7")
            once = {"once": str(tmp_path / "died")}
            _ = [g async for g in running.stream([{"n": n, **once} for n in range(4)])]
            pids: set[float] = set()
            again = []
            while len(pids) < 2:  # as above
                again += [g async for g in running.stream([{"n": n, **once} for n in range(8)])]
                pids = {rollout.metrics["process"] for group in again for rollout in group.rollouts}
    app.state.engine.close()
    assert all(rollout.ok and rollout.staleness == 0 for group in again for rollout in group.rollouts)


async def test_embedded_models_of_processes_keep_their_weights() -> None:
    """Each process has a model of its own, which cannot be updated from here: the error says what can."""
    async with engine() as running:
        with pytest.raises(ConfigError, match="rollout serve"):
            await running.update_weights("7", "somewhere")


async def test_an_environment_that_cannot_be_imported_is_refused() -> None:
    """A function without a name cannot be found by another process: said at once, before anything is started."""
    with pytest.raises(ConfigError, match="class or a function of a module"):
        async with engine(lambda: Asking()):
            pass


async def test_a_transport_that_was_handed_in_is_refused() -> None:
    """Its connections belong to this process."""
    with pytest.raises(ConfigError, match="transports of their own"):
        async with Engine(EngineConfig(processes=2), Asking, transport=ScriptedTransport([])):
            pass


async def test_a_task_that_is_no_data_ends_its_stream() -> None:
    """As without processes: it is named, what was drawn before it is played, and the engine plays on."""
    async with engine() as running:
        drawn: list[dict[str, Any]] = [{"n": 0, "id": 1}, {"n": object(), "id": 2}]
        stream = running.stream(iter(drawn))
        assert len((await anext(stream)).finished) == 1
        with pytest.raises(ConfigError, match=r"task 1 \(id '2'\)"):
            await anext(stream)
        assert len([group async for group in running.stream(tasks(2))]) == 2


@pytest.mark.slow
async def test_servers_that_are_gone_end_the_run() -> None:
    """As without processes: the stream raises, and what was played is kept."""
    app = create_app()
    async with AsyncExitStack() as stack:
        with serving(app) as url:
            running = engine(Endless, base_url=url, concurrency=2, server_wait_s=0.2, http_retries=0)
            await stack.enter_async_context(running)
            Endless.reset_all()
            stream = running.stream(tasks(2))
            group = await stack.enter_async_context(anyio.create_task_group())
            group.start_soon(_raises_no_server, stream)
            await Endless.begun.wait()
    app.state.engine.close()


async def _raises_no_server(stream: Any) -> None:
    with pytest.raises(NoServerLeft):
        async for _ in stream:  # what was played comes first
            pass


async def test_processes_that_never_begin_are_an_error() -> None:
    """A pool whose processes end before they are ready says how they ended."""

    with pytest.raises(RolloutError, match="ended before it was ready"):
        async with Engine(EngineConfig(processes=2, launch=launch_stillborn), Asking):
            pass


async def test_processes_that_always_die_end_the_run() -> None:
    """Where no process ever ends a rollout they are not started for ever: the stream says so, each loss is recorded."""
    lost: list[Rollout] = []

    async def keep(rollout: Rollout) -> None:
        lost.append(rollout)

    async with Engine(EngineConfig(processes=2, concurrency=1, launch=launch_fainting), Asking) as running:
        with pytest.raises(RolloutError, match="every process ended"):
            async for _ in running.stream(tasks(50), on_rollout=keep):
                pass
        assert running.stats().process_deaths == 2 * STRIKES
    kinds = [rollout.failure.kind for rollout in lost if rollout.failure]
    assert kinds.count(FailureKind.PROCESS) == 2 * STRIKES


async def test_what_cannot_be_read_costs_its_process() -> None:
    """A process that says what is no message is ended, and another is started; its rollouts fail as `process`."""
    async with Engine(EngineConfig(processes=2, concurrency=1, launch=launch_garbling), Asking) as running:
        with pytest.raises(RolloutError, match="every process ended"):
            async for _ in running.stream(tasks(50)):
                pass
        assert running.stats().process_deaths == 2 * STRIKES


@pytest.mark.slow
async def test_a_worn_process_is_replaced_when_its_rollouts_have_ended() -> None:
    """It takes no more rollouts, those that it plays end well, another takes its place, and that is no death."""
    launch = Wearing()
    config = EngineConfig(processes=2, max_tokens=4, concurrency=4, launch=launch)
    async with Engine(config, Asking) as running:
        groups = []
        while launch.begun < 3:
            groups += await collect(running, 4)
        stats = running.stats()
    assert all(rollout.ok for group in groups for rollout in group.rollouts)
    assert stats.process_deaths == 0
    assert stats.finished == len(groups)
    assert stats.turns == 2 * len(groups)


async def test_an_integer_beyond_64_bits_is_played_as_it_is() -> None:
    """A task that msgpack cannot carry goes as JSON: the environment sees the very number."""
    async with engine() as running:
        (group,) = [group async for group in running.stream([{"n": 2**70}])]
    (rollout,) = group.rollouts
    assert rollout.ok, rollout.failure
    assert rollout.task == {"n": 2**70}
    assert rollout.messages[0].text == f"What is {2**70}?"


@pytest.mark.slow
async def test_a_stream_may_play_another_environment() -> None:
    """The processes get it by pickle, and play it beside the engine's own."""
    async with engine() as running:
        (own,) = await collect(running, 1)
        (other,) = await collect(running, 1, env=functools.partial(ended_after, 1))
        submission = await running.submit({"n": 3}, env=functools.partial(ended_after, 3))
        submitted = await submission.result()
        (again,) = await collect(running, 1)
    turns = [len(group.rollouts[0].turns) for group in (own, other, submitted, again)]
    assert turns == [2, 1, 3, 2]


def ended_after(turns: int) -> Asking:
    env = Asking()
    env.turns = turns
    return env


@pytest.mark.slow
async def test_an_environment_that_no_process_could_find_is_refused() -> None:
    """At its stream, in one line; the engine plays on."""
    async with engine() as running:
        with pytest.raises(ConfigError, match="processes need an environment that they can import"):
            await collect(running, 1, env=lambda: Asking())
        assert len(await collect(running, 1)) == 1


class Unloadable:
    """Is pickled, and cannot be read in some process."""

    def __init__(self, reader: int = 0) -> None:
        self.reader = reader
        """The process that can, once: workers may be tasks of this one."""

    def __call__(self) -> Asking:
        return Asking()

    def __reduce__(self) -> Any:
        return (_not_loaded, (self.reader,))


_READ: list[int] = []


def _not_loaded(reader: int) -> Any:
    if os.getpid() != reader or reader in _READ:
        raise ImportError("no module named theirs")
    _READ.append(reader)
    return Unloadable(reader)


@pytest.mark.slow
async def test_an_environment_that_cannot_be_read_back_is_refused() -> None:
    """What fails here would fail in every process, and is its stream's alone."""
    async with engine() as running:
        with pytest.raises(ConfigError, match=r"Unloadable object .*: no module named theirs"):
            await collect(running, 3, env=Unloadable())
        assert len(await collect(running, 1)) == 1


@pytest.mark.slow
async def test_an_environment_that_cannot_be_loaded_there_ends_the_run() -> None:
    """It is named, with the traceback of the process."""
    _READ.clear()
    async with engine() as running:
        with pytest.raises(
            UserCodeFailed, match="cannot load the environment: ImportError: no module named theirs"
        ) as seen:
            await collect(running, 3, env=Unloadable(os.getpid()))
        assert "_not_loaded" in "".join(seen.value.__notes__)


class Unreadable:
    """Makes environments, and raises when it is looked at."""

    def __call__(self) -> Asking:
        return Asking()

    @property
    def func(self) -> Any:
        raise ValueError("nothing to be seen")


async def test_an_environment_that_raises_when_it_is_looked_at_ends_no_process() -> None:
    """Whatever comes of it, nobody waits for ever."""
    async with engine() as running:
        with anyio.fail_after(30):
            groups = await collect(running, 3, env=Unreadable())
    assert all(rollout.ok for group in groups for rollout in group.rollouts)


@pytest.mark.parametrize("local", [pytest.param(True, marks=pytest.mark.slow), False])
async def test_what_rollouts_share_is_entered_in_the_processes_that_play(local: bool, tmp_path: Path) -> None:
    """Once in each, and left there when the engine closes; the engine's own process enters nothing."""
    log = tmp_path / "log"
    launch: dict[str, Any] = {} if local else {"launch": launch_task}
    make_env = functools.partial(Sharing, str(log))
    async with Engine(EngineConfig(processes=2, max_tokens=4, **launch), make_env) as running:
        groups = await collect(running, 6)
    assert [group.rewards for group in groups] == [[1.0]] * 6
    said = sorted(line.split() for line in log.read_text().splitlines())
    assert [word for word, _ in said] == ["entered"] * 2 + ["left"] * 2
    if local:
        processes = {process for _, process in said}
        assert len(processes) == 2
        assert str(os.getpid()) not in processes


@pytest.mark.slow
async def test_a_setup_that_fails_in_a_process_ends_the_run() -> None:
    """Its error is named, with the traceback of the process; what ran ends as cancelled."""
    async with engine(Unshared) as running:
        with pytest.raises(UserCodeFailed, match="environment Unshared: setup raised OSError: no docker") as seen:
            await collect(running, 4)
        assert "no docker" in "".join(seen.value.__notes__)
    kinds = {rollout.failure.kind for group in running.untaken for rollout in group.rollouts if rollout.failure}
    assert kinds <= {FailureKind.CANCELLED}
