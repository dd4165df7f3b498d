"""What rollouts share: entered once in a process that plays, in one task that also leaves it."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import anyio
import pydantic
import pytest

from rollout import Engine, EngineConfig, Env, Group, Message, Step, user
from rollout.errors import ConfigError, UserCodeFailed
from rollout.log import handled_by
from rollout.process import blocked
from rollout.records import FailureKind
from rollout.registry import NamedEnv
from tests.log_kit import capture_logs
from transports.scripted import ScriptedTransport, Stalled, reply

CONFIG: dict[str, Any] = {"transport": "scripted", "renderer": "server", "concurrency": 4}


def engine(make_env: Callable[[], Env], *entries: Any, **config: Any) -> Engine:
    transport = ScriptedTransport(entries or [reply("x") for _ in range(50)])
    transport._info.can_tokenize = True
    return Engine(EngineConfig(**{**CONFIG, **config}), make_env, transport=transport)


async def collect(running: Engine, tasks: int, **options: Any) -> list[Group]:
    return [group async for group in running.stream([{"n": n} for n in range(tasks)], **options)]


class Base(Env):
    """One turn."""

    def __init__(self, image: Any = "plain", limit: int = 1) -> None:
        self.had = self.shared is not None
        self.image, self.limit = image, limit

    def reset(self, task: Any) -> list[Message]:
        self.shared["lent"] += 1
        return [user("hello")]

    def step(self, message: Message) -> Step:
        return Step(
            done=True, metrics={"limit": self.limit, "had": self.had}, reward=float(self.shared["image"] == self.image)
        )


class Shared(Base):
    """Says what became of its setups."""

    said: ClassVar[list[Any]]

    @classmethod
    @asynccontextmanager
    async def setup(cls, image: Any) -> AsyncIterator[dict[str, Any]]:
        task = asyncio.current_task()
        cls.said.append(("entered", image))
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield {"image": image, "lent": 0}
            group.cancel_scope.cancel()
        assert asyncio.current_task() is task
        cls.said.append(("left", image))


@pytest.fixture(autouse=True)
def said() -> list[Any]:
    Shared.said = []
    return Shared.said


class Named:
    """A function that makes environments, of which nothing can be told before it is called."""

    def __call__(self) -> Env:
        return Shared("a", limit=3)


@pytest.mark.parametrize(
    ("make_env", "had"),
    [
        (functools.partial(functools.partial(Shared, limit=2), "a"), True),
        (functools.partial(Shared, image="a"), True),
        (NamedEnv("tests.rollout.play.test_setups:Shared", {"image": "a"}), True),
        (Named(), False),
        (lambda: Shared("a"), False),
    ],
)
async def test_it_is_entered_once_with_the_arguments_that_it_takes(make_env: Any, had: bool, said: list[Any]) -> None:
    """Whatever makes the objects; each has what it gave, in its constructor where its class is known before."""
    async with engine(make_env) as running:
        assert said == []
        groups = await collect(running, 3, rollouts_per_task=2)
        groups += await collect(running, 2)
        assert said == [("entered", "a")]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert [rollout.reward for rollout in rollouts] == [1.0] * 8
    assert {rollout.metrics["had"] for rollout in rollouts} == {had}
    assert said == [("entered", "a"), ("left", "a")]


async def test_other_arguments_are_another_setup(said: list[Any]) -> None:
    """Those that it does not take make no difference; a default of the constructor's is an argument, too."""
    async with engine(Shared) as running:
        await collect(running, 1)
        await collect(running, 1, env=lambda: Shared(limit=7))
        await collect(running, 1, env=lambda: Shared("other"))
    assert said == [("entered", "plain"), ("entered", "other"), ("left", "other"), ("left", "plain")]


async def test_a_setup_takes_no_ones_time() -> None:
    """The deadlines of a rollout and of its steps do not count what the first ones wait for."""
    begun, goes_on = anyio.Event(), anyio.Event()

    class Slow(Base):
        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[dict[str, Any]]:
            begun.set()
            await goes_on.wait()
            yield {"lent": 0, "image": "plain"}

    groups: list[Group] = []
    async with (
        engine(Slow, episode_timeout_s=30.0, step_timeout_s=30.0) as running,
        anyio.create_task_group() as beside,
    ):

        async def play() -> None:
            groups.extend(await collect(running, 1))

        beside.start_soon(play)
        await begun.wait()
        for deadline in running._player.weights.clock._deadlines:
            raise AssertionError(f"{deadline} runs")
        goes_on.set()
    assert groups[0].rollouts[0].ok


