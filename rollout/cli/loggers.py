"""`--log NAME:REST`: found before anything is played, made once the servers are there.

A run that goes on goes on at its trackers, too: its folder keeps what each calls the run, and how many groups came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec

from rollout.door import error_text, type_name
from rollout.errors import ConfigError
from rollout.log import get_logger
from rollout.observe.loggers import Logger, Makes, find_maker
from rollout.observe.secrets import without_secrets
from rollout.observe.stats import Stats
from rollout.process.threads import Threads
from rollout.records import Group
from rollout.store.config import write_whole

_log = get_logger(__name__)

#: The file of a run's folder that says where its trackers are.
TRACKERS = "trackers.json"

#: Seconds until the trackers must have begun: their packages try again for minutes at a server that is not there.
BEGIN_S = 60.0

Found = list[tuple[str, Makes, str]]


def found(specs: Sequence[str]) -> Found:
    """What makes each of them. Imports their packages. Raises ConfigError for the first that cannot be had."""
    return [(spec, *find_maker(spec)) for spec in specs]


class Tracked(msgspec.Struct):
    """Where a run's trackers are."""

    groups: int = 0
    """Those that they were told of: the step."""
    runs: dict[str, str] = {}
    """What each calls the run, by `--log NAME:REST`; those that go on by themselves are not among them."""


def tracked(folder: Path | None) -> Tracked:
    """What a folder's earlier sessions have told; what cannot be read is nothing, and is said."""
    try:
        return msgspec.json.decode((folder / TRACKERS).read_bytes(), type=Tracked) if folder is not None else Tracked()
    except FileNotFoundError:
        return Tracked()
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        _log.warning("trackers_not_readable", folder=str(folder), error=error_text(error), so="their runs begin anew")
        return Tracked()


def run_ids(found: Found, ready: Sequence[Logger]) -> dict[str, str]:
    """What each calls the run, of those that can go on."""
    ids = {spec: getattr(logger, "run_id", None) for (spec, *_), logger in zip(found, ready, strict=True)}
    return {spec: name for spec, name in ids.items() if isinstance(name, str)}


class Tracking:
    """A logger that keeps in the run's folder how far the others were told, as often as they hear of stats."""

    def __init__(self, folder: Path, told: Tracked) -> None:
        """Writes it. Raises OSError."""
        self._path, self._told = folder / TRACKERS, told
        self._write()

    def on_group(self, group: Group, step: int, evaluation: bool) -> None:
        """See `Logger`."""
        self._told.groups = step

    def on_stats(self, stats: Stats, step: int) -> None:
        """See `Logger`."""
        self._write()

    def close(self) -> None:
        """See `Logger`."""
        self._write()

    def _write(self) -> None:
        write_whole(self._path, msgspec.json.format(msgspec.json.encode(self._told)) + b"\n")


async def begun(
    loggers: Found,
    name: str,
    config: Mapping[str, Any],
    runs: Mapping[str, str] = {},
    *,
    limit_s: float = BEGIN_S,
) -> list[Logger]:
    """As `made`, in a thread that is given up where it takes too long. Raises ConfigError."""
    threads = Threads(1)
    try:
        with anyio.fail_after(limit_s):
            return await threads.run(made, loggers, name, config, runs)
    except TimeoutError:
        named = " ".join(f"--log {spec}" for spec, *_ in loggers)
        raise ConfigError(f"{named} has not begun within {limit_s:g} s: is its server there?") from None
    finally:
        threads.close()


def made(loggers: Found, name: str, config: Mapping[str, Any], runs: Mapping[str, str] = {}) -> list[Logger]:
    """The loggers, which may have asked a server; those that `runs` has by their spec go on with that run of theirs.

    Raises ConfigError, after which none is left open.
    """
    ready: list[Logger] = []
    for spec, make, rest in loggers:
        try:
            ready.append(_going_on(spec, make, rest, name, config, runs.get(spec)) or make(rest, name, config))
        except Exception as error:  # the package's own, of many kinds
            for logger in ready:
                logger.close()
            raise ConfigError(f"--log {spec} cannot begin: {_said(error)}") from error
    return ready


def _going_on(
    spec: str, make: Makes, rest: str, name: str, config: Mapping[str, Any], run_id: str | None
) -> Logger | None:
    """A logger of the tracker's run; None where there is none, or it is gone there."""
    if run_id is None:
        return None
    try:
        return make(rest, name, config, run_id=run_id)
    except Exception as error:  # deleted there, or the tracker is another one now
        _log.warning("tracker_has_not_the_run", log=spec, run=run_id, error=_said(error), so="another one is begun")
        return None


def _said(error: BaseException) -> str:
    said = " ".join(without_secrets(f"{type_name(error)}: {error_text(error)}").split())
    return f"{said:.500}"
