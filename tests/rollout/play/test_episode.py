"""Every episode ends with a reason or a failure, and every environment is closed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from rollout import Env, Message, Rollout, Step, tool_spec, user
from rollout.config import EngineConfig
from rollout.errors import ServerBusy
from rollout.play.episode import Episode
from rollout.play.host import Hosts
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.process.threads import Threads
from rollout.records import FailureKind, Job, StopReason
from rollout.tokens.prefix import FallbackReason
from tests.log_kit import capture_logs
from tests.rollout.play.test_session import ByteCodec
from transports.scripted import Fault, ScriptedTransport, Stalled, reply


class Chat(Env):
    """Three turns; every hook can be replaced, and closings are counted."""

    def __init__(self, **hooks: Any) -> None:
        self.closed = 0
        self.turn = 0
        self.threads: set[int] = set()
        for name, hook in hooks.items():
            setattr(self, name, hook)

    def reset(self, task: Any) -> list[Message]:
        self.threads.add(threading.get_ident())
        return [user("hello")]

    def step(self, message: Message) -> Step:
        self.turn += 1
        return Step(messages=[user("go on")], done=self.turn == 3, reward=1.0, metrics={"turn": self.turn})

    def close(self) -> None:
        self.closed += 1


def episode(env: Env, *entries: Any, stopping: Callable[[], bool] = lambda: False, **config: Any) -> Episode:
    settings = EngineConfig(verify=True, **config)
    transport = ScriptedTransport(entries or [reply(f"{i}") for i in range(9)])
    model = ServedModel(transport=transport, info=transport._info, codec=ByteCodec(), config=settings)
    job = Job(task_index=0, task_id="0-x", task={"a": 1}, member=2)
    hosts = Hosts(Threads(4))
    return Episode(job, lambda: env, Session(model, "s"), settings, hosts=hosts, stopping=stopping)


async def play(env: Chat, *entries: Any, **options: Any) -> Rollout:
    rollout = await episode(env, *entries, **options).play()
    assert env.closed == 1
    assert (rollout.stop is None) != (rollout.failure is None)
    return rollout


async def test_a_finished_episode_holds_everything() -> None:
    """Reward is the steps' sum, metrics are the last, and turns, messages and nodes are there."""
    rollout = await play(Chat())
    assert rollout.stop is StopReason.DONE
    assert rollout.reward == 3.0
    assert rollout.metrics == {"turn": 3.0}
    assert len(rollout.turns) == 3
    assert [message.role for message in rollout.messages] == ["user", "assistant"] * 3 + ["user"]
    assert rollout.id == "0-x-2"


async def test_an_environment_may_say_how_long_the_next_completion_is() -> None:
    """It is asked before each turn."""
    env = Chat()
    lengths = iter([5, None])

    def step(message: Message) -> Step:
        env.max_tokens = next(lengths, None)
        return Chat.step(env, message)

    env.step, env.max_tokens = step, 3  # type: ignore[method-assign]  # a hook
    playing = episode(env, max_tokens=64)
    await playing.play()
    transport = playing._session._model.transport
    assert isinstance(transport, ScriptedTransport)
    assert [request.max_tokens for request in transport.requests] == [3, 5, 64]


async def test_an_environment_can_rewrite_its_conversation() -> None:
    """A conversation in a step takes the place of the one so far: a retry extends, a summary starts anew."""
    steps = iter(
        [
            Step(conversation=[user("hello")]),
            Step(conversation=[user("summary")], messages=[user("go on")]),
            Step(done=True),
        ]
    )
    rollout = await play(Chat(step=lambda message: next(steps)))
    assert [turn.fallback for turn in rollout.turns] == [FallbackReason.FIRST_TURN, None, FallbackReason.NO_MATCH]
    assert [message.text for message in rollout.messages] == ["summary", "go on", "2"]


async def test_blocking_environments_run_in_threads() -> None:
    """A plain function runs off the event loop's thread."""
    env = Chat()
    await play(env)
    assert threading.get_ident() not in env.threads


async def test_an_environment_that_never_blocks_needs_no_thread() -> None:
    """It says so, and is called where the event loop runs, its awaitable answers included."""

    async def later() -> Step:
        return Step(done=True, reward=2.0)

    env = Chat(blocks=False, step=lambda message: later())
    rollout = await play(env)
    assert env.threads == {threading.get_ident()}
    assert rollout.reward == 2.0


