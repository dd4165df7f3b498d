"""Several processes that play rollouts for one engine, each with its own event loop, connections and tokenizer.

The engine schedules as it does alone: admission, groups, retries, deadlines of stragglers and the stream of results are
its own, and only the playing of a rollout is elsewhere. A group's members go to one process, which keeps them on one
server. A process that dies costs the rollouts that it was playing, which fail as `process`, and is started again.

    wire     what is said, both ways
    hand     one process as it is seen here
    remote   one rollout that a process plays
    launch   how processes are started here, and what carries their frames
    worker   the process's side
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Self

import anyio
import anyio.abc
import structlog

from rollout import errors
from rollout.config import EngineConfig
from rollout.crew import wire
from rollout.crew.hand import Hand
from rollout.crew.launch import Launch, Worker, launch_process
from rollout.crew.remote import GRACE_S, RemoteEpisode
from rollout.env import Env
from rollout.episode import Job
from rollout.errors import ConfigError, RolloutError
from rollout.fleet import FleetStanding
from rollout.placement import Placement
from rollout.stats import Played
from rollout.weights import WeightsStanding

#: A process that dies so often in a row without having ended one rollout is not started again.
STRIKES = 3

Standing = tuple[WeightsStanding, FleetStanding | None]

_log = structlog.get_logger(__name__)


class Crew:
    """The processes, together."""

    def __init__(
        self,
        config: EngineConfig,
        make_env: Callable[[], Env],
        standing: Callable[[], Standing],
        *,
        on_gone: Callable[[RolloutError], None],
        launch: Launch = launch_process,
    ) -> None:
        """`standing` says how the engine stands; `on_gone` is called when no process is left."""
        self._config = config
        self._make_env = make_env
        self._standing = standing
        self._on_gone = on_gone
        self._launch = launch
        self._hands = [Hand() for _ in range(config.processes)]
        self._placement = Placement(config.processes)
        self._returned = anyio.Event()
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()
        self._attending: anyio.abc.TaskGroup | None = None
        self._setup = b""
        self._stopping = False
        self.deaths = 0

    def __repr__(self) -> str:
        playing = sum(len(hand.playing) for hand in self._hands)
        return f"<Crew of {len(self._hands)}, {sum(self._placement.up)} up, {playing} rollouts>"

    async def __aenter__(self) -> Self:
        """Starts the processes, and waits until they have connected. Raises ServerError, ConfigError, RolloutError."""
        self._setup = wire.encode(wire.Setup(self._config, _pickled(self._make_env)))
        failed: list[RolloutError] = []

        async def start(hand: Hand) -> None:
            try:
                await self._start(hand)
            except RolloutError as error:
                failed.append(error)

        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end)
            async with anyio.create_task_group() as starting:
                for hand in self._hands:
                    starting.start_soon(start, hand)
            if failed:
                raise failed[0]
            self._attending = await stack.enter_async_context(anyio.create_task_group())
            for at in range(len(self._hands)):
                self._attending.start_soon(self._attend, at)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._attending is not None:
            self._attending.cancel_scope.cancel()
        await self._stack.aclose()

    def episode(self, job: Job, *, evaluation: bool) -> RemoteEpisode:
        """One rollout, ready to be played by one of the processes."""
        return RemoteEpisode(self, job, evaluation)

    def stop(self) -> None:
        """Running rollouts end after their current turn, as cancelled."""
        self._stopping = True
        for hand in self._hands:
            hand.send(wire.Stop())

    async def tell(self) -> None:
        """Has every process stand as the engine does now; returns when all do."""
        number, (weights, servers) = next(self._numbers), self._standing()
        told = []
        for hand in self._hands:
            if hand.worker is not None:
                hand.told[number] = anyio.Event()
                told.append(hand.told[number])
                hand.send(wire.Follow(number, weights, servers))
        for event in told:
            await event.wait()

    def played(self) -> list[Played]:
        """What each process has played, those that died included."""
        return [part for hand in self._hands for part in (hand.played, *hand.earlier)]

    async def hand_for(self, session: str, job: Job) -> Hand:
        """See `rollout.crew.remote.Hands`. Waits while every process is being started again."""
        while (at := self._placement.place(session, job.task_id, job.group_size)) is None:
            await self._returned.wait()
        return self._hands[at]

    def release(self, session: str) -> None:
        """See `rollout.crew.remote.Hands`."""
        self._placement.release(session)

    def next_number(self) -> int:
        """See `rollout.crew.remote.Hands`."""
        return next(self._numbers)

    async def _start(self, hand: Hand) -> None:
        """Raises RolloutError where the process cannot begin."""
        worker = await self._launch()
        try:
            worker.channel.send(self._setup)
            while (frame := await worker.channel.receive()) is not None:
                event = wire.decode_event(frame)
                if isinstance(event, wire.NotReady):
                    kind = getattr(errors, event.error, RolloutError)
                    raise (kind if issubclass(kind, RolloutError) else RolloutError)(event.message)
                if isinstance(event, wire.Ready):
                    hand.worker = worker
                    return
                hand.take(event)
            raise RolloutError(
                f"a process ended before it was ready: {await worker.ended()}; a script that starts processes must do "
                'so under `if __name__ == "__main__":`, since each of them imports it'
            )
        finally:
            if hand.worker is not worker:
                worker.channel.close()
                worker.kill()

    async def _attend(self, at: int) -> None:
        """Listens to a process; starts it again when it has ended."""
        hand = self._hands[at]
        while hand.worker is not None:
            while (frame := await hand.worker.channel.receive()) is not None:
                hand.take(wire.decode_event(frame))
            self._placement.up[at] = False
            how = await _end_of(hand.worker)
            _log.warning("process_ended", how=how, rollouts=len(hand.playing))
            self.deaths += 1
            hand.strikes += 1
            hand.lose(f"the process that played it ended: {how}")
            await self._restart(hand)
            if hand.worker is not None:
                self._placement.up[at] = True
                returned, self._returned = self._returned, anyio.Event()
                returned.set()
        hand.left_out = True
        if all(hand.left_out for hand in self._hands):
            self._on_gone(RolloutError("every process ended, again and again, before it had played a rollout"))

    async def _restart(self, hand: Hand) -> None:
        while hand.worker is None and hand.strikes < STRIKES:
            try:
                await self._start(hand)
            except RolloutError as error:
                hand.strikes += 1
                _log.warning("process_not_started", error=str(error))
        # It knows nothing of what happened before. Nothing is played there before it has read this.
        weights, servers = self._standing()
        hand.send(wire.Follow(0, weights, servers))
        if self._stopping:
            hand.send(wire.Stop())

    async def _end(self) -> None:
        """Ends the processes: they end when their channel is closed, or are killed."""
        workers = [hand.worker for hand in self._hands if hand.worker is not None]
        with anyio.CancelScope(shield=True):
            for worker in workers:
                worker.channel.close()
            async with anyio.create_task_group() as ending:
                for worker in workers:
                    ending.start_soon(_end_of, worker)


async def _end_of(worker: Worker) -> str:
    """Waits until a process whose channel is closed has ended, or ends it; says how it ended."""
    with anyio.move_on_after(GRACE_S):
        return await worker.ended()
    worker.kill()
    return await worker.ended()


def _pickled(make_env: Callable[[], Env]) -> bytes:
    """Raises ConfigError where another process could not find it."""
    try:
        return pickle.dumps(make_env)
    except Exception as error:  # pickle raises whatever an object's own methods do
        raise ConfigError(
            f"processes need an environment that they can import, a class or a function of a module, not {make_env!r}: "
            f"{error}"
        ) from error
