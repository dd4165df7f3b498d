"""Which server each trajectory is on: the least loaded, together with its group, for as long as it plays. Pure."""

from __future__ import annotations

from collections import Counter

import msgspec


class _Placed(msgspec.Struct):
    server: int
    group: str


class Placement:
    """Trajectories over servers, by index. One that was placed stays, so that its prefix stays cached there."""

    def __init__(self, servers: int) -> None:
        self.up = [True] * servers
        self.loads = [0] * servers
        """Trajectories on each server."""
        self._placed: dict[str, _Placed] = {}
        self._groups: dict[tuple[str, int], int] = Counter()
        """How many of a group are on a server."""

    def __repr__(self) -> str:
        return f"<Placement {self.loads}, up {self.up}>"

    def place(self, session: str, group: str = "") -> int | None:
        """The trajectory's server: where it is, else its group's, else the least loaded. None where none is up."""
        placed = self._placed.get(session)
        if placed is not None:
            if self.up[placed.server]:
                return placed.server
            self.release(session)
        server = self._choose(group)
        if server is not None:
            self._placed[session] = _Placed(server, group)
            self.loads[server] += 1
            self._groups[group, server] += 1
        return server

    def release(self, session: str) -> None:
        """The trajectory has ended, however it did. May be called twice, and for one that was never placed."""
        placed = self._placed.pop(session, None)
        if placed is None:
            return
        self.loads[placed.server] -= 1
        key = placed.group, placed.server
        self._groups[key] -= 1
        if not self._groups[key]:
            del self._groups[key]

    def _choose(self, group: str) -> int | None:
        there = [server for server, up in enumerate(self.up) if up]
        together = [server for server in there if group and (group, server) in self._groups]
        if together:
            return max(together, key=lambda server: self._groups[group, server])
        return min(there, key=lambda server: self.loads[server], default=None)