async def test_async_environments_work_too() -> None:
    """Hooks that are coroutines are awaited."""

    async def step(message: Message) -> Step:
        return Step(done=True, reward=0.5)

    assert (await play(Chat(step=step))).reward == 0.5


async def test_score_replaces_the_sum() -> None:
    """A score over the whole conversation is the reward."""
    rollout = await play(Chat(score=lambda messages: len(messages) / 100))
    assert rollout.reward == 0.07


def raising(*args: Any) -> Any:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        ({"reset": raising}, "reset raised RuntimeError: boom"),
        ({"step": raising}, "step raised RuntimeError: boom"),
        ({"score": raising}, "score raised RuntimeError: boom"),
        ({"reset": lambda task: []}, "reset gave no message"),
        ({"reset": lambda task: "hi"}, "a list of messages, not str"),
        ({"reset": lambda task: [{"content": "x"}]}, "needs a role"),
        ({"step": lambda message: None}, "must return a Step, not NoneType"),
        ({"step": lambda message: Step()}, "nothing to answer"),
        ({"step": lambda message: Step(done=True, reward="much")}, "str where a number belongs"),  # type: ignore[arg-type]  # the fault under test
    ],
)
async def test_an_environments_fault_is_its_rollouts_failure(hooks: dict[str, Any], said: str) -> None:
    """Whatever an environment does wrong is named in the failure, and it is closed."""
    rollout = await play(Chat(**hooks))
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.ENVIRONMENT
    assert said in rollout.failure.message


async def test_an_environment_that_cannot_be_made_fails_its_rollout() -> None:
    """A constructor that raises is a failure; there is nothing to close."""
    player = episode(Chat())
    player._make_env = raising
    rollout = await player.play()
    assert rollout.failure is not None
    assert "boom" in rollout.failure.message


async def test_a_failed_close_does_not_spoil_a_rollout() -> None:
    """What was played stands when close raises."""

    class Untidy(Chat):
        def close(self) -> None:
            super().close()
            raise RuntimeError("boom")

    assert (await play(Untidy())).ok


async def test_a_transport_fault_is_the_rollouts_failure() -> None:
    """What was sampled before is kept, and the turn that failed is named."""
    rollout = await play(Chat(), reply("a"), Fault(ServerBusy("full")))
    assert rollout.failure is not None
    assert (rollout.failure.kind, rollout.failure.error, rollout.failure.turn) == ("transport", "ServerBusy", 2)
    assert len(rollout.turns) == 1
    assert rollout.nodes


async def test_a_step_that_takes_too_long_is_given_up() -> None:
    """A step's deadline fails the rollout, and close is called all the same."""

    async def step(message: Message) -> Step:
        await anyio.sleep_forever()
        raise AssertionError

    rollout = await play(Chat(step=step), step_timeout_s=0.2)  # making the object has it, too
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.TIMEOUT


async def test_an_episode_that_takes_too_long_is_given_up() -> None:
    """An episode's deadline ends a request that is never answered."""
    rollout = await play(Chat(), Stalled(), episode_timeout_s=0.2)
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.TIMEOUT


async def test_a_cancelled_episode_closes_its_environment() -> None:
    """Cancelling gives back what the environment took, and the record says cancelled."""
    env = Chat()
    player = episode(env, Stalled())
    transport = player._session._model.transport
    assert isinstance(transport, ScriptedTransport)
    async with anyio.create_task_group() as group:
        group.start_soon(player.play)
        await transport.wait_for(1)
        group.cancel_scope.cancel()
    assert env.closed == 1
    assert transport.cancelled == 1
    assert player.rollout.failure is not None
    assert player.rollout.failure.kind is FailureKind.CANCELLED


async def test_stopping_ends_after_the_current_turn() -> None:
    """A run that stops lets the running turn end and plays no other."""
    rollout = await play(Chat(), stopping=lambda: True)
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.CANCELLED


async def test_turns_can_be_limited() -> None:
    """`max_turns` ends an episode with its reason."""
    assert (await play(Chat(), max_turns=2)).stop is StopReason.MAX_TURNS


async def test_a_full_context_is_a_reason_not_a_failure() -> None:
    """Where the next turn does not fit, the rollout ends with `context_length` and keeps its reward."""
    rollout = await play(Chat(), max_model_len=60)
    assert rollout.stop is StopReason.CONTEXT_LENGTH
    assert rollout.reward == len(rollout.turns) == 2


