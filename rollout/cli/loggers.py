"""`--log NAME:REST`: found before anything is played, made once the servers are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from rollout.door import error_text, type_name
from rollout.errors import ConfigError
from rollout.observe.loggers import Logger, Makes, find_maker
from rollout.process.threads import Threads

#: Seconds until the trackers must have begun: their packages try again for minutes at a server that is not there.
BEGIN_S = 60.0

Found = list[tuple[str, Makes, str]]


def found(specs: Sequence[str]) -> Found:
    """What makes each of them. Imports their packages. Raises ConfigError for the first that cannot be had."""
    return [(spec, *find_maker(spec)) for spec in specs]


async def begun(loggers: Found, name: str, config: Mapping[str, Any], *, limit_s: float = BEGIN_S) -> list[Logger]:
    """As `made`, in a thread that is given up where it takes too long. Raises ConfigError."""
    threads = Threads(1)
    try:
        with anyio.fail_after(limit_s):
            return await threads.run(made, loggers, name, config)
    except TimeoutError:
        named = " ".join(f"--log {spec}" for spec, *_ in loggers)
        raise ConfigError(f"{named} has not begun within {limit_s:g} s: is its server there?") from None
    finally:
        threads.close()


def made(loggers: Found, name: str, config: Mapping[str, Any]) -> list[Logger]:
    """The loggers, which may have asked a server. Raises ConfigError, after which none is left open."""
    ready: list[Logger] = []
    for spec, make, rest in loggers:
        try:
            ready.append(make(rest, name, config))
        except Exception as error:  # the package's own, of many kinds
            for logger in ready:
                logger.close()
            said = " ".join(f"{type_name(error)}: {error_text(error)}".split())
            raise ConfigError(f"--log {spec} cannot begin: {said:.500}") from error
    return ready
