"""What the rollouts of an environment share, such as a pool of sandboxes: `Env.setup`, entered once in a process.

A setup is entered before the first rollout of its class that this process plays, and left when the engine closes, in
one task, so that contexts nest there as Python wants. Rollouts that begin meanwhile wait, outside their deadlines. Two
objects share one setup where they are of one class and agree in the arguments that its `setup` takes. If it raises, or
what it holds breaks later, the run is over: `on_failed` is told, with the traceback as the error's cause.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from rollout.errors import ConfigError, RolloutError, UserCodeFailed
from rollout.log import get_logger
from rollout.participant import Participant, made_sharing
from rollout.play.answers import reading
from rollout.play.faults import EnvironmentFault
from rollout.play.host import Host, Hosts
from rollout.process.blocked import Watch
from rollout.process.imports import awaited_frames, place_in, stack_of
from rollout.records import FailureKind
from rollout.registry import known_class

#: Setups of one class, with ever other arguments, of which it is said that there are many.
MANY = 64

_log = get_logger(__name__)


class Setup:
    """One setup that was asked for."""

    def __init__(
        self, setups: Setups, kind: type, arguments: Mapping[str, Any], error: Exception | None = None
    ) -> None:
        """`error` is why it cannot be entered, where that is known before."""
        self.arguments = arguments
        self._error = error
        self._setups = setups
        self.env = kind.__name__
        """The class's name."""
        self._kind = kind
        self._broken = anyio.Event()
        """Something that it holds, such as a task group, has cancelled it."""
        self._host = Host(setups.hosts, f"setup of {self.env}", self._broken.set)
        self._asked: Any = None
        """What is entered, from when it is asked to be."""
        self._manager: AbstractAsyncContextManager[Any] | None = None
        """There once it was entered, until it is left."""
        self._value: Any = None
        self._over = anyio.Event()
        """Whether entering it has ended, however."""
        self._known = anyio.Event()
        """Whether those that wait know what became of it."""
        self._entering = anyio.CancelScope()
        self._why: str | None = None
        """Why it cannot be had, where it cannot."""

    def __repr__(self) -> str:
        state = "failed" if self._why is not None else "entered" if self._manager is not None else "not entered"
        return f"<Setup of {self.env} {state}>"

    async def entered(self) -> None:
        """Waits until it is. Raises EnvironmentFault where it failed: the run ends."""
        await self._known.wait()
        if self._why is not None:
            await anyio.lowlevel.checkpoint()  # whoever ends the run has cancelled this
            raise EnvironmentFault(self._why, kind=FailureKind.CANCELLED)

    def making(self, make_env: Callable[[], Participant]) -> Callable[[], Participant]:
        """What makes an object that has what this gave, once it was entered, from its constructor on."""
        return functools.partial(made_sharing, make_env, self._kind, self._value)

    async def share(self, env: Participant) -> None:
        """Gives what it gave to an object, once it is entered. Raises EnvironmentFault."""
        await self.entered()
        with reading("env.shared"):  # the environment may have a property of that name
            env.shared = self._value

    async def enter(self) -> None:
        """Enters it, in its task, and sees whether it breaks. Returns where it fails."""
        try:
            with self._entering, Watch(f"{self.env}.setup", where=self._place):
                self._value = await self._host.call("setup", self._enter, in_task=True)
        except EnvironmentFault as failed:
            if failed.kind is FailureKind.CANCELLED:  # it blocked the loop when the run was told to stop
                self._why = str(failed)
            else:
                self._fail(str(failed), failed.raised)
            return
        finally:
            self._over.set()
            self._known.set()
        if self._entering.cancelled_caught:
            return
        await self._broken.wait()
        fault = await self.leave()  # leaving it says why
        if fault is None:
            self._fail("what setup holds was cancelled", None)
        else:
            self._fail(str(fault), fault.raised)

    def stop(self) -> None:
        """The run is stopping: what has not been entered is not waited for."""
        if not self._over.is_set():
            self._why = "its setup was not entered before the run was stopped"
            self._known.set()
            self._entering.cancel()

    async def leave(self) -> EnvironmentFault | None:
        """Leaves it, where it was entered; returns how that failed."""
        with anyio.CancelScope(shield=True):
            await self._over.wait()
            manager, self._manager = self._manager, None
            try:
                if manager is not None and self._host.pending is None:
                    limit_s = self._setups.close_timeout_s
                    with Watch(f"{self.env}.setup to close", limit_s=limit_s, where=self._place):
                        await self._host.call(
                            "setup", manager.__aexit__, None, None, None, limit_s=limit_s, in_task=True
                        )
            except EnvironmentFault as fault:
                return fault
            finally:
                self._host.end()
        return None

    async def _enter(self) -> Any:
        if self._error is not None:
            raise self._error
        manager: Any = self._kind.setup(**self.arguments)  # type: ignore[attr-defined]  # `Setups.of` found it
        if not hasattr(type(manager), "__aenter__"):
            if inspect.iscoroutine(manager):
                manager.close()
            hint = " (is @asynccontextmanager missing?)" if isinstance(manager, AsyncIterator) else ""
            raise TypeError(f"it must give an asynchronous context manager, not {type(manager).__name__}{hint}")
        self._asked = manager
        value = await manager.__aenter__()
        self._manager = manager  # here, since whoever waits may be cancelled at this moment
        return value

    def _place(self) -> str:
        """Where it waits. From any thread; what `asynccontextmanager` made hides its frames from who awaits it."""
        generator = getattr(self._asked, "gen", None)
        return place_in(stack_of(awaited_frames(generator))) or self._host.place()

    def _fail(self, message: str, raised: BaseException | None) -> None:
        self._why = "its setup failed"
        if isinstance(raised, ConfigError):  # it says what is to be done, and where is no matter
            message, raised = str(raised), None
        _log.error("setup_failed", env=self.env, error=message, exc_info=raised)
        error = UserCodeFailed(f"environment {self.env}: {message}")
        error.__cause__ = raised
        self._setups.on_failed(error)