@pytest.mark.parametrize("error", [RuntimeError("no docker"), SystemExit(3), KeyboardInterrupt()])
async def test_one_that_raises_ends_the_run_and_is_named(error: BaseException) -> None:
    """With its traceback as the cause; what was played is kept, what waited is cancelled, and nothing plays later."""

    class Broken(Base):
        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[None]:
            raise error
            yield

    running = engine(Shared, reply("x"), Stalled())
    with capture_logs() as logs:
        async with running:
            (first,) = await collect(running, 1)
            with pytest.raises(
                UserCodeFailed, match=f"environment Broken: setup raised {type(error).__name__}"
            ) as seen:
                await collect(running, 3, env=Broken)
            with pytest.raises(UserCodeFailed):
                await collect(running, 1)
    assert first.rollouts[0].ok
    assert seen.value.__cause__ is error
    assert [entry["exc_info"] for entry in logs if entry["event"] == "setup_failed"] == [error]
    for group in running.untaken:
        assert {rollout.failure.kind for rollout in group.rollouts if rollout.failure} == {FailureKind.CANCELLED}


async def test_a_setup_that_says_what_is_configured_wrongly_is_told_so() -> None:
    """In its own words alone: the user's mistake is none of the code's, and no traceback helps."""

    class Unreachable(Base):
        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[None]:
            raise ConfigError("no server at http://there: start it")
            yield

    running = engine(Unreachable)
    with capture_logs() as logs:
        async with running:
            with pytest.raises(UserCodeFailed) as seen:
                await collect(running, 1)
    assert str(seen.value) == "environment Unreachable: no server at http://there: start it"
    assert seen.value.__cause__ is None
    assert [entry.get("exc_info") for entry in logs if entry["event"] == "setup_failed"] == [None]


class NotAManager(Base):
    @classmethod
    async def setup(cls) -> AsyncIterator[None]:  # type: ignore[override]
        yield


class AMethod(Base):
    @asynccontextmanager
    async def setup(self) -> AsyncIterator[None]:  # type: ignore[override]
        yield


class Needy(Base):
    @classmethod
    @asynccontextmanager
    async def setup(cls, unknown: int) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize(
    ("make_env", "said_of_it"),
    [
        (NotAManager, "it must give an asynchronous context manager, not async_generator .is @asynccontextmanager"),
        (AMethod, "it must be a classmethod that gives an asynchronous context manager"),
        (Needy, "missing 1 required positional argument: 'unknown'"),
    ],
)
async def test_what_is_no_setup_is_said(make_env: Callable[[], Env], said_of_it: str) -> None:
    """In one line that names the class and the remedy."""
    async with engine(make_env) as running:
        with pytest.raises(UserCodeFailed, match=said_of_it):
            await collect(running, 1)


async def test_what_breaks_later_ends_the_run_with_its_reason() -> None:
    """A task of the setup's that fails is why, not the cancellation that it meant."""
    fail = anyio.Event()

    class Breaking(Base):
        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[Any]:
            async def fails() -> None:
                await fail.wait()
                raise OSError("the pool is gone")

            async with anyio.create_task_group() as group:
                group.start_soon(fails)
                yield {"lent": 0, "image": ""}

    async with engine(Breaking, reply("x"), Stalled()) as running:
        await collect(running, 1)
        stream = running.stream([{"n": 1}])
        fail.set()
        with pytest.raises(UserCodeFailed, match="environment Breaking: setup raised") as seen:
            async for _ in stream:
                pass
        assert "the pool is gone" in repr(seen.value.__cause__)


async def test_a_run_that_is_cancelled_meanwhile_leaves_what_it_entered() -> None:
    """An interrupted setup is cancelled in its own task, and cleans up there."""
    cleaned: list[bool] = []

    class Waiting(Base):
        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[None]:
            try:
                begun.set()
                await anyio.sleep_forever()
                yield
            finally:
                cleaned.append(True)

    begun = anyio.Event()
    async with anyio.create_task_group() as group:

        async def play() -> None:
            async with engine(Waiting) as running:
                await collect(running, 1)

        group.start_soon(play)
        await begun.wait()
        group.cancel_scope.cancel()
    assert cleaned == [True]


async def test_an_engine_that_plays_nothing_enters_none(said: list[Any]) -> None:
    """Nor does an environment that has no setup of its own know of it."""
    async with engine(Shared):
        pass
    assert said == []


async def test_arguments_that_cannot_be_compared_are_told_by_who_they_are(said: list[Any]) -> None:
    """Such as arrays: one object is one setup."""

    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

    one, two = Odd(), Odd()
    async with engine(lambda: Shared(one)) as running:
        await collect(running, 2)
        await collect(running, 1, env=lambda: Shared(two))
    assert [event for event, _ in said] == ["entered", "entered", "left", "left"]


async def test_ever_other_arguments_are_said(said: list[Any]) -> None:
    """Sixty setups of a class are mostly a mistake."""
    numbers = iter(range(1_000))
    with capture_logs() as logs:
        async with engine(lambda: Shared(f"image {next(numbers)}"), *[reply("x")] * 70) as running:
            await collect(running, 66)
    assert [entry["env"] for entry in logs if entry["event"] == "many_setups"] == ["Shared"]
    assert len(said) == 2 * 66


