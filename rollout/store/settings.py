"""The settings of one run: flags and a TOML file -> one struct. Flags beat the file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rollout.checks import check_value, hints_of
from rollout.config import EngineConfig
from rollout.errors import ConfigError
from rollout.registry import absolute_spec


class RunSettings(EngineConfig, kw_only=True, forbid_unknown_fields=True):
    """An engine's configuration, and what is played on it."""

    env: str = ""
    env_args: Mapping[str, Any] = {}
    num_tasks: int | None = None
    """None is 8 tasks of the environment's own, or all of `tasks`."""
    rollouts_per_task: int = 1
    tasks: str | None = None
    """A JSONL file: one task per line."""
    seed: int = 0
    """Of the environment's tasks."""
    max_failures: int | float | None = None
    """Failed rollouts that end the run: a number, or a rate (0.5, 50%) once 20 have ended. None is no limit."""
    stop_grace_s: float = 25.0
    """How long running turns may take to end after a signal. Slurm and Kubernetes kill after 30 s."""
    log: Sequence[str] = ()
    """Who is told of groups and of where the run stands, as NAME:REST: see `rollout.observe.loggers`."""
    metrics_port: int | None = None
    """Where Prometheus finds the run's numbers; 0 is any free port, None serves none."""
    metrics_host: str = "127.0.0.1"
    """What that listens on. Beyond this machine whoever reaches it reads them: numbers, servers' addresses."""

    def engine_config(self) -> EngineConfig:
        """The engine's part."""
        return EngineConfig(**{name: getattr(self, name) for name in EngineConfig.__struct_fields__})


#: Settings that a resumed run may change: they say where and how fast, not what. Tasks are compared one by one.
RESUMABLE = frozenset(
    {
        "base_url",
        "api_key_env",
        "concurrency",
        "processes",
        "launch",
        "ray_address",
        "ray_num_cpus",
        "ray_resources",
        "ray_runtime_env",
        "ray_listen",
        "worker_start_s",
        "worker_silence_s",
        "server_wait_s",
        "max_failures",
        "stop_grace_s",
        "success_at",
        "score_timeout_s",
        "close_timeout_s",
        "max_abandoned_threads",
        "straggler_timeout_s",
        "rollout_retries",
        "request_timeout_s",
        "step_timeout_s",
        "weights_timeout_s",
        "episode_timeout_s",
        "http_retries",
        "headers",
        "verify",
        "num_tasks",
        "rollouts_per_task",
        "tasks",
        "priority",
        "proxy_host",
        "proxy_port",
        "proxy_address",
        "client_gone_s",
        "proxy_keepalive_s",
        "proxy_turns",
        "proxy_body_bytes",
        "proxy_answers",
        "proxy_memory_bytes",
        "cache_salt",
        "log",
        "tracing",
        "metrics_port",
        "metrics_host",
    }
)

DEFAULT_TASKS = 8


def read_settings(file: str | None, flags: Mapping[str, Any]) -> RunSettings:
    """One struct from a file and from flags that are not None. Raises ConfigError."""
    settings = to_settings(given_settings(file, flags), file or "settings")
    if not settings.env:
        raise ConfigError("no environment: name one, such as `rollout run guess_number`; `rollout envs` lists them")
    return settings


def given_settings(file: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """What a file and flags set, by name, meaning the same from everywhere. Raises ConfigError."""
    given = overlaid(_read_toml(file) if file else {}, flags)
    if isinstance(urls := given.get("base_url"), list) and len(urls) == 1:
        given["base_url"] = urls[0]
    unknown = given.keys() - set(RunSettings.__struct_fields__)
    if unknown:
        key = sorted(unknown)[0]
        close = difflib.get_close_matches(key, RunSettings.__struct_fields__, n=1)
        near = f", did you mean {close[0]!r}?" if close else f"; there are: {', '.join(RunSettings.__struct_fields__)}"
        raise ConfigError(f"{file}: no setting {key!r}{near}")
    for name, value in given.items():
        try:
            msgspec.json.encode(value)
        except UnicodeEncodeError as error:  # an argument of bytes that are no text
            raise ConfigError(f"{name}: not UTF-8: {value!r}") from error
        except Exception:  # msgspec's conversion names what has no place in a setting
            continue
    return absolute_paths(given)


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, with those above in their place where they are not None; mappings are merged."""
    found = dict(below)
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            value = {**found[name], **value}
        if value is not None:
            found[name] = value
    return found


def to_settings(values: Mapping[str, Any], source: str) -> RunSettings:
    """Raises ConfigError for a value of the wrong type, or of none that the setting can have."""
    for name, value in values.items():
        if name in (hints := hints_of(RunSettings)):
            _refuse_null(name, value)
            check_value(name, value, hints[name])
    try:
        return msgspec.convert(values, RunSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error


def _refuse_null(place: str, value: Any, *, within: bool = False) -> None:
    """The run folder's settings are TOML, which has no null: a key is left out, but a list would become another."""
    if value is None and within:
        raise ConfigError(f"{place} is null, which the run folder cannot keep: leave it out of the list")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_null(f"{place}.{key}", item)
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            _refuse_null(f"{place}[{at}]", item, within=True)


def absolute_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that mean the same from everywhere."""
    found = dict(given)
    if isinstance(spec := given.get("env"), str):
        found["env"] = absolute_spec(spec)
    if isinstance(tasks := given.get("tasks"), str):
        found["tasks"] = os.path.abspath(os.path.expanduser(tasks))
    if isinstance(tokenizer := given.get("tokenizer"), str) and os.path.isdir(tokenizer):
        found["tokenizer"] = os.path.abspath(tokenizer)
    if isinstance(logs := given.get("log"), list | tuple):
        found["log"] = [_absolute_log(spec) if isinstance(spec, str) else spec for spec in logs]
    return found


def _absolute_log(spec: str) -> str:
    """The one whose rest is a folder."""
    name, _, rest = spec.partition(":")
    return f"{name}:{os.path.abspath(os.path.expanduser(rest))}" if name == "tensorboard" and rest else spec


def _read_toml(file: str) -> dict[str, Any]:
    try:
        return msgspec.toml.decode(Path(file).read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"cannot read {file!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start + 1}): save it as UTF-8") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def key_values(pairs: Sequence[str] | None, flag: str, *, as_json: bool) -> dict[str, Any]:
    """KEY=VALUE arguments. With `as_json` a value that is JSON is read as such. Raises ConfigError."""
    values: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{flag} {pair!r} is not KEY=VALUE")
        values[key] = _json_or_text(text) if as_json else text
    return values


def json_object(text: str | None, flag: str) -> dict[str, Any] | None:
    """A JSON object, or that of a file. Raises ConfigError."""
    if text is None:
        return None
    try:
        found = msgspec.json.decode(text if text.lstrip().startswith("{") else Path(text).read_bytes())
    except OSError as error:
        raise ConfigError(f"{flag} {text!r} is neither a JSON object nor a file: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag}: {text!r:.200} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{flag} is a JSON object, not {text!r:.200}")
    return found


def concurrency_of(text: str | None) -> int | str | None:
    """A number, or auto. Raises ConfigError."""
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"-c takes a number or auto, not {text!r}") from None


def counts_of(text: str, option: str) -> list[int]:
    """Numbers with commas between them. Raises ConfigError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes numbers with commas, such as 8,32, not {text!r}") from None


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
