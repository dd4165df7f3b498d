"""Calls user code, which may do anything, so that it costs its own rollout at most.

Where a call runs is told by what it is. A plain function runs in a thread, because it may block, or on the event loop
where the environment says that it never does. What is asynchronous runs in a task of the rollout's own, its host: one
task from the first call to the last, in which no scope of ours is open. A context that the environment enters in
`reset` and leaves in `close` (a task group, a timeout, a session with a server of tools) nests there as it must.

    call         what user code raises          our deadline, or the end of the rollout
    in a thread  comes out of the thread        the call is abandoned: Python cannot end a thread
    in the host  is kept by the host            the host is cancelled; where it does not end, the call is abandoned
    on the loop  is caught                      nothing interrupts it

Both kinds of calls that were abandoned are remembered until they return: only then is the environment closed, in the
background, so that what a slow `reset` has taken by then is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from rollout.door import type_name
from rollout.log import get_logger
from rollout.participant import Participant
from rollout.play.answers import reading
from rollout.play.faults import EnvironmentFault, kind_of, raised_by, said_by
from rollout.process.forks import stay_in
from rollout.process.imports import awaited_frames, place_in, stack_of
from rollout.process.threads import Threads, contained
from rollout.process.user_tasks import UserTasks, owner, unending, unwatch, watch
from rollout.records import FailureKind

_log = get_logger(__name__)

#: Seconds that an asynchronous call may take to end when it is cancelled, and that an engine waits at its end for
#: environments whose call was abandoned.
GRACE_S = 5.0


class Hosts:
    """What the hosts of one process share: the threads, and what outlives its rollout."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self._closings: set[asyncio.Task[None]] = set()
        self._hanging: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Hosts {self.threads.abandoned} threads and {len(self._hanging)} tasks hang>"

    @property
    def hanging(self) -> int:
        """Calls in threads and tasks that were given up and have not ended."""
        return self.threads.abandoned + len(self._hanging)

    def watch(self) -> None:
        """From the first call in which user code can start tasks."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            watch(self._loop)

    def hang(self, task: asyncio.Task[Any]) -> None:
        """A task was cancelled and may not have ended."""
        if not task.done():
            self._hanging.add(task)
            task.add_done_callback(self._hanging.discard)

    def later(self, closing: Awaitable[None]) -> None:
        """Closes an environment in the background."""

        async def close() -> None:
            await closing

        task = asyncio.get_running_loop().create_task(close(), name="rollout closing")
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)

    async def closed(self, grace_s: float) -> None:
        """Waits a while for environments that are closed in the background."""
        if self._closings:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(self._closings, timeout=grace_s)

    async def aclose(self, grace_s: float = GRACE_S) -> None:
        """Waits a while for what outlived its rollout, and says what is left. It is not ended: nothing can."""
        for task in self._hanging:
            task.cancel()
        waiting = self._closings | self._hanging
        if waiting:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(waiting, timeout=grace_s)
        if self.hanging or self._closings:
            _log.warning(
                "environment_calls_hang",
                threads=self.threads.abandoned,
                tasks=len(self._hanging),
                not_closed=len(self._closings),
                hint="give what they wait for a timeout of its own",
            )
        unending.extend(self._hanging)
        for task in self._hanging:
            # It has swallowed its cancellation: asyncio.run would wait for it for ever.
            asyncio.tasks._unregister_task(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # what asyncio does for its own
        self.threads.close()
        if self._loop is not None:
            unwatch(self._loop)
            self._loop = None


class _Request:
    """One call that the host is asked to make."""

    __slots__ = ("_waiter", "args", "begun", "done", "error", "function", "interrupted", "value")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function, self.args = function, args
        self.begun = self.done = self.interrupted = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def finish(self) -> None:
        self.done = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def returned(self) -> Any:
        """Waits until the call has ended; gives or raises what it did."""
        if not self.done:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.error is None:
            return self.value
        error, self.error = self.error, None
        try:
            raise contained(error)
        finally:
            del error  # its traceback holds this frame


class Host:
    """Makes the calls of one rollout, one after another."""

    def __init__(self, hosts: Hosts, rollout_id: str, on_broken: Callable[[], None] = lambda: None) -> None:
        """`on_broken` is told when user code cancels its own task between two calls: its rollout has failed."""
        self.tasks = UserTasks()
        self.blocks = True
        """Whether plain functions run in threads."""
        self.broken: BaseException | None = None
        self.pending: Callable[[], Awaitable[Any]] | None = None
        """Waits for the call that was abandoned and has not returned, where there is one."""
        self._hosts = hosts
        self._id = rollout_id
        self._on_broken = on_broken
        self._task: asyncio.Task[None] | None = None
        self._asked: _Request | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._ended = False
        self._place = ""
        """Where the last call that was interrupted stood."""

    def __repr__(self) -> str:
        where = "in a task" if self._task is not None else "in threads" if self.blocks else "on the loop"
        return f"<Host {self._id} {where}>"

    async def call(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        limit_s: float | None = None,
        in_task: bool = False,
    ) -> Any:
        """Makes one call, in the host where it is asynchronous or `in_task`. Raises EnvironmentFault."""
        try:
            in_task = in_task or inspect.iscoroutinefunction(function)
            if limit_s is None:
                return await self._make(function, args, in_task)
            with anyio.move_on_after(limit_s):
                return await self._make(function, args, in_task)
        except Exception as error:
            raised = raised_by(error)
            message = f"{name} raised {type_name(raised)}{said_by(raised)}"
            raise EnvironmentFault(message, kind=kind_of(raised), call=name) from error
        message = f"{name} took longer than {limit_s:g} s{self._place}"
        raise EnvironmentFault(message, kind=FailureKind.TIMEOUT, call=name)

    async def close(self, env: Any, limit_s: float | None) -> EnvironmentFault | None:
        """The last call: closes the environment, where it has a `close` of its own; returns how that failed.

        Where an earlier call was abandoned, that is left to the background.
        """
        if self.pending is not None:
            self._hosts.later(self._close_after(self.pending, env, limit_s))
            return None
        try:
            return await self._close(env, limit_s)
        finally:
            self.end()

    async def _close_after(self, returned: Callable[[], Awaitable[Any]], env: Any, limit_s: float | None) -> None:
        """Closes the environment once the abandoned call has returned, which may have taken what is to be freed."""
        try:
            try:
                late = await returned()
            except Exception as error:
                late = None
                raised = raised_by(error)
                if not isinstance(raised, asyncio.CancelledError):
                    _log.warning("environment_raised_when_abandoned", rollout=self._id, exc_info=raised)
            # The call that was abandoned may be the constructor's.
            await self._close(late if env is None else env, limit_s)
        finally:
            self.end()

    async def _close(self, env: Any, limit_s: float | None) -> EnvironmentFault | None:
        """Frees what it took; says it where that fails."""
        if env is None:
            return None
        try:
            with reading("env.close"):
                close = getattr(env, "close", None)
                if close is None or getattr(close, "__func__", close) is Participant.close:
                    return None
            await self.call("close", close, limit_s=limit_s)
        except EnvironmentFault as fault:
            if fault.kind is FailureKind.TIMEOUT:
                hint = "close_timeout_s allows no more, and 5 s where the run is cancelled"
                _log.warning("env_close_cut", rollout=self._id, limit_s=limit_s, hint=hint)
            else:
                reason = type_name(fault.raised)
                _log.warning(
                    "env_close_failed", rollout=self._id, reason=reason, error=str(fault), exc_info=fault.raised
                )
            return fault
        return None

    def place(self) -> str:
        """Where the asynchronous call stands that is under way, such as " (env.py, line 7, in step)"."""
        return place_in(stack_of(awaited_frames(self._task.get_coro()))) if self._task is not None else ""

    def end(self) -> None:
        """The last call was made: the host ends, and what user code has left running is cancelled."""
        self._ended = True
        self._arrive()
        for task in self.tasks.end(self._id):
            self._hosts.hang(task)

    async def _make(self, function: Callable[..., Any], args: tuple[Any, ...], in_task: bool) -> Any:
        if in_task:
            return await self._in_task(function, args)
        result = await self._in_thread(function, args) if self.blocks else self._on_loop(function, args)
        return await self._in_task(lambda: result, ()) if inspect.isawaitable(result) else result

    def _on_loop(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self._hosts.watch()
        before = owner.set(self.tasks)
        process = os.getpid()
        try:
            value = function(*args)
        except BaseException as error:
            stay_in(process, error)
            raise contained(error) from error.__cause__
        finally:
            owner.reset(before)
        stay_in(process)
        return value

    async def _in_thread(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        before = owner.set(self.tasks)  # the call takes the context with it
        try:
            call = self._hosts.threads.call(function, *args)
        finally:
            owner.reset(before)
        try:
            return await call.result()
        except BaseException:
            if call.abandoned:
                self.pending = call.returned
                self._place = place_in(stack_of(call.stack()))
            raise

    async def _in_task(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        request = _Request(function, args)
        self._ask(request)
        try:
            return await request.returned()
        except asyncio.CancelledError:  # not the user's, which is contained: a deadline of ours, or the rollout's end
            with anyio.CancelScope(shield=True):
                await self._interrupt(request)
            raise

    def _ask(self, request: _Request) -> None:
        self._asked = request
        if self._task is None or self._task.done():
            self._hosts.watch()
            context = contextvars.copy_context()
            context.run(owner.set, self.tasks)
            self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"host {self._id}", context=context)
            self._task.add_done_callback(_seen)
        else:
            self._arrive()

    def _arrive(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def _interrupt(self, request: _Request) -> None:
        """Cancels a call; where it does not end, goes on without it."""
        if not request.begun:
            self._asked = None
            return
        if request.done:
            return
        assert self._task is not None
        self._place = self.place()
        request.interrupted = True
        self._task.cancel()
        with anyio.move_on_after(GRACE_S):
            try:
                await request.returned()
            except Exception as error:
                raised = raised_by(error)
                if not isinstance(raised, asyncio.CancelledError):  # its clean-up has failed
                    _log.warning("environment_raised_when_cancelled", rollout=self._id, exc_info=raised)
        if not request.done:
            self.pending = request.returned
            self._hosts.hang(self._task)

    async def _serve(self) -> None:
        """The host: makes the calls that it is asked for."""
        request: _Request | None = None
        try:
            while (request := await self._next()) is not None:
                await self._carry_out(request)
        finally:
            if request is not None and not request.done:  # it could not even be kept, such as GeneratorExit
                request.error = request.error or RuntimeError("its task was ended")
                request.finish()

    async def _carry_out(self, request: _Request) -> None:
        request.begun = True
        process = os.getpid()
        try:
            value = request.function(*request.args)
            request.value = await value if inspect.isawaitable(value) else value
        except GeneratorExit as error:
            request.error = error
            raise  # the loop is gone, and Python throws this task away
        except BaseException as error:
            request.error = error
        stay_in(process, request.error)
        if request.interrupted:
            await self._forget_cancellation()
        request.finish()

    async def _forget_cancellation(self) -> None:
        """Our cancellation has done its work, or came too late: nothing of it may reach the next call."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()

    async def _next(self) -> _Request | None:
        while self._asked is None and not self._ended:
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                if self.broken is None:
                    await self._arrival
                else:
                    # Shielded: a cancelled scope that the user holds would cancel this again and again.
                    with anyio.CancelScope(shield=True):
                        await self._arrival
            except asyncio.CancelledError as error:
                if self.broken is not None:
                    raise
                self.broken = error
                self._on_broken()
        request, self._asked = self._asked, None
        return request


def _seen(task: asyncio.Task[None]) -> None:
    """What ended the host was told to whoever asked it: asyncio need not say it again."""
    if not task.cancelled():
        task.exception()