def leaving(*args: Any) -> Any:
    raise SystemExit(3)


async def cancelling(*args: Any) -> Any:
    raise asyncio.CancelledError


@pytest.mark.parametrize("name", ["reset", "step", "score"])
@pytest.mark.parametrize(
    ("hook", "error"), [(leaving, "SystemExit"), (cancelling, "CancelledError"), (raising, "RuntimeError")]
)
@pytest.mark.parametrize("blocks", [True, False])
async def test_what_user_code_raises_is_logged_once_with_its_traceback(
    name: str, hook: Any, error: str, blocks: bool
) -> None:
    """The record has the exception's own name, the log has where it was raised."""
    with capture_logs() as logs:
        rollout = await play(Chat(blocks=blocks, **{name: hook}))
    assert rollout.failure is not None
    assert (rollout.failure.kind, rollout.failure.error) == (FailureKind.ENVIRONMENT, error)
    (said,) = logs
    assert (said["event"], said["rollout"], said["call"]) == ("environment_raised", rollout.id, name)
    assert type(said["exc_info"]).__name__ == error
    assert traceback.extract_tb(said["exc_info"].__traceback__)[-1].name == hook.__name__


async def test_a_timeout_error_of_its_own_is_no_deadline_of_ours() -> None:
    """It is reported as what the environment raised."""

    async def step(message: Message) -> Step:
        raise TimeoutError("the tool's own")

    rollout = await play(Chat(step=step), step_timeout_s=60, episode_timeout_s=60)
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.ENVIRONMENT
    assert rollout.failure.message == "step raised TimeoutError: the tool's own"


async def test_rewards_that_add_up_to_no_number_are_the_environments_failure() -> None:
    """Each is finite, their sum is not; what was added up before stands."""
    rollout = await play(Chat(step=lambda message: Step(messages=[user("more")], reward=1.7e308)))
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.ENVIRONMENT
    assert rollout.failure.message == "the rewards of its steps add up to inf, which is no finite number"
    assert (rollout.step_reward, rollout.reward, len(rollout.turns)) == (1.7e308, 1.7e308, 2)


async def test_a_close_that_cannot_be_read_leaves_the_rollout_as_it_was() -> None:
    """A property that raises is said once, as a close that raises is."""

    class Closed(Chat):
        @property
        def close(self) -> Any:
            raise RuntimeError("boom")

    with capture_logs() as logs:
        rollout = await episode(Closed()).play()
    assert rollout.ok
    (said,) = [entry for entry in logs if entry["event"] == "env_close_failed"]
    assert said["error"] == "env.close cannot be read: RuntimeError: boom"


@pytest.mark.parametrize("name", ["tools", "max_tokens", "blocks", "score", "step", "reset"])
async def test_an_attribute_that_raises_is_its_rollouts_failure(name: str) -> None:
    """Each may be a property; the environment is closed all the same."""

    class Broken(Chat):
        pass

    setattr(Broken, name, property(raising, lambda env, value: None))
    rollout = await play(Broken())
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.ENVIRONMENT
    assert "RuntimeError: boom" in rollout.failure.message


async def test_what_is_made_must_be_an_environment() -> None:
    """A factory that forgot its return is named."""
    playing = episode(Chat())
    playing._make_env = lambda: None  # type: ignore[assignment, return-value]
    rollout = await playing.play()
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.ENVIRONMENT
    assert "NoneType" in rollout.failure.message


async def test_a_context_that_breaks_ends_the_turn_under_way() -> None:
    """A rollout whose server of tools is gone does not wait for the model's answer; the cause is told."""
    stack = contextlib.AsyncExitStack()
    asked = asyncio.Event()

    async def dies() -> None:
        await asked.wait()
        raise ConnectionError("the server of tools is gone")

    async def reset(task: Any) -> list[Message]:
        group = await stack.enter_async_context(anyio.create_task_group())
        group.start_soon(dies)
        return [user("hello")]

    class Holds(Chat):
        async def close(self) -> None:  # type: ignore[override]
            super().close()
            await stack.aclose()

    env = Holds(reset=reset)
    playing = episode(env, Stalled())
    transport = playing._session._model.transport
    assert isinstance(transport, ScriptedTransport)
    async with anyio.create_task_group() as group:
        group.start_soon(playing.play)
        await transport.wait_for(1)
        asked.set()
    failure = playing.rollout.failure
    assert failure is not None
    assert failure.kind is FailureKind.ENVIRONMENT
    assert "ConnectionError: the server of tools is gone" in failure.message
    assert (env.closed, transport.cancelled) == (1, 1)


