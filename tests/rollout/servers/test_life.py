"""Whatever servers do, in whatever order: one that is up has the weights and the pause of that moment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rollout.errors import ConfigError, ConnectionFailed, RequestRefused
from rollout.servers.life import LONGEST_WAIT_S, Ask, Do, Lives, Load, Open, Pause, Phase, Resume


class World:
    """Servers as they are, behind what the machine believes of them."""

    def __init__(self, count: int) -> None:
        self.lives = Lives(count)
        self.now = 0.0
        self.alive = [True] * count
        self.weights = ["start"] * count
        self.paused = [False] * count
        self.loads = [0] * count
        """Since it last came back."""
        self.begun: list[Do] = []

    def step(self) -> None:
        for do in self.lives.due(self.now):
            self.begun = [other for other in self.begun if other.server != do.server]
            self.begun.append(do)

    def finish(self, do: Do) -> None:
        """The server does as it was told; a dead one fails."""
        self.begun.remove(do)
        at = do.server
        if not self.alive[at]:
            self.lives.failed(do, ConnectionFailed("gone"), self.now)
        else:
            self.obey(do)
            self.lives.done(do, self.now)
        self.step()

    def obey(self, do: Do) -> None:
        at = do.server
        match do.action:
            case Load(version=version):
                self.weights[at] = version or "start"
                self.loads[at] += 1
            case Pause():
                self.paused[at] = True
            case Resume():
                self.paused[at] = False

    def fail(self, do: Do, error: Exception, *, obeyed: bool = False) -> None:
        """It fails; `obeyed` where only the answer was lost."""
        self.begun.remove(do)
        if obeyed:
            self.obey(do)
        self.lives.failed(do, error, self.now)
        self.step()

    def settle(self) -> None:
        """Everything that is begun ends well, and time passes, until nothing is left to be done."""
        for _ in range(100):
            self.step()
            while self.begun:
                self.finish(self.begun[0])
            self.now += LONGEST_WAIT_S

    def take(self, server: int, kind: type) -> Do:
        return next(do for do in self.begun if do.server == server and isinstance(do.action, kind))


def world(count: int = 2) -> World:
    made = World(count)
    made.settle()
    return made


def phases(made: World) -> list[str]:
    return [server.phase.value for server in made.lives.servers]


def update(made: World, version: str) -> Ask:
    ask = made.lives.load(version, f"/w/{version}")
    made.step()
    while made.begun and not ask.decided:
        made.finish(made.begun[0])
    return ask


def lose(made: World, at: int) -> None:
    made.alive[at] = False
    part(made, at)


def part(made: World, at: int) -> None:
    """It is not heard any more, and does not hear what was begun."""
    made.begun = [do for do in made.begun if do.server != at]
    made.lives.lost(at, "it does not answer", made.now)
    made.step()


def restart(made: World, at: int) -> None:
    made.alive[at], made.weights[at], made.paused[at], made.loads[at] = True, "start", False, 0
    made.now += 1
    made.step()


def test_servers_are_opened_at_once_and_are_up_when_nothing_is_left() -> None:
    """None waits for another; none is up before it is open."""
    made = World(3)
    made.step()
    assert phases(made) == ["connecting"] * 3
    made.finish(made.begun[1])
    assert phases(made) == ["connecting", "up", "connecting"]
    assert made.lives.ups == [0, 1, 0]


def test_the_worked_example() -> None:
    """A server that comes back during an update and a pause is up only with both."""
    made = world()
    update(made, "1")
    lose(made, 1)
    restart(made, 1)
    made.finish(made.take(1, Open))
    loading = made.take(1, Load)
    assert update_while(made, "2", loading) == ["2", "start"]
    made.finish(loading)
    assert made.weights[1] == "1"
    made.lives.pause("caller", "keep")
    made.step()
    made.finish(made.take(0, Pause))
    made.finish(made.take(1, Load))
    assert not made.lives.servers[1].up
    made.finish(made.take(1, Pause))
    assert phases(made) == ["paused", "paused"]
    assert made.weights == ["2", "2"]
    assert made.paused == [True, True]
    made.lives.resume("caller")
    made.settle()
    assert phases(made) == ["up", "up"]
    assert made.paused == [False, False]


def update_while(made: World, version: str, under_way: Do) -> list[str]:
    """Updates those that are up, and leaves one action under way."""
    ask = made.lives.load(version, "/w")
    made.step()
    for do in [do for do in made.begun if do is not under_way]:
        made.finish(do)
    assert ask.decided
    return list(made.weights)


def test_a_server_that_joins_waits_until_an_update_is_decided() -> None:
    """What it would have to load is not known before."""
    made = world()
    lose(made, 1)
    ask = made.lives.load("1", "/w/1")
    made.step()
    loading = made.take(0, Load)
    restart(made, 1)
    made.finish(made.take(1, Open))
    assert [do.server for do in made.begun] == [0]
    made.finish(loading)
    assert ask.obeyed == {0}
    made.finish(made.take(1, Load))
    assert made.weights == ["1", "1"]


def test_an_update_that_all_fail_changes_nothing() -> None:
    """The old weights are wanted still, all stay up and are resumed, and the first error is the update's."""
    made = world()
    made.lives.pause("update", "keep")
    made.step()
    made.finish(made.begun[0])
    made.finish(made.begun[0])
    ask = made.lives.load("1", "/nothing")
    made.step()
    made.fail(made.begun[0], RequestRefused("no such folder"))
    assert not ask.decided
    made.fail(made.begun[0], RequestRefused("none here"))
    assert ask.decided
    assert str(ask.error) == "no such folder"
    made.lives.resume("update")
    made.settle()
    assert phases(made) == ["up", "up"]
    assert made.paused == [False, False]
    assert made.weights == ["start", "start"]


