"""Finds environments and transports: by entry point, by scheme, by module, or in a file. Checks that our packages are
ours.

`rollout` imports neither `transports` nor `envs`: entry points name them, so that other distributions can add
theirs in the same way.

A scheme plays what another package has: in `gymnasium:Taxi-v4` the entry point `gymnasium` of the group
`rollout.env_schemes` names a class, and `Taxi-v4` is its constructor's first argument. Only the first colon counts, so
what follows may be an address or a file's name. `-a KEY=VALUE` sets the other arguments, and whatever the class takes
as `**settings`: those are read as JSON, or else as text. A class whose target may be a file has
`absolute_target(target)`, a static method that makes it mean the same from everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, packages_distributions, requires
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from rollout.door import error_text
from rollout.errors import ConfigError
from rollout.participant import Participant
from rollout.process.imports import absolute_file, import_file, import_module, loaded
from rollout.transport import Open, Transport, TransportConfig, opened

DISTRIBUTION = "rollout-engine"
PACKAGES = ("rollout", "transports", "envs")


class Argument(msgspec.Struct, frozen=True):
    """One argument of an environment."""

    name: str
    type: str
    default: Any
    required: bool


def find_transport(name: str) -> Open:
    """The constructor of a transport. Raises ConfigError, naming the nearest."""
    found = load_entry("rollout.transports", name)

    async def open_it(config: TransportConfig) -> Transport:
        return await opened(found(config))

    return open_it


def find_env(spec: str) -> type[Participant]:
    """An environment's or agent's class: `name`, `scheme:target`, `package.module:Name`, or `path/to/file.py:Name`.

    Raises ConfigError.
    """
    if (known := _FOUND.get(spec)) is not None:
        return known
    if (named := scheme_of(spec)) is not None:
        env = loaded(f"scheme {named[0]!r}", _entry(_SCHEMES, named[0], "scheme").load)
    elif ":" in spec:
        module_name, _, class_name = spec.rpartition(":")
        if not module_name.endswith(".py"):
            _refuse_unknown_scheme(spec)
        module = import_file(module_name) if module_name.endswith(".py") else import_module(module_name)
        env = getattr(module, class_name, None)
        if env is None:
            names = [name for name, value in vars(module).items() if _plays(value)]
            raise ConfigError(f"{module_name} has no {class_name!r}{_nearest(class_name, names)}")
    else:
        env = loaded(f"environment {spec!r}", _played_entry(spec).load)
    if not _plays(env):
        raise ConfigError(f"{spec} is no environment: it must be a subclass of rollout.Env, or of rollout.Agent")
    found: type[Participant] = env
    _FOUND[spec] = found
    return found


#: Classes that were found: a file is run once.
_FOUND: dict[str, type[Participant]] = {}

#: Whose entry points name what can be played.
_PLAYED_GROUPS = ("rollout.envs", "rollout.agents")

#: Whose entry points name what plays other packages' environments.
_SCHEMES = "rollout.env_schemes"

#: What may stand before the first colon: no file's name, and no module's in a package.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def scheme_names() -> list[str]:
    """The schemes that have an entry point."""
    return entry_names(_SCHEMES)


def scheme_of(spec: str) -> tuple[str, str] | None:
    """The scheme and what stands after its colon; None where the name is of another form. Raises ConfigError."""
    scheme, colon, target = spec.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme) or scheme not in scheme_names():
        return None
    if not target.strip():
        raise ConfigError(f"{spec!r} names nothing after the colon: see `rollout envs`")
    return scheme, target


def _refuse_unknown_scheme(spec: str) -> None:
    """Raises ConfigError where a name's beginning can be no module's, and was meant as a scheme."""
    scheme, _, rest = spec.partition(":")
    if not _SCHEME.fullmatch(scheme):
        return
    with contextlib.suppress(ValueError):  # a module that has no spec is there
        if rest.isidentifier() and importlib.util.find_spec(scheme) is not None:
            return
        near = _close(scheme, scheme_names())
        meant = f", did you mean '{near}:{rest}'?" if near else ""
        raise ConfigError(f"no scheme and no module {scheme!r}{meant}; {_known_schemes()}")


def env_names() -> list[str]:
    """The environments and agents that have an entry point."""
    return sorted({point.name for group in _PLAYED_GROUPS for point in entry_points(group=group)})


def arguments_of(env: type[Participant]) -> list[Argument]:
    """What `-a KEY=VALUE` can set."""
    hints = _hints_of(env)
    found = []
    for name, parameter in inspect.signature(env).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        found.append(Argument(name, _type_name(hints.get(name, str)), default, required))
    return found


class ListedEnv(msgspec.Struct, frozen=True):
    """One environment, as `rollout envs` lists it."""

    name: str
    summary: str = ""
    arguments: list[Argument] = []
    error: str | None = None
    """Why it cannot be loaded, where it cannot."""


def listed_envs() -> list[ListedEnv]:
    """Every environment that has an entry point. One that is broken is listed as such, and hides no other."""
    listed = []
    for name in [*env_names(), *(f"{scheme}:..." for scheme in scheme_names())]:
        try:
            env = find_env(name)
            arguments = arguments_of(env)
            if scheme := name.partition(":...")[0] if ":" in name else "":
                name, arguments = f"{scheme}:{arguments[0].name.upper()}", arguments[1:]
            summary = (env.__doc__ or "").strip().splitlines()[:1]
            listed.append(ListedEnv(name, summary[0] if summary else "", arguments))
        except ConfigError as error:
            listed.append(ListedEnv(name, error=f"cannot be used: {error}"))
        except (Exception, SystemExit) as error:  # importing it runs another distribution's code
            listed.append(ListedEnv(name, error=f"cannot be loaded: {type(error).__name__}: {error_text(error)}"))
    return listed


class NamedEnv(msgspec.Struct, frozen=True):
    """Makes environments of one name. Another process can be told it: the class is looked up where it is called."""

    spec: str
    arguments: Mapping[str, Any]

    def __call__(self) -> Participant:
        return find_env(self.spec)(**self.arguments)


def env_factory(spec: str, given: Mapping[str, Any]) -> Callable[[], Participant]:
    """Makes environments with these arguments, which may be text. Raises ConfigError, naming what is wrong."""
    env, spec = find_env(spec), absolute_spec(spec)
    arguments = {argument.name: argument for argument in arguments_of(env)}
    hints = _hints_of(env)
    values: dict[str, Any] = {}
    open_ended = False
    if (named := scheme_of(spec)) is not None:
        values[arguments.pop(next(iter(arguments))).name] = named[1]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(env).parameters.values())
    for name, value in given.items():
        if open_ended and name not in arguments and name not in values:
            values[name] = _json_or_text(value)
            continue
        if name not in arguments:
            known = ", ".join(arguments) or "none"
            raise ConfigError(
                f"environment {spec} has no argument {name!r}{_nearest(name, arguments)}; it has: {known}"
            )
        values[name] = _coerce(spec, name, value, hints.get(name, str))
    if missing := [name for name, argument in arguments.items() if argument.required and name not in values]:
        raise ConfigError(f"environment {spec} needs -a {missing[0]}=VALUE")
    return NamedEnv(spec, values)


def absolute_spec(spec: str) -> str:
    """An environment's name; that of a file with the file's absolute path, which means the same from everywhere."""
    if (named := scheme_of(spec)) is not None:
        absolute = getattr(find_env(spec), "absolute_target", None)
        return spec if absolute is None else f"{named[0]}:{absolute(named[1])}"
    file, colon, name = spec.rpartition(":")
    return f"{absolute_file(file)}:{name}" if colon and file.endswith(".py") else spec


def made(make_env: Callable[[], Participant]) -> Participant:
    """An environment, to be asked for its tasks; made in a thread that has no event loop.

    An asynchronous one is made on a loop, as when it is played: its constructor may want one.
    """
    if not is_asynchronous(make_env):
        return make_env()

    async def make() -> Participant:
        return make_env()

    return asyncio.run(make())


def is_asynchronous(make_env: Callable[[], Participant]) -> bool:
    """Whether what it makes is known to be asynchronous: its class, if that can be told, has such a method."""
    made = class_of(make_env)
    methods = (getattr(made, name, None) for name in ("run", "reset", "step", "score", "close"))
    return made is not None and any(inspect.iscoroutinefunction(method) for method in methods)


def class_of(make_env: Callable[[], Participant]) -> type | None:
    """The class of what it makes, where that can be told without making one."""
    return known_class(make_env)[0]


def known_class(make_env: Callable[[], Participant]) -> tuple[type | None, tuple[Any, ...], Mapping[str, Any]]:
    """The same, with the arguments that it is made with: of a class, a `functools.partial`, or a name."""
    made: Any = make_env
    args: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    while isinstance(made, functools.partial):
        args, named = (*made.args, *args), {**made.keywords, **named}
        made = made.func
    if isinstance(made, NamedEnv):
        made, named = find_env(made.spec), {**made.arguments, **named}
    return (made if isinstance(made, type) else None), args, named


def lists_tasks(make_env: Callable[[], Participant]) -> type[Participant] | None:
    """The class, where its `tasks` is a class's or a static method: no environment is made to be asked for tasks."""
    made = class_of(make_env)
    if made is None or not isinstance(inspect.getattr_static(made, "tasks", None), classmethod | staticmethod):
        return None
    return made


