"""What `-a` says, as the package's own configuration, and an environment of it; each mistake is one line.

A setting with dots is a path in the configuration of verifiers' environment (`agent.max_turns`, `taskset.num_tasks`,
`max_concurrent_agents`). One whose first name is none of the environment's is the taskset's.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import msgspec
import verifiers.v1 as vf
import verifiers.v1.envs
import verifiers.v1.tasksets
from pydantic import ValidationError
from verifiers.v1.utils.compile import validate_pairing

from envs.adapters.common import nearest, one_line
from envs.adapters.verifiers import chat
from rollout.errors import ConfigError
from rollout.process.imports import absolute_file, import_file

#: The harness in this process, by the name that verifiers finds it by.
CHAT = "rollout_chat"
sys.modules[CHAT] = chat  # verifiers finds harnesses by the names of top-level modules

#: Chat loops of the package that play as ours does, as a program of their own.
_CHAT_PROGRAMS = ("null",)

#: What an environment that a user made decides by itself.
_MADE = "load_environment"


def load(taskset: str, harness: str, runtime: str, settings: Mapping[str, Any]) -> Any:
    """An environment of verifiers. Raises ConfigError."""
    spec = f"verifiers:{taskset}"
    environment, _, name = taskset.rpartition("+")
    module, known_as = _module(spec, name)
    try:
        if not hasattr(module, "__all__") and hasattr(module, _MADE):
            return _made(spec, module, harness, runtime, settings)
        config = _config(spec, environment, known_as, harness, runtime, settings)
        env = vf.load_environment(config)
        if type(env) is vf.SingleAgentEnv:
            seat = config.agent
            task = type(env.taskset).task_type()
            validate_pairing(vf.load_harness(seat.harness or env._default_harness), task, seat.runtime)
    except ConfigError:
        raise
    except ValidationError as error:
        raise ConfigError(f"{spec}: {_first(error)}") from error
    except Exception as error:  # what a taskset's module and its classes raise
        raise ConfigError(f"{spec} cannot be loaded: {said(error)}") from error
    return env


@functools.lru_cache(maxsize=32)
def checked(taskset: str, harness: str, runtime: str, settings: str) -> None:
    """Raises ConfigError where no environment can be loaded of these. The settings are JSON."""
    load(taskset, harness, runtime, msgspec.json.decode(settings))


def _config(spec: str, environment: str, taskset: str, harness: str, runtime: str, settings: Mapping[str, Any]) -> Any:
    """The environment's configuration. Raises ConfigError, and ValidationError."""
    if environment:
        _known_environment(spec, environment)
    kind = vf.env_config_type(taskset, environment)
    ours = set(kind.model_fields) - {"id", "interception", "retries"}
    theirs = set(vf.taskset_config_type(taskset).model_fields) - {"id"}
    data: dict[str, Any] = {}
    for key, value in settings.items():
        path = key.split(".")
        if "retries" in path:
            raise ConfigError(
                f"{spec}: {key} is not taken, since what was played twice would be trained on twice: --rollout-retries "
                "has a rollout played again"
            )
        if path[0] not in ours | theirs:
            there = sorted(ours | theirs)
            raise ConfigError(f"{spec} has no setting {key!r}{nearest(path[0], there)}; it has: {', '.join(there)}")
        _put(spec, data, path if path[0] in ours else ["taskset", *path], value)
    _put(spec, data, ["taskset", "id"], taskset)
    bundled = vf.default_harness_id(taskset) != "bash"
    for seat, default in _seats(kind.model_fields):
        if _is_filled_in(given := data.setdefault(seat, {})):
            _fill(given, default, harness, runtime, bundled=bundled)
    # One server for all rollouts: what each of them asks is sent on by a client of its own.
    return kind.model_validate({"interception": {"type": "server"}, **data, "id": environment})


