"""Several processes that play rollouts for one engine, each with its own event loop, connections and tokenizer.

The engine schedules as it does alone: admission, groups, retries, deadlines of stragglers and the stream of results are
its own, and only the playing of a rollout is elsewhere. A group's members go to one process, which keeps them on one
server. A process that dies costs the rollouts that it was playing, which fail as `process`, and is started again. So
does one whose event loop hangs, which is found out by its silence and ended; what its threads were doing is logged. One
that has worn out, by calls that hang in its threads, takes no more rollouts and is replaced when its last has ended.
"""

from __future__ import annotations

import itertools
import math
import pickle
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Self

import anyio
import anyio.abc
import msgspec

from rollout import errors
from rollout.config import EngineConfig
from rollout.door import error_text
from rollout.errors import ConfigError, RolloutError, UserCodeFailed
from rollout.log import get_logger
from rollout.moved import forward_names
from rollout.observe.stats import Played
from rollout.participant import Participant
from rollout.records import Job
from rollout.servers.fleet import FleetState
from rollout.servers.placement import Placement
from rollout.servers.weights import WeightsState
from rollout.workers import wire
from rollout.workers.ending import end_last, end_of, end_silent
from rollout.workers.handle import GRACE_S, Handle
from rollout.workers.launch import Worker, launcher
from rollout.workers.remote import RemoteEnv
from rollout.workers.silence import LOOK_S
from rollout.workers.where import place_of

#: A process that dies so often in a row without having ended one rollout is not started again.
STRIKES = 3

#: The same for one that ended rollouts before: then the rollouts are at fault that are left, not the process.
STRIKES_OF_PROVEN = 12

#: Seconds before a process is started again that has died more than once in a row; doubled each time, up to the most.
PAUSE_S = 0.5
MOST_PAUSE_S = 30.0

#: A process that is silent for so long while an update of the weights waits for it is ended: servers stand still.
AWAITED_S = 5.0

#: How long the last rollouts of a worn process may take.
DRAIN_S = 600.0

#: After a process has ended, how long what it had said before may take to come.
_LAST_WORDS_S = 1.0

EngineState = tuple[WeightsState, FleetState]

_log = get_logger(__name__)


class Beginning:
    """The first start of the processes, which the engine waits for."""

    def __init__(self, wanted: int) -> None:
        self.over = anyio.Event()
        """Set when as many have begun as are wanted, or one could not."""
        self.failed: RolloutError | None = None
        self._wanted = wanted

    def begun(self) -> None:
        """One has."""
        self._wanted -= 1
        if self._wanted == 0:
            self.over.set()

    def fail(self, error: RolloutError) -> bool:
        """One could not. Whether that ends the engine's start: not where it has begun."""
        if self._wanted <= 0:
            return False
        if self.failed is None:
            self.failed = error
        self.over.set()
        return True