async def test_an_environment_that_keeps_its_shared_to_itself_is_its_rollouts_failure() -> None:
    """A property that cannot be set is read as what it is: the environment's fault, not ours."""

    class Closed(Base):
        @property
        def shared(self) -> Any:
            return None

        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[None]:
            yield

    async with engine(Closed) as running:
        (group,) = await collect(running, 1)
    failure = group.rollouts[0].failure
    assert failure is not None
    assert (failure.kind, "env.shared cannot be read: AttributeError" in failure.message) == ("environment", True)


async def test_it_is_left_when_the_engine_is_cancelled(said: list[Any]) -> None:
    """In its own task, to its end, whatever cancels the engine."""
    async with anyio.create_task_group() as group:

        async def play() -> None:
            async with engine(Shared, reply("x"), Stalled()) as running:
                await collect(running, 1)
                group.cancel_scope.cancel()
                await collect(running, 1)

        group.start_soon(play)
    assert said == [("entered", "plain"), ("left", "plain")]


async def test_no_object_is_made_where_the_setup_failed(said: list[Any]) -> None:
    """What its constructor would have taken is not taken, where the class is known before."""
    made: list[int] = []

    class Broken(Base):
        def __init__(self) -> None:
            made.append(1)

        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[None]:
            raise OSError("no docker")
            yield

    async with engine(Broken) as running:
        with pytest.raises(UserCodeFailed, match="no docker"):
            await collect(running, 4)
    assert made == []


async def test_a_model_of_pydantic_may_be_an_environment() -> None:
    """It replaces what an object holds when it is made: its arguments are known from its class."""

    class Modelled(pydantic.BaseModel, Base):
        image: str = ""

        @classmethod
        @asynccontextmanager
        async def setup(cls, image: str) -> AsyncIterator[dict[str, Any]]:
            yield {"image": image, "lent": 0}

        def reset(self, task: Any) -> list[Message]:
            return [user(self.shared["image"])]

        def step(self, message: Message) -> Step:
            return Step(done=True)

    async with engine(functools.partial(Modelled, image="mine")) as running:
        (group,) = await collect(running, 1)
    assert [message.text for message in group.rollouts[0].messages[:1]] == ["mine"], group.rollouts[0].failure


@pytest.mark.parametrize("given", [property(lambda env: 1 / 0), 5, ((), 5), ((), {}, 1)])
async def test_arguments_that_cannot_be_read_are_the_rollouts_failure(given: Any) -> None:
    """What `setup` would be called with is the environment's own, and may be anything."""

    class Odd(Shared):
        _given = given

        def __new__(cls) -> Odd:
            return object.__new__(cls)

    async with engine(lambda: Odd()) as running:
        (group,) = await collect(running, 1)
    failure = group.rollouts[0].failure
    assert failure is not None
    assert (failure.kind, failure.message.split(":")[0]) == ("environment", "the environment cannot be read")


async def test_a_run_that_is_stopped_does_not_wait_for_a_setup() -> None:
    """What waits for it is cancelled at once, to be played again; the setup is cancelled in its own task."""
    begun, cleaned = anyio.Event(), list[str]()

    class Hangs(Base):
        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[None]:
            try:
                begun.set()
                await anyio.sleep_forever()
                yield
            finally:
                cleaned.append("cleaned")

    groups: list[Group] = []
    async with engine(Hangs) as running:

        async def play() -> None:
            groups.extend(await collect(running, 3))

        async with anyio.create_task_group() as beside:
            beside.start_soon(play)
            await begun.wait()
            running.stop_admitting()
        assert cleaned == ["cleaned"]
    failures = [rollout.failure for group in groups for rollout in group.rollouts]
    assert len(failures) == 3
    for failure in failures:
        assert failure is not None
        assert failure.kind is FailureKind.CANCELLED
        assert failure.message == "its setup was not entered before the run was stopped"


async def test_where_a_setup_waits_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its class and its line, though `asynccontextmanager` hides it; and again while it is being left."""
    monkeypatch.setattr(blocked, "FIRST_S", 0.01)
    waiting = asyncio.Queue[str]()
    loop = asyncio.get_running_loop()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (line := record.getMessage()).startswith("waiting for "):
                loop.call_soon_threadsafe(waiting.put_nowait, line)

    async def said() -> None:
        lines.append(await waiting.get())
        while not waiting.empty():
            waiting.get_nowait()

    class Slow(Base):
        @classmethod
        @asynccontextmanager
        async def setup(cls) -> AsyncIterator[dict[str, Any]]:
            await said()
            yield {"lent": 0, "image": "plain"}
            await said()

    lines: list[str] = []
    with handled_by(Handler(), logging.WARNING):
        async with engine(Slow) as running:
            await collect(running, 1)
    assert [line.split("(")[0] for line in lines] == [
        "waiting for Slow.setup, 0 s ",
        "waiting for Slow.setup to close, 0 s ",
    ]
    assert all(line.endswith(", in said)") or line.endswith(", in setup)") for line in lines)
