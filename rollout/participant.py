"""What environments and agents have in common: how they are made, what they share, their tasks, their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self, TypeVar

#: What one rollout is about: any JSON object. A line of a `--tasks` file, or one of `Participant.tasks`.
Task = Mapping[str, Any]

#: What is being made shares with its class: see `made_sharing`.
_SHARED: ContextVar[tuple[type, Any] | None] = ContextVar("shared", default=None)


class Participant:
    """What plays one rollout: an `Env`, which is driven, or an `Agent`, which drives."""

    shared: Any = None
    """What `setup` gave, from its first call on; in the constructor, too, where the engine knows the class before
    it makes one: it was given the class, a `functools.partial` of it, or its name."""

    @classmethod
    def setup(cls, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[Any]:
        """What all rollouts of this class share in a process, such as a pool of sandboxes: a context manager.

        It is called with those of the constructor's arguments that it takes, entered once for each set of them before
        the first rollout, and left when the engine closes. If it raises, the run ends and says so.
        """
        return nullcontext()

    if not TYPE_CHECKING:  # a type checker goes by each class's own constructor

        def __new__(cls, *args: Any, **kwargs: Any) -> Self:
            if (args or kwargs) and cls.__init__ is object.__init__:
                raise TypeError(f"{cls.__name__}() takes no arguments")
            self = super().__new__(cls)
            if args or kwargs:
                self.__dict__["_given"] = args, kwargs  # what `setup` is called with
            if (shared := _SHARED.get()) is not None and shared[0] is cls:
                self.__dict__["shared"] = shared[1]
            return self

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` tasks; the same ones for the same seed. By default only a number and the seed.

        May be a class's or a static method: then no object is made to list them. A run may have them from a file
        (`--tasks`), and a stream from any iterable.
        """
        return ({"index": index, "seed": seed} for index in range(n))

    def preflight(self, task: Task) -> Awaitable[None] | None:
        """Looks whether it can play: is the server there, has the task what is needed? It may be asynchronous.

        `rollout run` calls it once, with its first task, before anything is played and on an object that plays
        nothing. What it raises ends the command. By default nothing is looked at.
        """
        return None

    def close(self) -> Awaitable[None] | None:
        """Frees what it took. Called once on every path, after whatever else was called has returned:
        where that took longer than it may (`step_timeout_s`), that is later, in the background."""
        return None


P = TypeVar("P", bound=Participant)


def made_sharing(make: Callable[[], P], kind: type, shared: Any) -> P:
    """An object of a class, which has what it shares while it is made."""
    before = _SHARED.set((kind, shared))
    try:
        return make()
    finally:
        _SHARED.reset(before)