class Setups:
    """Those of one process."""

    def __init__(
        self,
        hosts: Hosts,
        tasks: anyio.abc.TaskGroup,
        *,
        on_failed: Callable[[RolloutError], None],
        on_entered: Callable[[], None] = lambda: None,
        close_timeout_s: float | None = None,
    ) -> None:
        """They are entered by `tasks`. `on_entered` is told of each that is about to be."""
        self.hosts, self.tasks = hosts, tasks
        self.on_failed = on_failed
        self.close_timeout_s = close_timeout_s
        self._on_entered = on_entered
        self._stopping = False
        self._known: dict[type, list[Setup]] = {}
        """By class."""

    def __repr__(self) -> str:
        return f"<Setups {[setup for setups in self._known.values() for setup in setups]}>"

    @property
    def any(self) -> bool:
        """Whether one was asked for."""
        return bool(self._known)

    def before(self, make_env: Callable[[], Participant]) -> Setup | None:
        """The setup of what will be made, where its class and arguments can be told before; None where not."""
        kind, args, named = known_class(make_env)
        return self._of_class(kind, args, named) if kind is not None else None

    def of(self, env: object) -> Setup | None:
        """The setup of an object's class with its arguments; None where it has none of its own."""
        with reading("the environment"):
            args, named = getattr(env, "_given", ((), {}))
            args, named = tuple(args), dict(named)
        return self._of_class(type(env), args, named)

    def _of_class(self, kind: type, args: tuple[Any, ...], named: Mapping[str, Any]) -> Setup | None:
        found = inspect.getattr_static(kind, "setup", _NONE)
        if found is _NONE:
            return None
        known = self._known.setdefault(kind, [])
        arguments, error = _arguments(kind, found, args, named)
        for setup in known:
            if _same(setup.arguments, arguments):
                return setup
        setup = Setup(self, kind, arguments, error)
        known.append(setup)
        if len(known) == MANY:
            hint = "each object gives setup other arguments: let it take none that differ"
            _log.warning("many_setups", env=kind.__name__, setups=MANY, hint=hint)
        self._on_entered()
        self.tasks.start_soon(setup.enter)
        if self._stopping:
            setup.stop()
        return setup

    def stop(self) -> None:
        """The run is stopping: rollouts that wait for a setup end at once, as cancelled."""
        self._stopping = True
        for setups in self._known.values():
            for setup in setups:
                setup.stop()

    async def aclose(self) -> None:
        """Leaves all, the last first. One that was being entered has been cancelled by then."""
        for setup in reversed([setup for setups in self._known.values() for setup in setups]):
            if (fault := await setup.leave()) is not None:
                _log.warning("setup_close_failed", env=setup.env, error=str(fault), exc_info=fault.raised)


#: The setup of a class that has none of its own.
_NONE = inspect.getattr_static(Participant, "setup")


def _arguments(
    kind: type, setup: object, args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[dict[str, Any], Exception | None]:
    """Those of an object's own arguments that its class's setup takes, or why that cannot be told."""
    try:
        if not isinstance(setup, classmethod | staticmethod):
            raise TypeError("it must be a classmethod that gives an asynchronous context manager")
        return _taken(kind, args, named), None
    except Exception as error:  # the class is the user's, and whatever it is made of may raise
        return {}, error


def _taken(kind: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    wanted = inspect.signature(kind.setup).parameters.values()
    if not wanted:
        return {}
    bound = inspect.signature(kind).bind(*args, **named)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif bound.signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL:
            found[name] = value
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in wanted):
        return found
    names = {parameter.name for parameter in wanted}
    return {name: value for name, value in found.items() if name in names}


def _same(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether arguments are equal. Arrays, and whatever else cannot say, are where they are one object."""
    if mine.keys() != theirs.keys():
        return False
    for name, value in mine.items():
        other = theirs[name]
        try:
            if value is not other and not bool(value == other):
                return False
        except Exception:
            return False
    return True
