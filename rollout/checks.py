"""Is a setting's value one that it can have? Asked of what Python code builds as of what flags and files say.

The types of `EngineConfig` are the rule, and a value that does not fit is named together with those that would:

    mode must be tito or mito, not 'titoo'; did you mean 'tito'?
    request_timeout_s must be a finite number, not nan
    sampling: stop[1] is of type set
"""

from __future__ import annotations

import difflib
import math
import numbers
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from rollout.door import Refused, plain
from rollout.errors import ConfigError

_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    Mapping[str, float]: "a mapping of names to finite numbers",
    Mapping[str, str]: "a mapping of names to text",
    Mapping: "a mapping of names to values",
    Sequence[int]: "a list of whole numbers",
    Sequence: "a list of text",
    type(None): "None",
}


#: What servers take for the sampling parameters that they share, by OpenAI's and vLLM's names. Others pass as they are.
_SAMPLING: dict[str, Any] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"), float | None),
    **dict.fromkeys(("frequency_penalty", "length_penalty"), float | None),
    **dict.fromkeys(("top_k", "seed", "min_tokens", "n"), int | None),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids"), Sequence[int] | None),
    **dict.fromkeys(("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"), bool | None),
    "stop": str | Sequence[str] | None,
    "bad_words": Sequence[str] | None,
    "logit_bias": Mapping[str, float] | None,
}


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Raises ConfigError for a parameter of a type that no server takes: before one is asked for anything."""
    for name, hint in _SAMPLING.items():
        if name in sampling:
            check_value(f"sampling: {name}", sampling[name], hint)


def check_values(config: msgspec.Struct) -> None:
    """Raises ConfigError for the first setting whose value does not fit its type."""
    for name, hint in hints_of(type(config)).items():
        check_value(name, getattr(config, name), hint)


def check_value(name: str, value: object, hint: Any) -> None:
    """Raises ConfigError for a value that does not fit, and for a mapping that cannot be sent as JSON."""
    if name.endswith("_s") and value == math.inf:
        return  # a deadline that never comes
    if not _fits(value, hint):
        raise _wrong(name, value, _choices(hint), _words(hint))
    if isinstance(value, Mapping):
        try:
            plain(value)
        except Refused as refused:
            raise ConfigError(f"{name}: {refused}") from None


def choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raises ConfigError for a name that is none of those."""
    if value not in allowed:
        raise _wrong(name, value, allowed, _listed(allowed))


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a struct's fields."""
    return get_type_hints(kind)


def _wrong(name: str, value: object, choices: Sequence[str], words: str) -> ConfigError:
    close = difflib.get_close_matches(value, choices, n=1, cutoff=0.5) if isinstance(value, str) else []
    near = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"{name} must be {words}, not {value!r:.200}{near}")


def _fits(value: object, hint: Any) -> bool:
    kind, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in arguments)
    if kind is Literal:
        return isinstance(value, str) and value in arguments
    if isinstance(value, bool):
        return hint is bool
    if hint is int:
        return isinstance(value, numbers.Integral)  # numpy's, too
    if hint is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items()
        )
    if kind is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, arguments[0]) for v in value)
    return isinstance(value, hint)


def _parts(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def _choices(hint: Any) -> list[str]:
    return [name for part in _parts(hint) if get_origin(part) is Literal for name in get_args(part)]


def _words(hint: Any) -> str:
    """What a value may be, for people. None stands for what is not set, and is not named."""
    kinds = [part for part in _parts(hint) if part is not type(None)]
    named = [part if part in _WORDS else get_origin(part) or part for part in kinds]
    words = [_WORDS.get(part, str(part)) for part in named if part is not Literal]
    if int in kinds and float in kinds:
        words.remove(_WORDS[int])
    return _listed([*words, *_choices(hint)])


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