def _seats(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The environment's agents, with what it says of them itself."""
    return [(name, field.default) for name, field in fields.items() if isinstance(field.default, vf.AgentConfig)]


def _is_filled_in(seat: Any) -> bool:
    """Whether it has the form that can be; its configuration says what is wrong with any other."""
    return isinstance(seat, dict) and all(isinstance(seat.get(name, {}), dict | str) for name in ("runtime", "harness"))


def _fill(seat: dict[str, Any], default: Any, harness: str, runtime: str, *, bundled: bool) -> None:
    """Says where a seat runs, and by which program, where neither the user nor the environment does."""
    for name, key in (("runtime", "type"), ("harness", "id")):
        if isinstance(seat.get(name), str):
            seat[name] = {key: seat[name]}
    if isinstance(seat.get("client"), dict):
        seat["client"].setdefault("type", "eval")  # a model of the seat's own, asked as it stands
    if "runtime" in seat:
        seat["runtime"].setdefault("type", runtime)
    elif "runtime" not in default.model_fields_set:
        seat["runtime"] = {"type": runtime}
    here = seat.get("runtime", {}).get("type", default.runtime.type) == "subprocess"
    pinned = default.harness.id if default.harness is not None else None
    if "id" in seat.get("harness", {}):
        return
    if harness:
        seat["harness"] = {**seat.get("harness", {}), "id": harness}
    elif here and (pinned in _CHAT_PROGRAMS or (pinned is None and not bundled)):
        seat["harness"] = {**seat.get("harness", {}), "id": CHAT}


def _made(spec: str, module: ModuleType, harness: str, runtime: str, settings: Mapping[str, Any]) -> Any:
    """What a module's own `load_environment` gives, with seats that say nothing filled in."""
    env = getattr(module, _MADE)(**settings)
    if not isinstance(env, vf.Env):
        raise ConfigError(
            f"{spec}: load_environment gave {type(env).__name__}, which is no environment of verifiers 0.4 "
            "(verifiers.v1.Env): its older classes are gone"
        )
    for seat in env._agent_specs.values():
        if "runtime" not in seat.model_fields_set:
            seat.runtime = vf.AgentConfig(runtime={"type": runtime}).runtime
        if seat.harness is None and (harness or seat.runtime.type == "subprocess"):
            seat.harness = vf.AgentConfig(harness={"id": harness or CHAT}).harness
    env.config.interception = vf.SingleAgentEnvConfig(interception={"type": "server"}).interception
    return env


def _module(spec: str, name: str) -> tuple[ModuleType, str]:
    """The taskset's module, and the name by which verifiers finds it. Raises ConfigError."""
    if not name:
        raise ConfigError(f"{spec} names no taskset: verifiers:TASKSET, or verifiers:ENVIRONMENT+TASKSET")
    if name.endswith(".py"):
        module = import_file(name)
        if any(isinstance(value, type) and issubclass(value, vf.Toolset) for value in vars(module).values()):
            _show_to_programs(os.path.dirname(absolute_file(name)))
        return module, _alias(module)
    try:
        if "." in name.partition("@")[0]:
            module = importlib.import_module(name)
            return module, _alias(module)
        return vf.import_taskset(name), name
    except ModuleNotFoundError as error:
        raise ConfigError(f"{spec} {_missing(name, error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{spec} cannot be imported: {said(error)}") from error


def _missing(name: str, error: ModuleNotFoundError) -> str:
    """Whether it is the taskset that is not there, or what it needs."""
    missing = error.name or getattr(error.__cause__, "name", None) or name
    module = name.rsplit("/", 1)[-1].partition("@")[0].replace("-", "_").lower()
    if not (module == missing or module.startswith(f"{missing}.")):
        return f"needs {missing}, which is not installed: pip install it beside verifiers"
    there = sorted(found.name for found in pkgutil.iter_modules(verifiers.v1.tasksets.__path__))
    return (
        f"is not there{nearest(module, there)}; a taskset is a package that is installed here, a module, a file.py, or "
        f"one that verifiers ships: {', '.join(there)}"
    )


def _alias(module: ModuleType) -> str:
    """A name for a module that verifiers can look up: of one part, in small letters, and none that it has itself."""
    alias = module.__name__.replace(".", "_").lower()
    shipped = importlib.util.find_spec(f"verifiers.v1.tasksets.{alias}") is not None
    if shipped or sys.modules.get(alias, module) is not module:
        digest = hashlib.blake2b(str(module.__file__).encode(), digest_size=4).hexdigest()
        alias = f"{alias}_{digest}"
    sys.modules[alias] = module
    return alias


def _show_to_programs(folder: str) -> None:
    """Tools are programs of their own, `python -m MODULE`: they find a taskset's file beside what is installed.

    Only they need it: what lies in a folder that all Pythons look in may have the name of a module of theirs.
    """
    found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in found:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, found)])


def _known_environment(spec: str, environment: str) -> None:
    """Raises ConfigError for one of the package's environments that is not there."""
    try:
        vf.import_environment(environment)
    except ModuleNotFoundError as error:
        there = sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(verifiers.v1.envs.__path__))
        raise ConfigError(
            f"{spec}: verifiers has no environment {environment!r}{nearest(environment, there)}; it has: "
            f"{', '.join(there)}"
        ) from error


def _put(spec: str, data: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets a value at a path."""
    for name in path[:-1]:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{spec}: {'.'.join(path)} is set below {name}={data!r:.80}: give one of the two")
    if isinstance(value, dict) and isinstance(there := data.get(path[-1]), dict):
        there.update(value)
    else:
        data[path[-1]] = value


def _first(error: ValidationError) -> str:
    """The first of what a configuration is told of its values."""
    found = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    what = f"needs -a {place}=VALUE" if found["type"] == "missing" else f"-a {place}={found['input']!r:.80}"
    return " ".join(f"{what}: {found['msg']}".split())


def said(error: BaseException) -> str:
    """What an error says, in one line."""
    return one_line(error)[:600].replace("--env.", "-a ")
