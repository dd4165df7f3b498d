"""How many rollouts at once, from what the servers say of themselves (`concurrency="auto"`).

Grows while every slot is used and the servers' queue is empty and their cache below a mark; shrinks on queueing,
preemption and errors. Doubles until the first shrink, then feels its way, as TCP does.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from rollout.errors import ConfigError, TransportError
from rollout.log import get_logger
from rollout.moved import forward_names
from rollout.process import open_files
from rollout.schedule.scheduler import Slots
from rollout.transport import ServerLoad, Transport

#: Rollouts at once to begin with, for each server.
START = 16

#: Seconds between two looks at the metrics.
LOOK_EVERY_S = 1.0

#: Cache in use above which nothing grows: the next turns of those that run need some, too.
CACHE_MARK = 0.85

#: Waiting requests for each running one that count as a queue: new requests wait a moment anywhere.
QUEUE_MARK = 0.1

#: What is left of the cap after a shrink.
SHRINK = 0.75

#: Looks after a shrink in which nothing changes: what is in flight must end first.
REST = 5

_log = get_logger(__name__)


class AdaptiveConcurrency:
    """The cap, from one look at the metrics to the next. Pure."""

    def __init__(self, start: int, most: int) -> None:
        self.cap = start
        self._most = most
        self._doubling = True
        self._rest = 0
        self._queued_before = False
        self._preemptions: int | None = None
        self._faults = 0

    def __repr__(self) -> str:
        return f"<AdaptiveConcurrency {self.cap} of {self._most}>"

    def look(self, load: ServerLoad, *, used: int, faults: int) -> int:
        """The cap from now on. `used` are the slots in use, `faults` all transport faults so far."""
        waiting, running = load.waiting or 0, load.running or 0
        queued = waiting > max(1, QUEUE_MARK * running)
        preempted = self._preemptions is not None and (load.preemptions or 0) > self._preemptions
        pressed = preempted or faults > self._faults or (queued and self._queued_before)
        self._preemptions = load.preemptions if load.preemptions is not None else self._preemptions
        self._faults, self._queued_before = faults, queued
        if self._rest:
            self._rest -= 1
        elif pressed:
            self._doubling, self._rest, self._queued_before = False, REST, False
            self.cap = max(1, int(min(self.cap, used) * SHRINK))
        elif not queued and used >= self.cap and (load.cache_usage or 0.0) < CACHE_MARK:
            self.cap = min(self._most, self.cap * 2 if self._doubling else self.cap + max(1, self.cap // 8))
        return self.cap


async def adapt_concurrency(
    concurrency: AdaptiveConcurrency,
    slots: Slots,
    server: Transport,
    faults: Callable[[], int],
    wake: Callable[[], None],
) -> None:
    """Sets the slots' cap again and again. Never returns. A look that fails changes nothing, nor one at no server."""
    slots.cap = concurrency.cap
    while True:
        await anyio.sleep(LOOK_EVERY_S)
        try:
            load = await server.load()
        except (TransportError, ConfigError) as error:
            _log.debug("no_metrics", error=str(error))
            continue
        if load.running is None and load.waiting is None:
            continue  # nothing is said that growth could be founded on
        before = slots.cap
        slots.cap = concurrency.look(load, used=slots.used, faults=faults())
        if slots.cap > before:
            wake()


async def must_tell_its_load(server: Transport) -> None:
    """Raises ConfigError where there are no metrics that concurrency could follow."""
    try:
        await server.load()
    except TransportError:
        pass  # it may tell it later; until then nothing grows
    except ConfigError as error:
        raise ConfigError("concurrency auto needs a server with metrics: give a number") from error


def allowed_at_once(asked: int, *, connects: bool) -> int:
    """Rollouts that can be in flight: what is asked for, and, with connections, as far as open files go.

    Raises ConfigError where they go for none.
    """
    allowed = open_files.raise_limit(asked)
    if allowed >= asked or not connects:
        return asked
    limit = open_files.limit()
    if not allowed:
        raise ConfigError(f"no more than {limit} files may be open: too few to play; raise it by `ulimit -n`")
    remedy = "raise the hard limit of open files, or lower the concurrency"
    _log.warning("concurrency_limited", open_files=limit, asked=asked, concurrency=allowed, remedy=remedy)
    return allowed


forward_names("rollout.schedule.concurrency")