def entry_names(group: str) -> list[str]:
    """The names of a group's entry points."""
    return sorted({point.name for point in entry_points(group=group)})


def load_entry(group: str, name: str) -> Any:
    """What an entry point names. Raises ConfigError, also where what it needs is not installed."""
    what = group.rpartition(".")[2].removesuffix("s")
    point = _entry(group, name, what)
    try:
        return point.load()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = extra_of(missing)
        remedy = f": pip install '{DISTRIBUTION}[{extra}]'" if extra else ""
        raise ConfigError(f"{what} {name!r} needs {missing or error}, which is not installed{remedy}") from error


def extra_of(module: str) -> str | None:
    """Our extra for what needs a module, the embedded model rather than the proxy; None where none installs it."""
    with contextlib.suppress(PackageNotFoundError):
        for requirement in requires(DISTRIBUTION) or ():
            name = re.match(r"[\w.-]+", requirement)
            extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
            if (
                name
                and extra
                and extra[1] not in ("all", "proxy")
                and name[0].replace("-", "_").lower() == module.lower()
            ):
                return extra[1]
    return None


def check_packages() -> None:
    """Raises ConfigError where another distribution has taken one of our three import names.

    Distributions that install the same import name overwrite each other silently. Ours are told by their place:
    all three lie side by side.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve().parent for place in (spec.submodule_search_locations or ())] if spec else []
        if home in places[:1] and (home / name / "__init__.py").is_file():
            continue
        owners = sorted(set(packages_distributions().get(name, [])) - {DISTRIBUTION})
        owner = f"distribution {owners[0]!r}" if owners else f"{places[0] / name}" if places else "nothing"
        raise ConfigError(
            f"import name {name!r} does not belong to {DISTRIBUTION} here but to {owner}: "
            f"install {DISTRIBUTION} in an environment of its own"
        )


def _played_entry(name: str) -> EntryPoint:
    known = env_names()
    if name in known or not known:
        return _entry(_PLAYED_GROUPS, name, "environment or agent")
    near = _close(name, [*known, *(f"{scheme}:" for scheme in scheme_names())])
    meant = f", did you mean '{near}{'...' if near.endswith(':') else ''}'?" if near else ""
    raise ConfigError(f"no environment or agent {name!r}{meant}; there are: {', '.join(known)}; {_known_schemes()}")


def _known_schemes() -> str:
    """The schemes, in an error's words."""
    names = ", ".join(f"{name}:" for name in scheme_names())
    return f"schemes, as in SCHEME:NAME, are: {names or 'none'}; `rollout envs` tells of each"


