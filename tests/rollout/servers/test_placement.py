"""Placement: least load, affinity, and nothing left behind."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rollout.servers.placement import Placement

SERVERS = 3
GROUP_SIZE = 4
SESSIONS = st.integers(0, 3 * GROUP_SIZE - 1)


def group_of(session: str) -> str:
    return f"g{int(session[1:]) // GROUP_SIZE}"


def test_a_group_counts_whole_as_soon_as_its_first_member_is_placed() -> None:
    """Groups are spread evenly, in whatever order their members' first requests come."""
    placement = Placement(2)
    assert [placement.place(f"{group}0", group, 2) for group in "abcd"] == [0, 1, 0, 1]
    placement = Placement(2)
    order = ["a0", "a1", "b0", "c0", "d0", "c1", "b1", "d1"]
    where = {name: placement.place(name, name[0], 2) for name in order}
    assert [where[f"{group}0"] for group in "abcd"] == [0, 1, 0, 1]
    assert placement.loads == [4, 4]


def test_members_that_never_come_are_not_waited_for() -> None:
    """A group that ends before all of it was placed leaves no load behind."""
    placement = Placement(2)
    placement.place("a0", "a", 8)
    placement.release("a0")
    assert [placement.place(name, name) for name in "bc"] == [0, 1]


class Placements(RuleBasedStateMachine):
    """Random places, ends, deaths and returns, against a plain account of who is where."""

    def __init__(self) -> None:
        super().__init__()
        self.placement = Placement(SERVERS)
        self.where: dict[str, int] = {}
        self.came: Counter[tuple[str, int]] = Counter()
        """How many of a group have come to a server since the last time that it had none there."""

    @rule(number=SESSIONS)
    def place(self, number: int) -> None:
        session = f"s{number}"
        group = group_of(session)
        before = self.where.get(session)
        if before is not None and not self.placement.up[before]:
            self.leave(session)
        loads = [self.expected(server) for server in range(SERVERS)]
        others = {other: server for other, server in self.where.items() if other != session}
        mates = {server for other, server in others.items() if group_of(other) == group}
        server = self.placement.place(session, group, GROUP_SIZE)
        up = {at for at, is_up in enumerate(self.placement.up) if is_up}
        if not up:
            assert server is None
            return
        assert server in up
        assert server is not None
        if before in up:
            assert server == before, "a trajectory stays where it is"
        elif mates & up:
            assert server in mates, "members of a group go out together"
        else:
            assert loads[server] == min(loads[at] for at in up)
        if session not in self.where:
            self.came[group, server] += 1
        self.where[session] = server

    def leave(self, session: str) -> None:
        server = self.where.pop(session, None)
        if server is not None and not self.there(group_of(session), server):
            del self.came[group_of(session), server]

    def there(self, group: str, server: int) -> int:
        return sum(at == server and group_of(session) == group for session, at in self.where.items())

    def expected(self, server: int) -> int:
        """Trajectories that are there, and those that will follow the first of their group."""
        awaited = [max(0, GROUP_SIZE - came) for (_, at), came in self.came.items() if at == server]
        return list(self.where.values()).count(server) + sum(awaited)

    @rule(number=SESSIONS)
    def end(self, number: int) -> None:
        self.placement.release(f"s{number}")
        self.leave(f"s{number}")

    @rule(server=st.integers(0, SERVERS - 1), up=st.booleans())
    def change(self, server: int, up: bool) -> None:
        self.placement.up[server] = up

    @invariant()
    def every_load_is_accounted_for(self) -> None:
        assert self.placement.loads == [list(self.where.values()).count(server) for server in range(SERVERS)]

    def teardown(self) -> None:
        for session in list(self.where):
            self.placement.release(session)
        assert self.placement.loads == [0] * SERVERS
        assert not self.placement._groups
        assert not any(self.placement._awaited)


TestPlacements = pytest.mark.slow(Placements.TestCase)
