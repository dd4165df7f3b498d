"""The engine streams groups, keeps failures to their rollout, and leaves nothing running."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from rollout import Engine, EngineConfig, Env, Group, Message, Rollout, Step, user
from rollout.errors import ConfigError, RolloutError, ServerBusy, ServerError
from rollout.participant import Participant
from rollout.records import FailureKind
from transports.scripted import Fault, Held, ScriptedTransport, Stalled, reply


class Short(Env):
    """Two turns."""

    async def reset(self, task: Any) -> list[Message]:
        self.turns = 0
        return [user("hello")]

    async def step(self, message: Message) -> Step:
        self.turns += 1
        return Step(messages=[user("more")], done=self.turns == 2, reward=0.5)


def engine(
    *entries: Any, plays: type[Participant] = Short, weights: bool = False, **config: Any
) -> tuple[Engine, ScriptedTransport]:
    transport = ScriptedTransport(entries or [reply("x") for _ in range(200)], weights=weights)
    settings = EngineConfig(transport="scripted", renderer="server", verify=True, **config)
    transport._info.can_tokenize = True
    return Engine(settings, plays, transport=transport), transport


async def collect(running: Engine, tasks: int, **options: Any) -> list[Group]:
    return [group async for group in running.stream([{"n": n} for n in range(tasks)], **options)]


async def test_every_task_comes_back_as_a_group() -> None:
    """Each task's group has all its members, whatever the concurrency."""
    running, transport = engine(concurrency=3)
    async with running:
        groups = await collect(running, 5, rollouts_per_task=2)
    assert sorted(group.task_index for group in groups) == list(range(5))
    assert all([rollout.member for rollout in group.rollouts] == [0, 1] for group in groups)
    assert all(rollout.ok and rollout.reward == 1.0 for group in groups for rollout in group.rollouts)
    assert transport.closed
    stats = running.stats()
    assert (stats.finished, stats.failed, stats.running, stats.turns) == (10, 0, 0, 20)
    assert stats.token_in_turns == 10


async def test_one_failure_leaves_its_neighbours() -> None:
    """A rollout whose request fails is a failure in its group; the others are played."""
    running, _ = engine(Fault(ServerBusy("full")), *[reply("x") for _ in range(20)], concurrency=1)
    async with running:
        (group,) = await collect(running, 1, rollouts_per_task=3)
    assert [rollout.ok for rollout in group.rollouts] == [False, True, True]
    assert len(group.finished) == 2


async def test_no_more_run_at_once_than_asked() -> None:
    """The cap holds while slots refill."""
    held = [Held(reply("x")) for _ in range(2)]
    running, transport = engine(*held, *[reply("x") for _ in range(30)], concurrency=2)
    async with running, anyio.create_task_group() as group:
        group.start_soon(collect, running, 5)
        await transport.wait_for(2)
        assert len(transport.requests) == running.stats().running == 2
        for entry in held:
            entry.release()


async def test_a_consumer_that_leaves_leaves_nothing_running() -> None:
    """Closing the stream cancels its requests."""
    running, transport = engine(*[reply("x")] * 2, Stalled(), Stalled(), concurrency=3)
    async with running:
        stream = running.stream([{"n": n} for n in range(3)])
        async for _ in stream:
            break
        await stream.aclose()
    assert running.stats().running == 0
    assert transport.cancelled >= 1


async def test_cancelling_keeps_what_was_played() -> None:
    """Every rollout that was running is handed over as cancelled, with its turns."""
    kept: list[Rollout] = []

    async def keep(rollout: Rollout) -> None:
        kept.append(rollout)

    running, transport = engine(reply("x"), Stalled(), concurrency=1)
    async with running, anyio.create_task_group() as group:

        async def consume() -> None:
            await collect(running, 1, on_rollout=keep)

        group.start_soon(consume)
        await transport.wait_for(2)
        running.cancel()
    (rollout,) = kept
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.CANCELLED
    assert len(rollout.turns) == 1


async def test_stopping_admits_nothing_new() -> None:
    """After `stop_admitting` the running turn ends and the stream ends."""
    held = Held(reply("x"))
    running, transport = engine(held, concurrency=1)
    groups: list[Group] = []
    async with running, anyio.create_task_group() as group:

        async def consume() -> None:
            groups.extend(await collect(running, 4))

        group.start_soon(consume)
        await transport.wait_for(1)
        running.stop_admitting()
        held.release()
    assert len(transport.requests) == 1
    assert [rollout.failure.kind for g in groups for rollout in g.rollouts if rollout.failure] == ["cancelled"]