def _entry(group: str | tuple[str, ...], name: str, what: str) -> EntryPoint:
    groups = (group,) if isinstance(group, str) else group
    points = {point.name: point for each in groups for point in entry_points(group=each)}
    if name not in points:
        known = ", ".join(sorted(points)) or "none; is rollout-engine installed?"
        raise ConfigError(f"no {what} {name!r}{_nearest(name, points)}; there are: {known}")
    return points[name]


def _close(name: str, names: Iterable[str]) -> str:
    """The one that is nearest, whatever its letters' case; "" where none is near."""
    known = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return known[close[0]] if close else ""


def _nearest(name: str, names: Iterable[str]) -> str:
    close = _close(name, names)
    return f", did you mean {close!r}?" if close else ""


def _plays(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Participant)


def _coerce(spec: str, name: str, value: Any, hint: Any) -> Any:
    """A value of the argument's type, from text or from TOML."""
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, str) and str not in hints:
        try:
            value = msgspec.json.decode(value.lower() if bool in hints else value)
        except msgspec.DecodeError as error:
            raise ConfigError(f"environment {spec}: -a {name}={value} is not a {_type_name(hint)}") from error
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ConfigError(f"environment {spec}: -a {name}={value} is not a {_type_name(hint)}: {error}") from error
    except TypeError:  # a type that msgspec does not know: the class will judge
        return value


def _json_or_text(value: Any) -> Any:
    """A setting whose type only the package knows."""
    if isinstance(value, str):
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(value.lower() if value.lower() in ("true", "false") else value)
    return value


def _hints_of(env: type[Participant]) -> dict[str, Any]:
    """The types of its arguments, as far as they can be told: what is imported for type checkers only cannot."""
    function = env.__init__
    try:
        return get_type_hints(function)
    except Exception:
        hints: dict[str, Any] = {}
        for name, hint in getattr(function, "__annotations__", {}).items():
            with contextlib.suppress(Exception):
                hints[name] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
        return hints


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
