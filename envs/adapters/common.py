"""What adapters share: the package that is imported when it is needed, a user's function by its name, and the words
for what a model's calls, its tools and other people's code have come to."""

from __future__ import annotations

import difflib
import importlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from envs.adapters.aside import aside
from rollout import door
from rollout.chat.messages import Message
from rollout.errors import ConfigError
from rollout.process.imports import import_file, import_module


def package(scheme: str, module: str, install: str) -> ModuleType:
    """A package of others. Raises ConfigError that says what to install."""
    try:
        with aside(scheme):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise ConfigError(f"{scheme}: needs {missing}, which is not installed: pip install '{install}'") from error
    except Exception as error:  # a broken install may raise anything
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"{scheme}: {module} cannot be imported: {type(error).__name__}: {said}") from error


def function(setting: str, spec: str, *given: str) -> Callable[..., Any]:
    """A user's function, by `file.py:name` or `module:name`, that takes what is `given`. Raises ConfigError."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ConfigError(f"{setting}={spec!r} must be file.py:function or module:function")
    module = import_file(place) if place.endswith(".py") else import_module(place)
    found = getattr(module, name, None)
    if not callable(found):
        names = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise ConfigError(f"{setting}: {place} has no function {name!r}{nearest(name, names)}")
    called: Callable[..., Any] = found
    if given and not isinstance(called, type):
        _check_takes(setting, spec, called, given)
    return called


def _check_takes(setting: str, spec: str, called: Callable[..., Any], given: tuple[str, ...]) -> None:
    """Raises ConfigError for a function that cannot be called with so much."""
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # one that is written in C says nothing
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        raise ConfigError(f"{setting}={spec} takes {signature}, and is called with ({', '.join(given)})") from error


def reward(of: str, given: Any) -> float:
    """What a user's function gave as a reward: whatever a step may give. Raises TypeError."""
    try:
        return door.number(given, "")
    except door.Refused as error:
        raise TypeError(f"{of} {error.why}") from error


def nearest(name: str, names: Iterable[str]) -> str:
    """The known name that was meant, if one is close, whatever its letters' case."""
    known = {each.lower(): each for each in names}
    longer = sorted((each for each in known if name and each.startswith(name.lower())), key=len)
    close = longer or difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f", did you mean {known[close[0]]!r}?" if close else ""


def seeds(n: int, seed: int) -> Iterator[int]:
    """`n` seeds that packages can take; the same ones for the same seed."""
    draw = random.Random(seed)
    return (draw.randrange(2**31) for _ in range(n))


def one_line(error: BaseException) -> str:
    """An error's type and what it says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def beginning(text: str, most: int) -> str:
    """Of what a tool or an environment says the first `most` characters, and how many were left out."""
    left_out = len(text) - most
    return f"{text[:most]}\n[{left_out} characters left out]" if left_out > 0 else text


def unread(message: Message) -> str:
    """What the model is told of calls that could not be read."""
    reasons = ", ".join(sorted({call.reason for call in message.malformed_tool_calls}))
    return f"error: a tool call could not be read ({reasons})"


def unknown_tool(name: str, known: Iterable[str]) -> str:
    """What the model is told of a tool that it does not have."""
    return f"error: no tool named {name[:60]!r}; there are {', '.join(known)}"
