"""config.toml: the settings of a run as they lie in its folder, and the folder's format.

Every change of what is written raises FORMAT. A folder of an older format is read, one of a newer format is refused by
name. Within a format, fields that a reader does not know are passed over in `rollouts.jsonl`, where they only tell
more; a setting that is not known is refused where the run goes on, since it would mean something else without it.

    1   had no version: no tasks.jsonl, paths as they were typed, a reward that was not a number as null
    2   format, tasks.jsonl, absolute paths, settings that TOML cannot hold as JSON
    3   a turn's reward, metrics, sampling settings and what its logprobs are of; a rollout's step_reward, score and
        group_reward apart; samples have temperatures and turns
    4   agents: who asked for a turn and whether it is trained on, a rollout's rewards by agent; a recorder's journal
    5   rewards that nobody gave; experts, sampling masks and images beside the lines, which name them
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rollout.address import shown_url
from rollout.errors import ConfigError, UsageError
from rollout.registry import absolute_spec
from rollout.store.settings import DEFAULT_TASKS, RESUMABLE, RunSettings, to_settings

FORMAT = 5

CONFIG = "config.toml"

#: What config.toml has beside the settings.
_FORMAT, _AS_JSON, _NOT_KEPT = "format", "as_json", "not_kept"


class FolderConfig(msgspec.Struct, kw_only=True):
    """What config.toml says."""

    format: int = 1
    settings: dict[str, Any] = {}
    """By name, as they were given."""
    not_kept: list[str] = []
    """What the run had and a folder must not: secrets, by the names of the settings."""


def read_folder_config(folder: Path) -> FolderConfig:
    """The settings of a run. Raises UsageError, also for a folder of a newer format."""
    path = folder / CONFIG
    try:
        values = msgspec.toml.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {str(path)!r}: {error}") from error
    found = values.pop(_FORMAT, 1)
    if not isinstance(found, int) or found > FORMAT:
        raise UsageError(
            f"{str(folder)!r} was written by a newer rollout: format {found}; this one reads up to {FORMAT}: install "
            "the rollout that wrote it"
        )
    not_kept = values.pop(_NOT_KEPT, [])
    for name, text in values.pop(_AS_JSON, {}).items():
        values[name] = msgspec.json.decode(text)
    return FolderConfig(format=found, settings=values, not_kept=not_kept)


def check_format(folder: Path) -> int:
    """The folder's format. Raises UsageError for a newer one. A folder without config.toml is as old as can be."""
    return read_folder_config(folder).format if (folder / CONFIG).is_file() else 1


def write_folder_config(folder: Path, config: FolderConfig) -> None:
    """Writes config.toml whole or not at all. Raises OSError, and UsageError where nothing here writes TOML."""
    try:
        import tomli_w  # here: whoever only reads folders does not need it
    except ImportError as error:
        raise UsageError("to write a run folder tomli_w is needed: pip install 'rollout-engine[cli]'") from error
    values = {name: value for name, value in config.settings.items() if value is not None}
    as_json = {name: msgspec.json.encode(value).decode() for name, value in values.items() if not _fits_toml(value)}
    document = {
        _FORMAT: config.format,
        **({_NOT_KEPT: config.not_kept} if config.not_kept else {}),
        **{name: value for name, value in values.items() if name not in as_json},
        **({_AS_JSON: as_json} if as_json else {}),
    }
    write_whole(folder / CONFIG, tomli_w.dumps(document).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and on the disk. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def config_of(settings: RunSettings) -> FolderConfig:
    """The settings as a folder keeps them: without secrets, and with the size that was meant."""
    kept: dict[str, Any] = msgspec.to_builtins(settings)
    not_kept = [f"headers.{name}" for name in kept.pop("headers", {})]
    runtime_env = kept["ray_runtime_env"] = dict(kept.get("ray_runtime_env") or {})
    not_kept += [f"ray_runtime_env.env_vars.{name}" for name in runtime_env.pop("env_vars", {})]
    urls = kept.get("base_url")
    bare = [shown_url(url) for url in ([urls] if isinstance(urls, str) else urls or [])]
    if bare and bare != ([urls] if isinstance(urls, str) else list(urls or ())):
        kept["base_url"] = bare[0] if isinstance(urls, str) else bare
        not_kept.append("base_url's password")
    if kept["tasks"] is None and kept["num_tasks"] is None:
        kept["num_tasks"] = DEFAULT_TASKS
    return FolderConfig(format=FORMAT, settings=kept, not_kept=not_kept)


def missing_secrets(config: FolderConfig, settings: RunSettings) -> list[str]:
    """What the run had, a folder does not keep, and was not given again."""
    given = {f"headers.{name}" for name in settings.headers}
    given |= {f"ray_runtime_env.env_vars.{name}" for name in settings.ray_runtime_env.get("env_vars", {})}
    if any("@" in url for url in settings.base_urls):
        given.add("base_url's password")
    return [name for name in config.not_kept if name not in given]


def refuse_other_settings(folder: Path, before: FolderConfig, now: RunSettings) -> None:
    """Raises ConfigError where the run would mean something else, naming what differs."""
    then = to_settings(before.settings, str(folder / CONFIG))
    differing = [
        f"{name}: {getattr(then, name)!r} before, {getattr(now, name)!r} now"
        for name in RunSettings.__struct_fields__
        if name not in RESUMABLE and getattr(then, name) != getattr(now, name)
        if name != "env" or not _same_env(then.env, now.env)
    ]
    if differing:
        raise ConfigError(
            f"{str(folder)!r} was played with other settings; {'; '.join(differing)}: leave them out to go on, or give "
            "another -o"
        )


def _same_env(before: str, now: str) -> bool:
    """Whether two names are of one environment. A file that was moved, or named from another place, is the same."""
    files = [Path(spec.rpartition(":")[0]) for spec in (before, now)]
    if all(file.suffix == ".py" for file in files):
        return files[0].name == files[1].name and before.rpartition(":")[2] == now.rpartition(":")[2]
    return absolute_spec(before) == absolute_spec(now)


def _fits_toml(value: Any) -> bool:
    """TOML has no null, and integers of 64 bits."""
    if isinstance(value, Mapping):
        return all(_fits_toml(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_fits_toml(item) for item in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is not None