async def test_a_callers_error_ends_the_stream() -> None:
    """What `on_rollout` raises comes out of the stream, and nothing runs on."""

    async def broken(rollout: Rollout) -> None:
        raise OSError("disk full")

    running, _ = engine(concurrency=2)
    async with running:
        with pytest.raises(OSError, match="disk full"):
            await collect(running, 4, on_rollout=broken)
        assert running.stats().running == 0


async def test_a_slow_consumer_is_not_run_away_from() -> None:
    """No more finished groups wait than there are slots."""
    running, transport = engine(concurrency=2)
    async with running:
        taken = 0
        async for _ in running.stream([{"n": n} for n in range(50)]):
            taken += 1
            # Two turns each: what was taken, what waits (2), and what runs (2).
            assert len(transport.requests) <= 2 * (taken + 4)
    assert taken == 50


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mode": "mito", "require_token_in": True}, "drop one of them"),
        ({"concurrency": 0}, "concurrency must be 1 or more"),
        ({"transport": "vllm"}, "give base_url"),
        ({"api_key_env": "NO_SUCH_VARIABLE_HERE"}, "NO_SUCH_VARIABLE_HERE is not set"),
        ({"transport": "vlm"}, "did you mean 'vllm'"),
    ],
)
async def test_impossible_settings_are_named(config: dict[str, Any], said: str) -> None:
    """A setting that cannot be is an error before anything is sent."""
    with pytest.raises(ConfigError, match=said):
        async with Engine(EngineConfig(**config), Short):
            pass


async def test_a_server_that_is_down_is_an_error_of_entering() -> None:
    """Entering raises the server's error, and closes what was opened."""
    transport = ScriptedTransport([], connect_error=ServerError("down"))
    with pytest.raises(ServerError, match="down"):
        async with Engine(EngineConfig(transport="scripted"), Short, transport=transport):
            pass
    assert transport.closed


async def test_too_many_calls_that_hang_end_the_run() -> None:
    """Each holds a thread for ever: the error says how many, and which setting allows how many."""
    let_go = threading.Event()

    class Hangs(Env):
        def reset(self, task: Any) -> list[Message]:
            let_go.wait(60)
            return [user("late")]

    transport = ScriptedTransport([reply("x")] * 9)
    config = EngineConfig(concurrency=2, step_timeout_s=0.01, max_abandoned_threads=3)
    running = Engine(config, Hangs, transport=transport)
    async with running:
        try:
            with pytest.raises(RolloutError, match=r"4 calls of .*\(max_abandoned_threads\)"):
                await collect(running, 50)
        finally:
            let_go.set()
    assert running.stats().failed < 50


class Other(Short):
    """Another environment: its reward tells."""

    def __init__(self, reward: float = 5.0) -> None:
        self.reward = reward

    async def step(self, message: Message) -> Step:
        return Step(done=True, reward=self.reward)


async def test_a_stream_may_play_another_environment() -> None:
    """Beside the engine's own, over the same slots; without one said, the engine's is played."""
    running, _ = engine(concurrency=3)
    async with running:
        async with anyio.create_task_group() as beside:
            rewards: dict[str, list[float]] = {}

            async def play(name: str, **options: Any) -> None:
                groups = await collect(running, 4, **options)
                rewards[name] = [rollout.reward for group in groups for rollout in group.rollouts]

            beside.start_soon(play, "own")
            beside.start_soon(lambda: play("other", env=Other, evaluation=True))
            beside.start_soon(lambda: play("made", env=lambda: Other(2.0)))
        assert rewards == {"own": [1.0] * 4, "other": [5.0] * 4, "made": [2.0] * 4}
        assert running.stats().most_running <= 3


async def test_submissions_may_play_different_environments() -> None:
    """Each submission its own, in one engine and side by side."""
    running, _ = engine(concurrency=2)
    async with running:
        submitted = [await running.submit({"n": n}, env=env) for n, env in enumerate((None, Other, lambda: Other(2.0)))]
        groups = [await submission.result() for submission in submitted]
        assert [group.rollouts[0].reward for group in groups] == [1.0, 5.0, 2.0]
        (again,) = [await (await running.submit({"n": 4}, env=Other, rollouts=2)).result()]
        assert again.rewards == [5.0, 5.0]


@pytest.mark.parametrize("env", ["echo", 3, Short()])
async def test_what_makes_no_environment_is_refused(env: Any) -> None:
    """One line, before anything is played, also as the engine's own."""
    running, transport = engine()
    async with running:
        with pytest.raises(ConfigError, match="env must be a class of environments, or a function that makes one"):
            await collect(running, 1, env=env)
        with pytest.raises(ConfigError, match="env must be"):
            await running.submit({"n": 1}, env=env)
    with pytest.raises(ConfigError, match="env must be"):
        Engine(EngineConfig(), env)
    assert transport.requests == []
