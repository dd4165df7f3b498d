"""The cap follows the servers: it grows while they keep up, and shrinks when they say that they do not."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import ConfigError, RolloutError, ServerBusy
from rollout.process import open_files
from rollout.schedule import concurrency as paces
from rollout.schedule.concurrency import CACHE_MARK, REST, AdaptiveConcurrency, allowed_at_once, must_tell_its_load
from rollout.transport import ServerLoad
from tests.log_kit import capture_logs
from tests.rollout.servers.test_fleet import Server, engine
from tests.rollout.test_engine import collect
from transports.scripted import ScriptedTransport


class Unmeasured(ScriptedTransport):
    """A server that does not tell its load."""

    def __init__(self, error: RolloutError) -> None:
        super().__init__([])
        self.error = error

    async def load(self) -> ServerLoad:
        raise self.error


IDLE = ServerLoad(running=10, waiting=0, cache_usage=0.1, preemptions=0)


def test_grows_while_every_slot_is_used() -> None:
    """It doubles at first; with slots to spare it stays."""
    concurrency = AdaptiveConcurrency(16, 100)
    assert concurrency.look(IDLE, used=16, faults=0) == 32
    assert concurrency.look(IDLE, used=20, faults=0) == 32
    assert concurrency.look(IDLE, used=32, faults=0) == 64
    assert concurrency.look(IDLE, used=64, faults=0) == 100


def test_a_full_cache_ends_growth() -> None:
    """The next turns of those that run need some of it, too."""
    concurrency = AdaptiveConcurrency(16, 100)
    full = ServerLoad(running=16, waiting=0, cache_usage=CACHE_MARK, preemptions=0)
    assert concurrency.look(full, used=16, faults=0) == 16


def test_shrinks_on_a_queue_that_stays() -> None:
    """One look may meet requests that have just come; two in a row are a queue. Then it rests, and grows slowly."""
    concurrency = AdaptiveConcurrency(64, 1000)
    queue = ServerLoad(running=64, waiting=20, preemptions=0)
    assert concurrency.look(queue, used=64, faults=0) == 64
    assert concurrency.look(queue, used=64, faults=0) == 48
    for _ in range(REST):
        assert concurrency.look(queue, used=48, faults=0) == 48
    assert concurrency.look(IDLE, used=48, faults=0) == 54


def test_shrinks_at_once_on_preemption_and_on_faults() -> None:
    """Both cost work that was done already."""
    concurrency = AdaptiveConcurrency(64, 1000)
    assert concurrency.look(IDLE, used=10, faults=0) == 64
    preempting = ServerLoad(running=64, waiting=0, preemptions=3)
    assert concurrency.look(preempting, used=64, faults=0) == 48
    concurrency = AdaptiveConcurrency(64, 1000)
    assert concurrency.look(IDLE, used=64, faults=2) == 48


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.builds(
                ServerLoad,
                running=st.none() | st.integers(0, 500),
                waiting=st.none() | st.integers(0, 500),
                cache_usage=st.none() | st.floats(0, 1),
                preemptions=st.none() | st.integers(0, 5),
            ),
            st.integers(0, 200),
            st.integers(0, 5),
        )
    )
)
def test_stays_within_its_bounds(looks: list[tuple[ServerLoad, int, int]]) -> None:
    """Whatever a server says, at least one rollout plays and never more than allowed."""
    concurrency = AdaptiveConcurrency(16, 128)
    for load, used, faults in looks:
        assert 1 <= concurrency.look(load, used=used, faults=faults) <= 128


async def test_an_engine_grows_by_its_servers_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap that the engine uses is the concurrency's, and shows in its stats."""
    server = Server()
    server.load_now = IDLE
    running = engine(server, concurrency="auto")
    monkeypatch.setattr(paces, "LOOK_EVERY_S", 0.001)
    async with running:
        await anyio.wait_all_tasks_blocked()
        assert running.stats().concurrency == paces.START
        groups = await collect(running, 60)
        assert len(groups) == 60
        assert running.stats().most_running >= paces.START


async def test_growth_needs_a_server_with_metrics() -> None:
    """One that keeps none is said at once; one that does not answer now may do so later."""
    with pytest.raises(ConfigError, match="give a number"):
        await must_tell_its_load(Unmeasured(ConfigError("no metrics")))
    await must_tell_its_load(Unmeasured(ServerBusy("full")))


@pytest.mark.parametrize(("files", "allowed"), [(8, 8), (3, 3)])
def test_no_more_than_files_may_be_open(monkeypatch: pytest.MonkeyPatch, files: int, allowed: int) -> None:
    """It is said where that is fewer than asked for; without connections it is no limit."""
    monkeypatch.setattr(open_files, "raise_limit", lambda at_once: min(at_once, files))
    with capture_logs() as logs:
        assert allowed_at_once(8, connects=True) == allowed
        assert allowed_at_once(8, connects=False) == 8
    assert [line["concurrency"] for line in logs] == [3] * (allowed < 8)


def test_too_few_files_for_one_rollout_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what raises the limit."""
    monkeypatch.setattr(open_files, "raise_limit", lambda at_once: 0)
    with pytest.raises(ConfigError, match="ulimit -n"):
        allowed_at_once(8, connects=True)