def test_a_load_whose_answer_was_lost_is_undone_by_the_wanted_weights() -> None:
    """Nobody obeyed, as far as is known; one did. Both are given the old weights before they are used again."""
    made = world()
    made.lives.load("1", "/w/1")
    made.settle()
    ask = made.lives.load("2", "/w/2")
    made.step()
    made.fail(made.take(0, Load), ConnectionFailed("the answer was cut"), obeyed=True)
    made.fail(made.take(1, Load), ConnectionFailed("the answer was cut"))
    assert isinstance(ask.error, ConnectionFailed)
    assert phases(made) == ["out", "out"]
    assert made.weights == ["2", "1"]
    made.settle()
    assert phases(made) == ["up", "up"]
    assert made.weights == ["1", "1"]


def test_a_server_that_failed_to_load_comes_back_level_and_resumed() -> None:
    """It is out with its pause, and is given the weights and resumed before it is used."""
    made = world()
    made.lives.pause("update", "keep")
    made.settle()
    ask = made.lives.load("1", "/w/1")
    made.step()
    made.fail(made.take(1, Load), RequestRefused("out of memory"))
    made.finish(made.take(0, Load))
    assert ask.error is None
    assert phases(made) == ["paused", "out"]
    made.lives.resume("update")
    made.settle()
    assert phases(made) == ["up", "up"]
    assert made.paused == [False, False]
    assert made.weights == ["1", "1"]


def test_a_server_that_refuses_to_load_is_out_and_said() -> None:
    """Another has the weights: they are wanted, and the error is raised all the same."""
    made = world()
    ask = made.lives.load("1", "/w/1")
    made.step()
    made.fail(made.take(1, Load), ConfigError("no /collective_rpc"))
    made.finish(made.take(0, Load))
    assert isinstance(ask.error, ConfigError)
    assert made.lives.weights.version == "1"
    assert phases(made) == ["up", "out"]


def test_a_pause_that_one_server_cannot_do_is_withdrawn() -> None:
    """It would sample on: nobody is paused then, and the caller is told."""
    made = world()
    ask = made.lives.pause("caller", "keep")
    made.step()
    made.finish(made.take(0, Pause))
    made.fail(made.take(1, Pause), ConfigError("no /pause"))
    assert isinstance(ask.error, ConfigError)
    made.settle()
    assert phases(made) == ["up", "up"]
    assert made.paused == [False, False]
    assert not made.lives.pauses


