"""Placement: least load, affinity, and nothing left behind."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rollout.placement import Placement

SERVERS = 3
SESSIONS = st.integers(0, 11)


class Placements(RuleBasedStateMachine):
    """Random places, ends, deaths and returns, against a plain account of who is where."""

    def __init__(self) -> None:
        super().__init__()
        self.placement = Placement(SERVERS)
        self.where: dict[str, int] = {}

    @rule(number=SESSIONS)
    def place(self, number: int) -> None:
        session, group = f"s{number}", f"g{number // 4}"
        loads = list(self.placement.loads)
        others = {other: server for other, server in self.where.items() if other != session}
        mates = {server for other, server in others.items() if f"g{int(other[1:]) // 4}" == group}
        server = self.placement.place(session, group)
        up = {at for at, is_up in enumerate(self.placement.up) if is_up}
        before = self.where.pop(session, None)
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
            if before is not None:
                loads[before] -= 1
            assert loads[server] == min(loads[at] for at in up)
        self.where[session] = server

    @rule(number=SESSIONS)
    def end(self, number: int) -> None:
        self.placement.release(f"s{number}")
        self.where.pop(f"s{number}", None)

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


TestPlacements = Placements.TestCase
