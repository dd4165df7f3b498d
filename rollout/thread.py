"""The engine for a synchronous trainer: its event loop in a thread of its own.

with EngineThread(EngineConfig(), GuessNumber) as engine:
    for group in engine.stream(tasks, rollouts_per_task=8):
        train(group.samples())

The rollouts go on while the trainer computes, for as long as it takes; admission waits as in `Engine.stream`. Streams
and submissions end as those of an `Engine` do (see `rollout.schedule.stream`). Control-C is a KeyboardInterrupt where
the trainer waits: it gives up the stream that is waited for. What had finished is in `untaken`, also after the engine
is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self, TypeVar

from rollout.agent import Endpoint
from rollout.codec.protocol import Codec
from rollout.config import EngineConfig
from rollout.engine import Engine
from rollout.env import Task
from rollout.histogram import Histogram
from rollout.loop.thread import LoopThread
from rollout.moved import forward_members
from rollout.observe.loggers import Logger
from rollout.observe.stats import Stats
from rollout.participant import Participant
from rollout.play.held import Held
from rollout.records import Group, Rollout
from rollout.schedule.group_reward import GroupReward
from rollout.schedule.hand_over import OnRollout
from rollout.schedule.submissions import Submission
from rollout.transport import InFlight, ServerInfo, Transport
from rollout.workers.launch import Launch

T = TypeVar("T")


class ThreadStream(Iterator[Group]):
    """A stream's groups, for a plain loop. To be read by one thread at a time."""

    def __init__(self, runner: _Runner, groups: AsyncGenerator[Group]) -> None:
        self._runner = runner
        self._groups = groups
        self._reading = threading.Lock()

    def __next__(self) -> Group:
        """Raises what ended the stream, and EngineClosed once the engine is closed."""
        if not self._reading.acquire(blocking=False):
            raise RuntimeError("another thread reads this stream: one at a time, or a stream for each")
        try:
            group = self._runner.call(self._following, unclaimed=self._unclaimed)
        finally:
            self._reading.release()
        if group is None:
            raise StopIteration
        return group

    def close(self) -> None:
        """Ends what runs of it. What had finished is in `untaken`."""
        if self._runner.open:  # else the engine has ended it
            self._runner.call(self._groups.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Whichever thread finds it unused must not wait, and may be the loop's.
        with contextlib.suppress(Exception):
            self._runner.end_unread(self._groups)

    async def _following(self) -> Group | None:
        return await anext(self._groups, None)

    def _unclaimed(self, group: Group | None) -> None:
        self._runner.keep_unclaimed([group] if group is not None else [])


class ThreadSubmission:
    """As `Submission`, for a thread that waits."""

    def __init__(self, runner: _Runner, submission: Submission) -> None:
        self._runner = runner
        self._submission = submission

    def __repr__(self) -> str:
        return f"<ThreadSubmission {self._submission!r}>"

    @property
    def task_index(self) -> int:
        """As `Submission.task_index`."""
        return self._submission.task_index

    @property
    def done(self) -> bool:
        """As `Submission.done`."""
        return self._submission.done

    def result(self) -> Group:
        """As `Submission.result`. Control-C ends the waiting; the group is in `untaken` then."""
        if not self._runner.open and self.done:
            return self._runner.taken(self._submission)
        return self._runner.call(self._submission.result, unclaimed=lambda group: self._runner.keep_unclaimed([group]))

    def cancel(self) -> None:
        """As `Submission.cancel`."""
        if self._runner.open:  # else the engine has ended it
            self._runner.now(self._submission.cancel)

    def __call__(self) -> Group:
        """As `result`, as it was asked for until now."""
        warnings.warn("submission() is submission.result() now; it goes with the next release", DeprecationWarning, 2)
        return self.result()


class ThreadHeld(AbstractContextManager["ThreadHeld"]):
    """As `rollout.play.held.Held`, for a thread."""

    def __init__(self, runner: _Runner, held: Held) -> None:
        self._runner = runner
        self._held = held

    def __repr__(self) -> str:
        return f"<ThreadHeld {self._held!r}>"

    def __enter__(self) -> Self:
        self._runner.call(self._held.__aenter__)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._runner.call(lambda: self._held.__aexit__(*exc_info))

    @property
    def endpoint(self) -> Endpoint:
        """As `Held.endpoint`."""
        return self._held.endpoint

    @property
    def rollout(self) -> Rollout:
        """As `Held.rollout`."""
        return self._held.rollout

    def finish(
        self, reward: float = 0.0, *, metrics: Mapping[str, float] = {}, rewards: Mapping[str, float] = {}
    ) -> None:
        """As `Held.finish`."""
        self._held.finish(reward, metrics=metrics, rewards=rewards)


class EngineThread(AbstractContextManager["EngineThread"]):
    """An `Engine` whose methods block. Any thread may call them but the engine's own."""

    def __init__(
        self,
        config: EngineConfig,
        make_env: Callable[[], Participant],
        *,
        transport: Transport | None = None,
        launch: Launch | None = None,
    ) -> None:
        """As `Engine`."""
        self._engine = Engine(config, make_env, transport=transport, launch=launch)
        self.config = self._engine.config
        self._runner = _Runner(self._engine)

    def __repr__(self) -> str:
        return f"<EngineThread {self._engine}>"

    def __enter__(self) -> Self:
        """Starts the thread, connects, and loads the tokenizer. Raises ServerError, ConfigError."""
        self._runner.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        """Ends what runs, closes its requests, and ends the thread. What had finished is in `untaken`."""
        self._runner.end(*exc_info)

    @property
    def open(self) -> bool:
        """As `Engine.open`."""
        return self._runner.open

    @property
    def server(self) -> ServerInfo:
        """As `Engine.server`."""
        return self._engine.server

    @property
    def codec(self) -> Codec | None:
        """As `Engine.codec`."""
        return self._engine.codec

    @property
    def weight_version(self) -> str | None:
        """As `Engine.weight_version`."""
        return self._engine.weight_version

    def stream(
        self,
        tasks: Iterable[Task] | AsyncIterable[Task],
        *,
        env: Callable[[], Participant] | None = None,
        agent: Callable[[], Participant] | None = None,
        rollouts_per_task: int = 1,
        skip: Container[tuple[int, int]] = (),
        on_rollout: OnRollout | None = None,
        keep: Callable[[Group], bool] | None = None,
        group_reward: GroupReward | None = None,
        evaluation: bool = False,
        share: float = 1.0,
        ahead: int | None = None,
    ) -> ThreadStream:
        """As `Engine.stream`. Leaving the loop early ends the stream's requests."""
        groups = self._engine.stream(
            tasks,
            env=env,
            agent=agent,
            rollouts_per_task=rollouts_per_task,
            skip=skip,
            on_rollout=on_rollout,
            keep=keep,
            group_reward=group_reward,
            evaluation=evaluation,
            share=share,
            ahead=ahead,
        )
        return ThreadStream(self._runner, groups)

    def endpoint(
        self, task: Task | None = None, *, task_index: int | None = None, member: int = 0, evaluation: bool = False
    ) -> ThreadHeld:
        """As `Engine.endpoint`, for a plain `with`."""
        held = self._engine.endpoint(task, task_index=task_index, member=member, evaluation=evaluation)
        return ThreadHeld(self._runner, held)

    @property
    def untaken(self) -> list[Group]:
        """As `Engine.untaken`: what was played and not taken. There also after the engine was closed."""
        self._runner.settle()
        return self._engine.untaken

    def take_untaken(self) -> list[Group]:
        """As `Engine.take_untaken`."""
        self._runner.settle()
        return self._engine.take_untaken()

    def submit(
        self,
        task: Task,
        *,
        env: Callable[[], Participant] | None = None,
        agent: Callable[[], Participant] | None = None,
        rollouts: int = 1,
    ) -> ThreadSubmission:
        """As `Engine.submit`."""
        submission = self._runner.call(lambda: self._engine.submit(task, env=env, agent=agent, rollouts=rollouts))
        return ThreadSubmission(self._runner, submission)

    def collect(self, count: int) -> list[Group]:
        """As `Engine.collect`."""
        return self._runner.collect(count)

    def cancel(self) -> None:
        """As `Engine.cancel`."""
        self._runner.now(self._engine.cancel)

    def stop_admitting(self) -> None:
        """As `Engine.stop_admitting`."""
        self._runner.now(self._engine.stop_admitting)

    def pause(self, in_flight: InFlight = "keep") -> None:
        """As `Engine.pause`."""
        self._runner.call(lambda: self._engine.pause(in_flight))

    def resume(self) -> None:
        """As `Engine.resume`."""
        self._runner.call(self._engine.resume)

    def update_weights(
        self, version: str | int, path: str | Path | None = None, *, in_flight: InFlight = "keep"
    ) -> None:
        """As `Engine.update_weights`."""
        self._runner.call(lambda: self._engine.update_weights(version, path, in_flight=in_flight))

    def log_to(self, *loggers: Logger, groups: int = 0) -> None:
        """As `Engine.log_to`."""
        if self.open:
            self._runner.now(lambda: self._engine.log_to(*loggers, groups=groups))
        else:
            self._engine.log_to(*loggers, groups=groups)

    def stats(self) -> Stats:
        """As `Engine.stats`."""
        return self._runner.now(self._engine.stats) if self.open else self._engine.stats()

    def first_tokens(self) -> Histogram | None:
        """As `Engine.first_tokens`."""
        return self._runner.call(self._engine.first_tokens)


forward_members(EngineThread)


class _Runner:
    """An engine in its thread: how the plain world asks something of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread: LoopThread | None = None
        """There once it was started, also when it has ended."""
        self._ending: set[asyncio.Task[None]] = set()
        """Streams that nobody reads any more, while they end."""

    def __repr__(self) -> str:
        return f"<_Runner {self._thread}>"

    @property
    def open(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._thread is not None and self._thread.open

    def start(self) -> None:
        """Once. Raises what entering the engine raises."""
        if self._thread is not None:
            raise RuntimeError("an EngineThread is entered once: make another")
        self._thread = LoopThread(self._engine, name="rollout-engine")
        self._thread.__enter__()

    def end(self, *exc_info: Any) -> None:
        """Leaves the engine, and ends the thread."""
        if self._thread is not None:
            self._thread.__exit__(*exc_info)

    def call(self, function: Callable[[], Awaitable[T]], *, unclaimed: Callable[[T], object] | None = None) -> T:
        """Has something awaited in the engine's loop, and waits for it: see `LoopThread.call`."""
        if self._thread is None:
            raise RuntimeError("enter the engine first: with EngineThread(...) as engine")
        return self._thread.call(function, unclaimed=unclaimed)

    def now(self, function: Callable[[], T]) -> T:
        """Has something called in the engine's loop, and waits for it."""

        async def called() -> T:
            return function()

        return self.call(called)

    def collect(self, count: int) -> list[Group]:
        """See `Engine.collect`, also when the engine is closed."""
        if self._thread is not None and not self.open:
            return self._engine._streams.collected(count)
        return self.call(lambda: self._engine.collect(count), unclaimed=self.keep_unclaimed)

    def taken(self, submission: Submission) -> Group:
        """The result of one that is done, when the engine is closed."""
        return submission._state.take()

    def keep_unclaimed(self, groups: list[Group]) -> None:
        """Keeps what came when its caller had been interrupted."""
        self._engine._streams.keep_untaken(groups)

    def end_unread(self, groups: AsyncGenerator[Group]) -> None:
        """Ends a stream that nobody reads any more, without waiting."""
        if self._thread is not None:
            self._thread.tell(lambda: self._end(groups))

    def _end(self, groups: AsyncGenerator[Group]) -> None:
        async def close() -> None:
            await groups.aclose()

        task = asyncio.get_running_loop().create_task(close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def settle(self) -> None:
        """Waits for streams that are ending."""

        async def settled() -> None:
            if self._ending:
                await asyncio.wait(self._ending)

        if self.open:
            self.call(settled)
