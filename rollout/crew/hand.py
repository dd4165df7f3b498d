"""One process as its crew sees it, through all its lives: what it plays, what it was told, what it has played."""

from __future__ import annotations

import anyio
import msgspec
import structlog

from rollout.crew import wire
from rollout.crew.launch import Worker
from rollout.stats import Played

_log = structlog.get_logger(__name__)


class Awaited:
    """A rollout that a process plays."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.ended: wire.Ended | None = None
        self.lost: str | None = None
        """Why it will not come."""


class Hand:
    """One process as its crew sees it, through all its lives."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        """None while it is being started."""
        self.playing: dict[int, Awaited] = {}
        self.told: dict[int, anyio.Event] = {}
        self.strikes = 0
        self.left_out = False
        """Whether it is not started again."""
        self.played = Played()
        self.earlier = list[Played]()
        """Of its earlier lives."""

    def send(self, command: wire.Command) -> None:
        """To a process that is gone it is lost, and so is what it was playing: `lose` says that."""
        self.send_frame(wire.encode(command))

    def send_frame(self, frame: bytes) -> None:
        if self.worker is not None:
            self.worker.channel.send(frame)

    def take(self, event: wire.Event) -> None:
        """Takes what the process said."""
        match event:
            case wire.Ended():
                self.strikes, self.played = 0, event.played
                if (awaited := self.playing.get(event.number)) is not None:
                    awaited.ended = event
                    awaited.over.set()
            case wire.Beat():
                self.played = event.played
            case wire.Followed() if event.number in self.told:
                self.told.pop(event.number).set()
            case wire.Logged():
                getattr(_log, event.level, _log.warning)(event.event, **event.fields)

    def lose(self, why: str) -> None:
        """The process has ended: nothing more comes of it."""
        if self.worker is not None:
            self.worker.channel.close()
        self.worker = None
        # What it used is used no more; what it played stays played.
        self.earlier.append(msgspec.structs.replace(self.played, trajectories=[], peak_rss_mb=0.0, loop_lag_p99_s=0.0))
        self.played = Played()
        for awaited in self.playing.values():
            awaited.lost = why
            awaited.over.set()
        for event in self.told.values():
            event.set()
        self.told.clear()