class WorkerPool:
    """The processes, together."""

    def __init__(
        self,
        config: EngineConfig,
        make_env: Callable[[], Participant],
        state: Callable[[], EngineState],
        *,
        on_gone: Callable[[RolloutError], None],
    ) -> None:
        """`state` says how the engine stands; `on_gone` is called when no process is left, or an environment fails."""
        self._config = config
        self._make_env = make_env
        self._state = state
        self._on_gone = on_gone
        self._launcher = launcher(config)
        self._handles = [Handle() for _ in range(config.processes)]
        self._placement = Placement(config.processes)
        self._placement.up = [False] * config.processes
        self._returned = anyio.Event()
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()
        self._attending: anyio.abc.TaskGroup | None = None
        self._setup = b""
        self._stopping = False
        self.deaths = 0

    def __repr__(self) -> str:
        playing = sum(len(handle.playing) for handle in self._handles)
        return f"<WorkerPool of {len(self._handles)}, {sum(self._placement.up)} up, {playing} rollouts>"

    @property
    def count(self) -> int:
        """How many processes there are to be; where they come as there is room for them, how many there are."""
        return sum(self._placement.up) if self._launcher.elastic else len(self._handles)

    async def __aenter__(self) -> Self:
        """Starts the processes, and waits until they have connected; where they come as there is room, until one has.

        Raises ServerError, ConfigError, RolloutError.
        """
        make_env = self._pickled(self._make_env)
        self._setup = wire.encode(
            wire.Setup(msgspec.structs.replace(self._config, launch="local", ray_runtime_env={}), make_env)
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._launcher.aclose)
            await self._launcher.open(main_script=b"__main__" in make_env, on_lost=self._on_gone)
            stack.push_async_callback(self._end)
            self._attending = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._attending.cancel_scope.cancel)
            beginning = Beginning(1 if self._launcher.elastic else len(self._handles))
            for at in range(len(self._handles)):
                self._attending.start_soon(self._attend, at, beginning)
            await beginning.over.wait()
            if beginning.failed is not None:
                await stack.aclose()  # before it is raised: a task group would wrap it
                raise beginning.failed
            self._attending.start_soon(self._watch)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def of(self, make_env: Callable[[], Participant]) -> RemoteEnv:
        """Rollouts of one environment, to be played by the processes. Raises ConfigError where they cannot find it."""
        return RemoteEnv(self, None if make_env is self._make_env else self._pickled(make_env, read_back=True))

    def stop(self) -> None:
        """Running rollouts end after their current turn, as cancelled."""
        self._stopping = True
        for handle in self._handles:
            handle.send(wire.Stop())

    async def tell(self) -> None:
        """Has every process stand as the engine does now; returns when all do that live."""
        number, (weights, servers) = next(self._numbers), self._state()
        told = []
        for handle in self._handles:
            if handle.worker is not None:
                handle.told[number] = anyio.Event()
                told.append(handle.told[number])
                handle.send(wire.Follow(number, weights, servers))
        for event in told:
            await event.wait()

    def played(self) -> list[Played]:
        """What each process has played, those that died included."""
        return [part for handle in self._handles for part in (handle.played, handle.earlier)]

    async def handle_for(self, session: str, job: Job) -> Handle:
        """See `rollout.workers.remote.Handles`. Waits while every process is being started again."""
        while (at := self._placement.place(session, job.task_id, job.group_size)) is None:
            await self._returned.wait()
        return self._handles[at]

    def release(self, session: str) -> None:
        """See `rollout.workers.remote.Handles`."""
        self._placement.release(session)

    def next_number(self) -> int:
        """See `rollout.workers.remote.Handles`."""
        return next(self._numbers)

    def _pickled(self, make_env: Callable[[], Participant], *, read_back: bool = False) -> bytes:
        """Raises ConfigError where another process could not find it.

        A stream's own environment is read back here, too: what fails would end processes that others play in. The
        engine's is read by the processes as they start, which have a deadline (`worker_start_s`); here nothing would
        bound it.
        """
        try:
            pickled = self._launcher.pickled(make_env)
            if read_back:
                pickle.loads(pickled)
            return pickled
        except Exception as error:  # pickle raises whatever an object's own methods do
            raise ConfigError(
                f"processes need an environment that they can import, a class or a function of a module, not "
                f"{make_env!r}: {error}"
            ) from error

    async def _start(self, handle: Handle) -> None:
        """Raises RolloutError where the process cannot begin."""
        limit_s = self._config.worker_start_s
        worker = await self._launcher.start()
        try:
            with anyio.fail_after(limit_s):
                await self._ready(handle, worker)
            handle.begin(worker)
            # It knows nothing of what happened before. Nothing is played there before it has read this.
            handle.send(wire.Follow(0, *self._state()))
        except TimeoutError as error:
            _log.warning("worker_not_ready", after_s=limit_s, stack=await worker.trace())
            raise RolloutError(
                f"a worker process was not ready within {limit_s:g} s (worker_start_s): what it imports, or the server "
                "that it connects to, takes longer; what it was doing is in the log"
            ) from error
        finally:
            if handle.worker is not worker:
                with anyio.CancelScope(shield=True):
                    worker.channel.abort()
                    worker.kill()
                    await worker.ended()

    async def _ready(self, handle: Handle, worker: Worker) -> None:
        """Tells a new process what is played, and waits until it can. Raises RolloutError."""
        worker.channel.send(self._setup)
        while (frame := await worker.channel.receive()) is not None:
            event = wire.decode_event(frame)
            if isinstance(event, wire.NotReady):
                kind = getattr(errors, event.error, RolloutError)
                raise (kind if issubclass(kind, RolloutError) else RolloutError)(event.message)
            if isinstance(event, wire.Ready):
                return
            handle.take(event)
        raise RolloutError(
            f"a process ended before it was ready: {await worker.ended()}; a script that starts processes must do "
            'so under `if __name__ == "__main__":`, since each of them imports it'
        )

    async def _attend(self, at: int, beginning: Beginning) -> None:
        """Starts a process and listens to it; starts it again when it has ended."""
        handle, how = self._handles[at], ""
        try:
            await self._start(handle)
            beginning.begun()
        except RolloutError as error:
            if beginning.fail(error):
                return
            # Processes come as there is room, and the engine has begun with another.
            handle.strikes += 1
            how = str(error)
            _log.warning("process_not_started", error=how)
            await self._restart(handle)
        self._up(at)
        while handle.worker is not None:
            worker = handle.worker
            await self._listen(handle, worker)
            self._placement.up[at] = False
            how = handle.why or await end_of(worker, handle.grace_s)
            if handle.why is None:
                stack = await worker.trace()
                how += place_of(stack)
                _log.warning("process_ended", how=how, rollouts=len(handle.playing), stack=stack)
            if not handle.replacing:
                self.deaths += 1
                handle.strikes += 1
            handle.lose(f"the process that played it ended: {how}")
            with anyio.CancelScope(shield=True):
                if not handle.replacing:
                    worker.kill()
                await end_of(worker, handle.grace_s)
            if handle.replacing:
                _log.info("process_replaced", why=handle.worn)
            await self._restart(handle)
            self._up(at)
        handle.left_out = True
        _log.warning("process_left_out", deaths_in_a_row=handle.strikes)
        if all(handle.left_out for handle in self._handles):
            self._on_gone(
                RolloutError(f"every process ended, again and again, before it had played a rollout, the last: {how}")
            )

    def _up(self, at: int) -> None:
        """A process that was started takes rollouts from here on."""
        handle = self._handles[at]
        if handle.worker is None:
            return
        if self._stopping:
            handle.send(wire.Stop())
        self._placement.up[at] = True
        returned, self._returned = self._returned, anyio.Event()
        returned.set()

    async def _listen(self, handle: Handle, worker: Worker) -> None:
        """Takes what a process says, until it has ended."""

        async def hang_up() -> None:
            # What was forked from it may hold its end of the channel open, as long as it lives.
            await worker.ended()
            await anyio.sleep(_LAST_WORDS_S)
            worker.channel.abort()

        async with anyio.create_task_group() as beside:
            beside.start_soon(hang_up)
            try:
                while (frame := await worker.channel.receive()) is not None:
                    self._take(handle, wire.decode_event(frame))
            except msgspec.MsgspecError as error:
                handle.why = f"what it said cannot be read: {error_text(error)}"
                _log.error("process_not_understood", how=handle.why)
                worker.kill()
            beside.cancel_scope.cancel()

    def _take(self, handle: Handle, event: wire.Event) -> None:
        match event:
            case wire.EnvironmentFailed():
                error = UserCodeFailed(event.message)
                error.add_note(event.traceback)  # the exception itself is in the other process
                self._on_gone(error)
            case wire.SetupBegins():
                close_s = self._config.close_timeout_s
                handle.grace_s = math.inf if close_s is None else GRACE_S + close_s
            case _:
                handle.take(event)

    async def _watch(self) -> None:
        """Looks after the processes: ends those that are silent, replaces those that are worn."""
        last = time.monotonic()
        while True:
            await anyio.sleep(LOOK_S)
            now = time.monotonic()
            for at, handle in enumerate(self._handles):
                if handle.worker is not None and handle.why is None:
                    self._look(at, handle, handle.worker, now - last)
            last = now

    def _look(self, at: int, handle: Handle, worker: Worker, elapsed_s: float) -> None:
        limit_s = self._config.worker_silence_s
        silent_s = handle.silence.look(worker.channel.received, elapsed_s)
        if silent_s > (min(limit_s, AWAITED_S) if handle.told else limit_s):
            assert self._attending is not None
            self._placement.up[at] = False
            handle.why = f"it was silent for {silent_s:.0f} s, so its event loop hangs"
            self._attending.start_soon(end_silent, handle, worker)
        elif handle.draining_s is not None:
            handle.draining_s += elapsed_s
            if not handle.playing or handle.draining_s > DRAIN_S:
                handle.why, handle.replacing = f"it had to be replaced: {handle.worn}", True
                worker.channel.close()
        elif handle.worn is not None:
            _log.warning("process_worn", why=handle.worn, rollouts=len(handle.playing))
            self._placement.up[at] = False
            handle.draining_s = 0.0

    async def _restart(self, handle: Handle) -> None:
        while handle.worker is None and handle.strikes < (STRIKES_OF_PROVEN if handle.proven else STRIKES):
            if handle.strikes > 1:
                await anyio.sleep(min(MOST_PAUSE_S, PAUSE_S * 2 ** (handle.strikes - 1)))
            await self._servers_there()
            try:
                await self._start(handle)
            except RolloutError as error:
                handle.strikes += 1
                _log.warning("process_not_started", error=str(error))

    async def _servers_there(self) -> None:
        """A process that finds no server, or none that samples, could not begin: that is no fault of its own."""
        while (servers := self._state()[1]).paused or not any(servers.up):  # noqa: ASYNC110  # a look costs nothing
            await anyio.sleep(LOOK_S)

    async def _end(self) -> None:
        """Ends the processes: they end when their channel is closed, or are killed."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as ending:
                for handle in self._handles:
                    if handle.worker is None:
                        continue
                    if handle.why is not None or handle.silence.seconds > AWAITED_S:
                        handle.worker.kill()
                    handle.worker.channel.close()
                    ending.start_soon(end_last, handle.worker, handle.grace_s)


forward_names("rollout.workers.pool")
