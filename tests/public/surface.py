"""The public surface as text: every public name with its signature, as the source has it.

    python -m tests.public.surface > tests/public/surface.txt       # after a change that is meant

A change of the text is a change for users: it belongs into CHANGELOG.md, and what goes away is kept for a release
(`rollout.moved`).
"""

from __future__ import annotations

import enum
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import msgspec

import rollout

#: Beside what `rollout` itself exports: what a trainer takes from the rooms.
FURTHER = (
    "rollout.engine:differing_rewards",
    "rollout.schedule.submissions:Submission",
    "rollout.thread:ThreadStream",
    "rollout.thread:ThreadSubmission",
    "rollout.tokens.advantages:grpo",
    "rollout.tokens.advantages:leave_one_out",
    "rollout.tokens.batch:pad",
    "rollout.tokens.batch:pack",
    "rollout.tokens.batch:to_torch",
    "rollout.log:LOGGERS",
)


def surface() -> str:
    """All of it."""
    lines: list[str] = []
    for name in rollout.__all__:
        lines += shown(f"rollout.{name}", getattr(rollout, name))
    for name in FURTHER:
        module, _, attribute = name.partition(":")
        lines += shown(f"{module}.{attribute}", getattr(importlib.import_module(module), attribute))
    return "\n".join(lines) + "\n"


def shown(name: str, value: Any) -> Iterator[str]:
    """One name: a class with what it has, a function, or a value."""
    if isinstance(value, type):
        yield ""
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {name}({bases}):"
        for line in sorted(members(value)):
            if "__init__" not in line or name.count(".") == 1:  # the engine makes what it hands out
                yield f"    {line}"
    elif inspect.isfunction(value):
        yield ""
        yield f"{kind_of(value)} {name}{signature(value)}"
    else:
        yield ""
        yield f"{name} = {value!r}"


def members(kind: type) -> Iterator[str]:
    """What a class has of its own, by name."""
    annotations = inspect.get_annotations(kind)
    if issubclass(kind, enum.Enum):
        yield from (f"{member.name} = {member.value!r}" for member in kind)
        return
    if issubclass(kind, msgspec.Struct):
        defaults = {field.name: default_of(field) for field in msgspec.structs.fields(kind)}
        yield from (f"{name}: {annotations[name]}{default}" for name, default in defaults.items())
    for name, member in vars(kind).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, property):
            yield f"{name} -> {inspect.get_annotations(member.fget)['return']}"  # type: ignore[arg-type]
        elif isinstance(member, classmethod | staticmethod):
            yield f"{type(member).__name__} {name}{signature(member.__func__)}"
        elif inspect.isfunction(member):
            yield f"{kind_of(member)} {name}{signature(member)}"
        elif name in annotations and not issubclass(kind, msgspec.Struct):
            yield f"{name}: {annotations[name]} = {member!r}"


def default_of(field: Any) -> str:
    """As it is written behind a field."""
    if field.default is not msgspec.NODEFAULT:
        return f" = {field.default!r}"
    return " = ..." if field.default_factory is not msgspec.NODEFAULT else ""


def kind_of(function: Any) -> str:
    """Whether it is awaited."""
    return "async def" if inspect.iscoroutinefunction(function) else "def"


def signature(function: Any) -> str:
    """With annotations as the source has them, in which they are no strings."""
    parts = []
    found = inspect.signature(function)
    parameters = list(found.parameters.values())
    for at, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and (at == 0 or parameters[at - 1].kind is not parameter.kind):
            parts.append("*")
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**" * (parameter.kind is parameter.VAR_KEYWORD)
        hint = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {written(parameter.default)}"
        parts.append(f"{star}{parameter.name}{hint}{default}")
    return f"({', '.join(parts)}) -> {found.return_annotation}"


def written(value: Any) -> str:
    """A default, as the source may have it."""
    return value.__name__ if inspect.isfunction(value) else repr(value)


if __name__ == "__main__":
    print(surface(), end="")
