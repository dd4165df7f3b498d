"""The settings of one run: flags and a TOML file -> one struct. Flags beat the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from rollout.config import EngineConfig
from rollout.env import Env, Task
from rollout.errors import ConfigError


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

    def engine_config(self) -> EngineConfig:
        """The engine's part."""
        return EngineConfig(**{name: getattr(self, name) for name in EngineConfig.__struct_fields__})


#: Settings that a resumed run may change: they say where and how fast, not what.
RESUMABLE = frozenset(
    {
        "base_url",
        "api_key_env",
        "concurrency",
        "processes",
        "worker_start_s",
        "worker_silence_s",
        "server_wait_s",
        "score_timeout_s",
        "close_timeout_s",
        "max_abandoned_threads",
        "straggler_timeout_s",
        "rollout_retries",
        "request_timeout_s",
        "step_timeout_s",
        "episode_timeout_s",
        "http_retries",
        "headers",
        "verify",
        "num_tasks",
        "rollouts_per_task",
        "priority",
        "cache_salt",
    }
)

DEFAULT_TASKS = 8


def read_settings(file: str | None, flags: Mapping[str, Any]) -> RunSettings:
    """One struct from a file and from flags that are not None. Raises ConfigError."""
    merged = _read_toml(file) if file else {}
    for name, value in flags.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            value = {**merged.get(name, {}), **value}
        merged[name] = value
    if isinstance(urls := merged.get("base_url"), list) and len(urls) == 1:
        merged["base_url"] = urls[0]
    unknown = merged.keys() - set(RunSettings.__struct_fields__)
    if unknown:
        key = sorted(unknown)[0]
        close = difflib.get_close_matches(key, RunSettings.__struct_fields__, n=1)
        near = f", did you mean {close[0]!r}?" if close else f"; there are: {', '.join(RunSettings.__struct_fields__)}"
        raise ConfigError(f"{file}: no setting {key!r}{near}")
    try:
        settings = msgspec.convert(merged, RunSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file or 'settings'}: {error}") from error
    if not settings.env:
        raise ConfigError("no environment: name one, such as `rollout run guess_number`; `rollout envs` lists them")
    return settings


def _read_toml(file: str) -> dict[str, Any]:
    try:
        return msgspec.toml.decode(Path(file).read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"cannot read {file!r}: {error.strerror}") from error
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


def load_tasks(settings: RunSettings, env: Env) -> list[Task]:
    """The tasks to play. Raises ConfigError for a file with a broken line, naming it."""
    count = settings.num_tasks
    if count is not None and count < 1:
        raise ConfigError(f"-n must be 1 or more, not {count}")
    if settings.rollouts_per_task < 1:
        raise ConfigError(f"-r must be 1 or more, not {settings.rollouts_per_task}")
    if settings.tasks is None:
        wanted = DEFAULT_TASKS if count is None else count
        return list(islice(env.tasks(wanted, settings.seed), wanted))
    return list(islice(_task_lines(settings.tasks), count))


def _task_lines(file: str) -> Iterable[Task]:
    try:
        lines = Path(file).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the tasks of {file!r}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ConfigError(f"{file}, line {number}: not a JSON object: {error}") from error
