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
from rollout.workers.pool import STRIKES
from tests.local_server import serving
from tests.rollout.workers.kit import (
    Asking,
    Endless,
    Sharing,
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
async def test_no_text_is_held_twice() -> None:
    """The conversation's messages are the tree's own objects, as they are without processes."""
    async with engine() as running:
        (group,) = await collect(running, 1)
    (rollout,) = group.rollouts
    held = {id(node.message) for node in rollout.nodes}
    assert [id(message) in held for message in rollout.messages[:-1]] == [True] * (len(rollout.messages) - 1)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
async def test_an_environment_that_raises_when_it_is_looked_at_ends_no_process() -> None:
    """Whatever comes of it, nobody waits for ever."""
    async with engine() as running:
        with anyio.fail_after(30):
            groups = await collect(running, 3, env=Unreadable())
    assert all(rollout.ok for group in groups for rollout in group.rollouts)


@pytest.mark.slow
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
