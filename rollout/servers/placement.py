"""Which server each trajectory is on: the least loaded, together with its group, for as long as it plays. Pure."""

from __future__ import annotations

import msgspec


class _Placed(msgspec.Struct):
    server: int
    group: str


class _Group(msgspec.Struct):
    """A group's part on one server."""

    there: int = 0
    awaited: int = 0
    """Members that have not been placed yet: they will come here, and are counted now."""


class Placement:
    """Trajectories over servers, by index. One that was placed stays, so that its prefix stays cached there."""

    def __init__(self, servers: int) -> None:
        self.up = [True] * servers
        self.loads = [0] * servers
        """Trajectories on each server."""
        self._placed: dict[str, _Placed] = {}
        self._groups: dict[tuple[str, int], _Group] = {}
        self._awaited = [0] * servers

    def __repr__(self) -> str:
        return f"<Placement {self.loads}, up {self.up}>"

    def place(self, session: str, group: str = "", group_size: int = 1) -> int | None:
        """The trajectory's server: where it is, else its group's, else the least loaded. None where none is up.

        A server's load is its trajectories and, with the first of a group of `group_size`, those that will follow it.
        """
        placed = self._placed.get(session)
        if placed is not None:
            if self.up[placed.server]:
                return placed.server
            self.release(session)
        server = self._choose(group)
        if server is not None:
            self._placed[session] = _Placed(server, group)
            self.loads[server] += 1
            self._join(group, server, group_size)
        return server

    def release(self, session: str) -> None:
        """The trajectory has ended, however it did. May be called twice, and for one that was never placed."""
        placed = self._placed.pop(session, None)
        if placed is None:
            return
        self.loads[placed.server] -= 1
        part = self._groups[placed.group, placed.server]
        part.there -= 1
        if not part.there:
            self._awaited[placed.server] -= part.awaited
            del self._groups[placed.group, placed.server]

    def _join(self, group: str, server: int, size: int) -> None:
        part = self._groups.get((group, server))
        if part is None:
            part = self._groups[group, server] = _Group(awaited=size if group else 1)
            self._awaited[server] += part.awaited
        part.there += 1
        if part.awaited:
            part.awaited -= 1
            self._awaited[server] -= 1

    def _choose(self, group: str) -> int | None:
        there = [server for server, up in enumerate(self.up) if up]
        together = [server for server in there if group and (group, server) in self._groups]
        if together:
            return max(together, key=lambda server: self._groups[group, server].there)
        return min(there, key=lambda server: self.loads[server] + self._awaited[server], default=None)
