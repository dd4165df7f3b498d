"""Weights change under way: every token knows its version, nothing in flight is lost, and what is too stale ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from envs.guess_number import GuessNumber
from rollout import Engine, EngineConfig, Group, Message
from rollout.errors import ConfigError, TransportError
from rollout.records import FailureKind
from rollout.servers.weights import InFlight, Weights
from rollout.tokens.samples import version_number
from tests.rollout.servers.test_fleet import Server
from tests.rollout.servers.test_fleet import engine as fleet_engine
from tests.rollout.test_engine import Short, collect
from tests.rollout.test_engine import engine as scripted_engine
from transports.embedded import MODEL_DIR
from transports.scripted import Held, Stalled, reply


async def play_with_updates(running: Engine, updates: Any, tasks: int = 12) -> list[Group]:
    """Plays tasks, and calls `updates` as soon as some turns are played."""
    groups: list[Group] = []
    async with anyio.create_task_group() as beside:

        async def meanwhile() -> None:
            while running.stats().turns < 6:
                await anyio.lowlevel.checkpoint()
            await updates()

        beside.start_soon(meanwhile)
        stream = running.stream(GuessNumber().tasks(tasks, seed=0), rollouts_per_task=2)
        groups.extend([group async for group in stream])
    return groups


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["keep", "wait", "abort"])
async def test_every_token_carries_its_version(in_flight: InFlight, other_weights: Path) -> None:
    """Two updates in the middle of a run: all rollouts finish, versions cover every sampled token and never go back."""
    running = Engine(EngineConfig(max_tokens=32, concurrency=8, verify=True), GuessNumber)
    async with running:

        async def updates() -> None:
            await running.update_weights(1, other_weights, in_flight=in_flight)
            await running.update_weights(2, MODEL_DIR, in_flight=in_flight)

        groups = await play_with_updates(running, updates)
        assert running.weight_version == "2"
        assert running.stats().weight_updates == 2
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert all(rollout.ok for rollout in rollouts), [rollout.failure for rollout in rollouts]
    seen = set()
    for rollout in rollouts:
        versions = []
        for turn in rollout.turns:
            assert sum(span.end - span.start for span in turn.weight_versions) == turn.completion_tokens
            assert turn.finish_reason != "abort"
            versions += [version_number(span.version) for span in turn.weight_versions]
        assert versions == sorted(versions)
        seen.update(versions)
    assert {0, 2} <= seen


@contextmanager
def held(weights: Weights) -> Iterator[None]:
    """Nothing is sent meanwhile."""
    weights.hold("a test")
    yield
    weights.release("a test")


@pytest.mark.slow
async def test_a_folder_that_cannot_be_loaded_leaves_the_old_weights(tmp_path: Path) -> None:
    """A failed update is an error of the call; the server goes on with what it had, and is not left paused."""
    running = Engine(EngineConfig(max_tokens=16), GuessNumber)
    async with running:
        with pytest.raises(TransportError):
            await running.update_weights(1, tmp_path / "nothing")
        assert running.weight_version == "default"
        groups = [group async for group in running.stream(GuessNumber().tasks(2, seed=0))]
    assert all(rollout.ok for group in groups for rollout in group.rollouts)


@pytest.mark.slow
async def test_stale_rollouts_end_and_are_counted(other_weights: Path) -> None:
    """What lived through more updates than allowed is a failure of its own kind; evaluation is never ended so."""
    running = Engine(EngineConfig(max_tokens=32, concurrency=8, max_staleness=0), GuessNumber)
    async with running:

        async def updates() -> None:
            await running.update_weights(1, other_weights)

        groups = await play_with_updates(running, updates)
        kinds = [rollout.failure.kind for group in groups for rollout in group.rollouts if rollout.failure]
        assert kinds
        assert set(kinds) == {FailureKind.STALE}
        assert running.stats().stale == len(kinds)
        assert all(rollout.staleness > 0 for group in groups for rollout in group.rollouts if rollout.failure)

        async def evaluate() -> list[Group]:
            stream = running.stream(GuessNumber().tasks(8, seed=1), evaluation=True)
            return [group async for group in stream]

        assert all(rollout.ok for group in await evaluate() for rollout in group.rollouts)


async def test_a_server_without_control_says_so() -> None:
    """Weights of a server that cannot be told are an error that names it, before anything happens."""
    running, _ = scripted_engine()
    async with running:
        with pytest.raises(ConfigError, match="scripted: this server's weights cannot be changed"):
            await running.update_weights(1)


def test_the_cache_is_salted_by_version() -> None:
    """Cache entries of other weights are never reused, whatever the server clears."""
    assert Weights().salt(None) is None
    assert Weights().salt("mine") == "mine"
    assert Weights(version="default").salt(None) is None
    assert Weights(version="3", updates=1).salt(None) == "3"
    assert Weights(version="3", updates=1).salt("mine") == "mine/3"


def test_tokens_of_a_silent_server_carry_the_version_that_sampled_them() -> None:
    """What overtook a pause was sampled after the update, whole; what was aborted or kept may be older."""
    weights = Weights(version="0")
    sent = weights.now()
    assert weights.sampled(sent, aborted=False) == "0"
    weights.updated("1", "abort")
    assert weights.sampled(sent, aborted=False) == "1"
    assert weights.sampled(sent, aborted=True) == "0"
    weights.updated("2", "keep")
    assert weights.sampled(sent, aborted=False) == "0"
    assert weights.sampled(weights.now(), aborted=False) == "2"


async def test_nothing_is_sent_while_weights_change() -> None:
    """A turn that begins during an update waits, and goes out under the new version and its cache salt."""
    running, transport = scripted_engine(concurrency=1)
    opened = anyio.Event()

    class Telling(Short):
        async def reset(self, task: Any) -> list[Message]:
            opened.set()
            return await super().reset(task)

    running._make_env = Telling
    async with running, anyio.create_task_group() as group:
        with held(running._weights):
            group.start_soon(collect, running, 1)
            await opened.wait()
            for _ in range(50):  # from here to the request nothing leaves the loop
                await anyio.lowlevel.checkpoint()
            assert transport.requests == []
            running._weights.updated("7", "wait")
        await transport.wait_for(1)
        assert transport.requests[0].cache_salt == "7"


async def test_what_an_update_makes_too_stale_can_be_cancelled_in_its_turn() -> None:
    """Under the policy `cancel` the update itself ends it; evaluation goes on."""
    held = Held(reply("x"))
    servers = Server(Stalled(), held)
    running = fleet_engine(servers, concurrency=2, max_staleness=0, stale_policy="cancel")
    async with running, anyio.create_task_group() as group:
        groups: dict[bool, list[Group]] = {}

        async def play(evaluation: bool) -> None:
            groups[evaluation] = await collect(running, 1, evaluation=evaluation)

        group.start_soon(play, False)
        await servers.wait_for(1)
        group.start_soon(play, True)
        await servers.wait_for(2)
        await running.update_weights(1, "folder")
        held.release()
    (trained,), (evaluated,) = groups[False], groups[True]
    assert trained.rollouts[0].failure is not None
    assert trained.rollouts[0].failure.kind is FailureKind.STALE
    assert evaluated.rollouts[0].ok
    assert running.stats().stale == 1


async def test_a_group_that_waited_too_long_is_stale() -> None:
    """Staleness counts to when the group is taken: a slow trainer gets no older tokens than it allows."""
    running = fleet_engine(Server(), concurrency=2, max_staleness=1)
    async with running:
        stream = running.stream([{"n": 0}, {"n": 1}])
        fresh = await anext(stream)
        assert fresh.rollouts[0].ok
        while running.stats().finished < 2:
            await anyio.lowlevel.checkpoint()
        await running.update_weights(1, "folder")
        await running.update_weights(2, "folder")
        late = await anext(stream)
        await stream.aclose()
    assert late.finished == []
    assert late.rollouts[0].failure is not None
    assert late.rollouts[0].failure.message == "2 weight updates before its group was taken, 1 allowed"
    assert running.stats().stale == 1


async def test_weights_are_followed_from_another_process() -> None:
    """What is sent waits while the other's update lasts, and goes out under what the other knows then."""
    theirs, ours = Weights(), Weights()
    sent: list[str | None] = []

    async def send() -> None:
        await ours.settled()
        sent.append(ours.now().version)

    async with anyio.create_task_group() as group:
        with held(theirs):
            ours.follow(theirs.state)
            group.start_soon(send)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            theirs.updated("7", "keep")
            ours.follow(theirs.state)
            await anyio.lowlevel.checkpoint()
            assert sent == []
        ours.follow(theirs.state)
    assert sent == ["7"]
    assert (ours.updates, ours.last_kept, ours.salt(None)) == (1, 1, "7")