async def test_close_may_take_its_time() -> None:
    """What ended well is closed to the end, however long our own grace for cancelled rollouts is."""
    began, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Chat):
        async def close(self) -> None:  # type: ignore[override]
            began.set()
            await go_on.wait()
            super().close()

    env = Slow()
    async with anyio.create_task_group() as group:
        group.start_soon(episode(env, close_timeout_s=None).play)
        await began.wait()
        go_on.set()
    assert env.closed == 1


async def test_a_close_that_is_cut_leaves_the_rollout_as_it_was() -> None:
    """It is said, by the setting's name."""

    async def close() -> None:
        await anyio.sleep_forever()

    with capture_logs() as logs:
        rollout = await episode(Chat(close=close), close_timeout_s=0.01).play()
    assert rollout.ok
    assert [entry["event"] for entry in logs] == ["env_close_cut"]


async def test_a_step_knows_how_the_answer_ended() -> None:
    """A cut-off answer is told from one that the model ended; before the first there is none."""
    seen: list[str | None] = []

    class Sees(Chat):
        def reset(self, task: Any) -> list[Message]:
            seen.append(self.finish_reason)
            return super().reset(task)

        def step(self, message: Message) -> Step:
            seen.append(self.finish_reason)
            return super().step(message)

    class SeesAsynchronously(Chat):
        async def reset(self, task: Any) -> list[Message]:  # type: ignore[override]
            seen.append(self.finish_reason)
            return super().reset(task)

        async def step(self, message: Message) -> Step:  # type: ignore[override]
            seen.append(self.finish_reason)
            return super().step(message)

    for kind in (Sees, SeesAsynchronously):
        seen.clear()
        await play(kind(), reply("a"), reply("b", finish_reason="length"), reply("c"))
        assert seen == [None, "stop", "length", "stop"]


async def test_an_environment_that_takes_no_attribute_is_stepped_all_the_same() -> None:
    """It is not told how its answer ended, and plays."""

    class Closed(Chat):
        finish_reason = property(lambda self: None)

    assert (await play(Closed())).reward == 3.0


async def test_a_turn_keeps_what_its_step_gave() -> None:
    """Each turn has its own reward and metrics; the sum and the last values are the rollout's."""
    rollout = await play(Chat())
    assert [(turn.reward, turn.metrics) for turn in rollout.turns] == [(1.0, {"turn": float(i)}) for i in (1, 2, 3)]
    assert (rollout.step_reward, rollout.score, rollout.group_reward, rollout.reward) == (3.0, None, None, 3.0)


async def test_a_score_decides_and_the_steps_sum_stays() -> None:
    """The record has both, each under its own name."""
    rollout = await play(Chat(score=lambda messages: 0.25))
    assert (rollout.step_reward, rollout.score, rollout.reward) == (3.0, 0.25, 0.25)
    assert [turn.reward for turn in rollout.turns] == [1.0] * 3


async def test_what_was_stepped_before_a_failure_is_kept() -> None:
    """A rollout that fails in its third turn has the rewards of two."""
    rollout = await play(Chat(), reply("a"), reply("b"), Fault(ServerBusy("full")))
    assert rollout.failure is not None
    assert ([turn.reward for turn in rollout.turns], rollout.step_reward) == ([1.0, 1.0], 2.0)


@pytest.mark.parametrize("by", ["object", "property", "task"])
async def test_tools_may_be_an_objects_own(by: str) -> None:
    """Set in its constructor, given by a property, or set in reset for the task: each is what is sent."""

    def look(place: str) -> str:
        """Looks."""
        return place

    spec = tool_spec(look)

    class ByProperty(Chat):
        tools = property(lambda self: [spec])

    class ByTask(Chat):
        def reset(self, task: Any) -> list[Message]:
            self.tools = [spec] * task["a"]
            return super().reset(task)

    env = {"object": lambda: Chat(tools=[spec]), "property": ByProperty, "task": ByTask}[by]()
    one = episode(env)
    rollout = await one.play()
    assert rollout.ok
    assert [list(root.tools) for root in rollout.roots] == [[spec]]