def test_a_server_that_failed_to_pause_comes_back_paused() -> None:
    """Where another is paused the pause is in force: the one that failed is out, and joins it."""
    made = world()
    ask = made.lives.pause("caller", "keep")
    made.step()
    made.finish(made.take(0, Pause))
    made.fail(made.take(1, Pause), ConnectionFailed("reset"))
    assert ask.error is None
    assert phases(made) == ["paused", "out"]
    made.settle()
    assert phases(made) == ["paused", "paused"]
    assert made.paused == [True, True]


def test_a_callers_pause_outlives_an_updates() -> None:
    """Each has its own name; the servers are resumed when nobody wants a pause."""
    made = world()
    made.lives.pause("caller", "keep")
    made.settle()
    made.lives.pause("update", "wait")
    made.step()
    assert made.begun == [], "what is paused has nothing left to be waited for"
    made.lives.resume("update")
    made.settle()
    assert made.paused == [True, True]
    made.lives.resume("caller")
    made.settle()
    assert made.paused == [False, False]


def test_what_a_pause_has_frozen_can_still_be_aborted() -> None:
    """`abort` under another pause is told to the servers; the others are not."""
    made = world(1)
    made.lives.pause("caller", "keep")
    made.settle()
    ask = made.lives.pause("update", "abort")
    made.step()
    assert made.begun[0].action == Pause(number=2, mode="abort")
    made.finish(made.begun[0])
    assert ask.decided


def test_a_pause_that_is_given_up_does_not_wait_for_what_is_in_flight() -> None:
    """The server is told to go on at once."""
    made = world(1)
    made.lives.pause("caller", "wait")
    made.step()
    draining = made.begun[0]
    assert phases(made) == ["draining"]
    made.lives.resume("caller")
    made.step()
    assert isinstance(made.begun[0].action, Resume)
    made.lives.done(draining, made.now)
    made.finish(made.begun[0])
    assert phases(made) == ["up"]
    assert made.lives.servers[0].paused is False


def test_a_pause_with_no_server_up_holds_for_the_one_that_comes() -> None:
    """Nothing samples, so it is in force at once."""
    made = world(1)
    lose(made, 0)
    ask = made.lives.pause("caller", "keep")
    assert ask.decided
    assert ask.error is None
    restart(made, 0)
    made.settle()
    assert phases(made) == ["paused"]
    assert made.paused == [True]


def test_weights_of_someone_else_keep_a_server_out() -> None:
    """They cannot be loaded again from here; the next ones can."""
    made = world()
    made.lives.load("1", None)
    made.settle()
    lose(made, 1)
    restart(made, 1)
    made.settle()
    assert phases(made) == ["up", "out"]
    update(made, "2")
    made.settle()
    assert phases(made) == ["up", "up"]
    assert made.weights == ["2", "2"]


def test_a_server_that_refuses_is_tried_again_less_and_less_often() -> None:
    """A wrong model under a known address costs a look every half a minute at most."""
    made = World(1)
    waits = []
    for _ in range(8):
        made.step()
        before = made.now
        made.fail(made.begun[0], ConfigError("another model"))
        while not made.begun:
            made.now += 1
            made.step()
        waits.append(made.now - before)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_follower_uses_what_the_engine_says() -> None:
    """It loads nothing, opens anew what was away, and what it finds dead itself stays out until the engine can know."""
    made = world()
    made.lives.follow([7, 0], made.now)
    made.step()
    assert made.lives.ups == [7, 0]
    made.lives.follow([7, 3], made.now)
    made.step()
    assert [do.action for do in made.begun] == [Open()]
    made.finish(made.begun[0])
    assert made.lives.ups == [7, 3]
    made.lives.lost(1, "reset", made.now)
    made.lives.follow([7, 3], made.now)
    made.step()
    assert made.begun == []
    made.lives.follow([8, 4], made.now)
    made.step()
    assert phases(made) == ["connecting", "connecting"]
    made.settle()
    assert made.lives.ups == [8, 4]
    assert made.loads == [0, 0]


