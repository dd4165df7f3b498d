"""One process as its pool sees it, through all its lives: what it plays, what it was told, what it has played."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from rollout.log import get_logger
from rollout.observe.stats import Played, Stats
from rollout.play.episode import CLOSE_GRACE_S
from rollout.workers import wire
from rollout.workers.launch import Worker
from rollout.workers.silence import Silence

_log = get_logger(__name__)

_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})


#: How long a process may take to end where its environments share nothing: what it plays is closed meanwhile.
GRACE_S = CLOSE_GRACE_S + 5.0


class Awaited:
    """A rollout that a process plays."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.ended: wire.Ended | None = None
        self.lost: str | None = None
        """Why it will not come."""


class Handle:
    """One process as its pool sees it, through all its lives."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        """None while it is being started."""
        self.playing: dict[int, Awaited] = {}
        self.told: dict[int, anyio.Event] = {}
        self.strikes = 0
        """How often in a row it died without having ended a rollout."""
        self.proven = False
        """Whether it ever ended one."""
        self.left_out = False
        """Whether it is not started again."""
        self.silence = Silence()
        self.worn: str | None = None
        """Why it is to be replaced, by its own word."""
        self.draining_s: float | None = None
        """How long its last rollouts have had, once it takes no more."""
        self.replacing = False
        """Whether it ends because it is worn: that is no death."""
        self.why: str | None = None
        """Why it is ended from here."""
        self.grace_s = GRACE_S
        """How long it may take to end, once it is to."""
        self.played = Played()
        self.earlier = Stats()
        """Of its earlier lives, together."""

    def __repr__(self) -> str:
        state = "left out" if self.left_out else self.why or self.worn or self.worker or "starting"
        return f"<Handle {state}, {len(self.playing)} rollouts>"

    def begin(self, worker: Worker) -> None:
        """A life begins."""
        self.worker = worker
        self.silence, self.worn, self.draining_s, self.replacing, self.why = Silence(), None, None, False, None
        self.grace_s = GRACE_S

    def send(self, command: wire.Command) -> None:
        """To a process that is gone it is lost, and so is what it was playing: `lose` says that."""
        self.send_frame(wire.encode(command))

    def send_frame(self, frame: bytes) -> None:
        """Raises FrameTooLong."""
        if self.worker is not None:
            self.worker.channel.send(frame)

    async def sent(self) -> None:
        """Waits while the process does not take what it is told; no longer than it lives."""
        if self.worker is not None:
            await self.worker.channel.sent()

    def take(self, event: wire.Event) -> None:
        """Takes what the process said."""
        match event:
            case wire.Ended():
                self.strikes, self.proven, self.played = 0, True, event.played
                if (awaited := self.playing.get(event.number)) is not None:
                    awaited.ended = event
                    awaited.over.set()
            case wire.Beat():
                self.played = event.played
            case wire.Followed() if event.number in self.told:
                self.told.pop(event.number).set()
            case wire.Worn():
                self.worn = event.why
            case wire.Logged():
                _repeat(event.level, event.event, event.fields)

    def lose(self, why: str) -> None:
        """The process has ended: nothing more comes of it."""
        if self.worker is not None:
            self.worker.channel.abort()
        self.worker = None
        # What it used is used no more; what it played stays played.
        asked = [tally.copied(in_flight=0) for tally in self.played.asked]
        self.earlier.add(
            msgspec.structs.replace(self.played, trajectories=[], asked=asked, peak_rss_mb=0.0, loop_lag_p99_s=0.0)
        )
        self.played = Played()
        for awaited in self.playing.values():
            awaited.lost = why
            awaited.over.set()
        for event in self.told.values():
            event.set()
        self.told.clear()


def _repeat(level: str, event: str, fields: dict[str, Any]) -> None:
    """Logs here what a process logged. What fails of that costs the event, not the process."""
    try:
        getattr(_log, level if level in _LEVELS else "warning")(event, **fields)
    except Exception as error:
        _log.warning("event_not_logged", what=event, error=type(error).__name__)
