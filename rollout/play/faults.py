"""What user code did wrong, as one exception: it raised, took too long, or answered something that it may not."""

from __future__ import annotations

from rollout.door import error_text, type_name
from rollout.process.blocked import Interrupted, LoopBlocked
from rollout.process.threads import ContainedError
from rollout.records import FailureKind


class EnvironmentFault(Exception):
    """The environment raised, took too long, or answered something that it may not. The cause is what it raised."""

    def __init__(self, message: str, *, kind: FailureKind = FailureKind.ENVIRONMENT, call: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.call = call
        """Such as `step`, where it failed in a call."""

    @property
    def raised(self) -> BaseException | None:
        """What user code raised, as it did; None where it did not raise."""
        return raised_by(self.__cause__) if self.__cause__ is not None else None


def raised_by(error: BaseException) -> BaseException:
    """What user code raised, where Python or we put something else in its place."""
    if isinstance(error, ContainedError):
        return error.error
    if type(error) is RuntimeError and isinstance(error.__cause__, StopIteration | StopAsyncIteration):
        return error.__cause__  # a coroutine cannot raise them: Python says so instead
    return error


def kind_of(raised: BaseException) -> FailureKind:
    """What a rollout fails of where a call of its raised this: what we broke off did not end by itself."""
    if isinstance(raised, LoopBlocked):
        return FailureKind.CANCELLED if isinstance(raised, Interrupted) else FailureKind.TIMEOUT
    return FailureKind.ENVIRONMENT


def said_by(error: BaseException) -> str:
    """Its text as it follows its name, such as ": no docker"; "" where it has none."""
    text = error_text(error)
    return "" if text == type_name(error) else f": {text}"