class Storm(RuleBasedStateMachine):
    """Three servers that die, come back, load slowly, refuse and lose answers, under updates and pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.world = world(3)
        self.asks: list[Ask] = []
        self.versions = 0

    @property
    def lives(self) -> Lives:
        return self.world.lives

    @rule(at=st.integers(0, 2))
    def dies(self, at: int) -> None:
        if self.world.alive[at]:
            lose(self.world, at)

    @rule(at=st.integers(0, 2))
    def is_lost_for_a_moment(self, at: int) -> None:
        self.world.loads[at] = 0
        part(self.world, at)

    @rule(at=st.integers(0, 2))
    def comes_back(self, at: int) -> None:
        if not self.world.alive[at]:
            restart(self.world, at)

    @rule(mode=st.sampled_from(["keep", "wait", "abort"]), reason=st.sampled_from(["caller", "update"]))
    def pauses(self, mode: Any, reason: str) -> None:
        self.asks.append(self.lives.pause(reason, mode))
        self.world.step()

    @rule(reason=st.sampled_from(["caller", "update"]))
    def resumes(self, reason: str) -> None:
        self.lives.resume(reason)
        self.world.step()

    @precondition(lambda self: not self.lives.updating)
    @rule()
    def updates(self) -> None:
        self.versions += 1
        self.asks.append(self.lives.load(str(self.versions), "/w"))
        self.world.step()

    @precondition(lambda self: self.world.begun)
    @rule(data=st.data())
    def is_done(self, data: Any) -> None:
        do = data.draw(st.sampled_from(self.world.begun))
        if isinstance(do.action, Load) and self.lives.servers[do.server].doing is not do and not self._can_be_mended:
            self.world.begun.remove(do)  # given up meanwhile, and it never arrived
        else:
            self.world.finish(do)

    @precondition(lambda self: self.world.begun)
    @rule(data=st.data(), refused=st.booleans(), obeyed=st.booleans())
    def fails(self, data: Any, refused: bool, obeyed: bool) -> None:
        do = data.draw(st.sampled_from(self.world.begun))
        error = ConfigError("refused") if refused else ConnectionFailed("reset")
        if isinstance(do.action, Load):
            obeyed = obeyed and not refused and self._can_be_mended
        self.world.loads[do.server] = 0  # whatever failed, it may be out for it, and is given its weights again
        self.world.fail(do, error, obeyed=obeyed)

    @property
    def _can_be_mended(self) -> bool:
        """Whether a load whose answer nobody heard is made good by another.

        What a server started with cannot be given to it again: of the first load nobody can know what became of it.
        """
        return self.lives.weights.path is not None

    @rule(seconds=st.sampled_from([0.5, 1.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.step()

    @invariant()
    def a_server_that_is_up_is_level(self) -> None:
        """Unless it is being brought level, or an update or a pause is undecided."""
        undecided = self.lives.updating or any(not ask.decided for ask in self.asks)
        for at, server in enumerate(self.lives.servers):
            if not server.up or server.doing is not None or undecided:
                continue
            assert server.phase in (Phase.UP, Phase.PAUSED)
            assert self.world.weights[at] == (self.lives.weights.version or "start")
            assert self.world.paused[at] == bool(self.lives.pauses)

    @invariant()
    def a_server_that_joins_is_not_up_before_it_is_level(self) -> None:
        for at, server in enumerate(self.lives.servers):
            if server.up and not self.lives.updating:
                assert self.world.weights[at] == (self.lives.weights.version or "start")

    @invariant()
    def weights_are_loaded_once(self) -> None:
        """A return costs one load, and one more for each update meanwhile."""
        assert all(loads <= self.versions for loads in self.world.loads)

    def teardown(self) -> None:
        """When all are there and nothing fails any more, all are up, level, and paused only if somebody wants it."""
        for at in range(3):
            if not self.world.alive[at]:
                restart(self.world, at)
        self.world.settle()
        assert all(ask.decided for ask in self.asks)
        assert len(set(self.world.weights)) == 1
        assert self.world.paused == [bool(self.lives.pauses)] * 3
        for reason in self.lives.pauses:
            self.lives.resume(reason)
        self.world.settle()
        assert phases(self.world) == ["up"] * 3
        assert self.world.paused == [False] * 3


TestStorm = pytest.mark.slow(pytest.mark.filterwarnings("ignore")(Storm.TestCase))
TestStorm.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
