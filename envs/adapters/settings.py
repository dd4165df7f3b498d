"""Settings (`-a`) that are another package's own: checked by what its constructor takes, before it is called.

Packages check few of them: a word where yes or no belongs is taken as yes, a name that is not there is a KeyError.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import msgspec

from envs.adapters.common import nearest, one_line
from rollout.errors import ConfigError

#: Types of defaults that say what belongs where nothing is annotated.
_TELLING: dict[type, Any] = {bool: bool, int: int | float, float: float, str: str}


def checked(
    spec: str, settings: Mapping[str, Any], *takes: Callable[..., Any], but: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The settings, as what takes them wants them: a list where that is a tuple. Those in `but` are not the user's.

    Raises ConfigError for a name that none of them has, and for a value of another type than is annotated.
    """
    parameters: dict[str, tuple[inspect.Parameter, Any]] = {}
    for each in takes:
        parameters |= _parameters(each)
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter, _ in list(parameters.values())[-1:])
    there = [name for name, (parameter, _) in parameters.items() if _is_named(parameter) and name not in but]
    for name in settings:
        if name not in there and (name in but or not is_open):
            raise ConfigError(
                f"{spec} has no setting {name!r}{nearest(name, there)}; it has: {', '.join(there) or 'none'}"
            )
    return {
        name: _fitting(spec, name, value, *parameters[name]) if name in there else value
        for name, value in settings.items()
    }


def refusal(spec: str, settings: Mapping[str, Any], error: BaseException) -> ConfigError:
    """What a package's constructor raised, with the settings that it was given."""
    given = ", ".join(f"{name}={value!r:.80}" for name, value in settings.items())
    said = f"it knows no {error.args[0]!r}" if isinstance(error, KeyError) and error.args else one_line(error)
    return ConfigError(f"{spec} {f'refuses {given}' if given else 'cannot be made'}: {said:.300}")


@functools.lru_cache(maxsize=256)
def _parameters(takes: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """What it takes, each with its annotation, where that can be told."""
    hints = _hints(takes)
    found = inspect.signature(takes).parameters.values()
    return {parameter.name: (parameter, hints.get(parameter.name)) for parameter in found}


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name != "self"


def _hints(takes: Callable[..., Any]) -> dict[str, Any]:
    of: Any = takes
    if isinstance(takes, type) and not hasattr(takes, "__dataclass_fields__"):
        of = inspect.getattr_static(takes, "__init__")
    try:
        return get_type_hints(of)
    except Exception:  # what is imported for type checkers only cannot be looked up
        return {}


def _fitting(spec: str, name: str, value: Any, parameter: inspect.Parameter, hint: Any) -> Any:
    default = None if parameter.default is parameter.empty else parameter.default
    if hint is None:
        hint = _TELLING.get(type(default))
    if hint is None or not _is_believed(default, hint):
        return value
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        hint = ", written as JSON" if "`array" in str(error) else ""
        raise ConfigError(f"{spec}: -a {name}={value!r:.80}: {error}{hint}") from error
    except TypeError:  # a type that msgspec does not know: the package will judge
        return value


def _is_believed(default: Any, hint: Any) -> bool:
    """Whether an annotation is right at least of its own default: some packages' are not."""
    if default is None or not isinstance(default, bool | int | float | str | tuple | list | dict):
        return True
    try:
        msgspec.convert(default, hint)
    except msgspec.ValidationError:
        return False
    except TypeError:
        return True
    return True
