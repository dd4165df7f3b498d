"""What several processes played adds up to what the engine says."""

from __future__ import annotations

from rollout.observe.stats import Played, Stats
from rollout.records import Route, Turn
from rollout.servers.fleet import ServerState


def test_processes_add_up() -> None:
    """Counts and bytes are summed, of the loops' delays the worst counts, trajectories are counted by server."""
    stats = Stats(servers=[ServerState(url=url, up=True, deaths=0) for url in ("a", "b")], finished=3)
    first = Played(sent_bytes=10, cpu_s=1.5, loop_lag_p99_s=0.01, loop_lag_max_s=0.5, trajectories=[1, 2])
    second = Played(sent_bytes=5, cpu_s=0.5, loop_lag_p99_s=0.03, loop_lag_max_s=0.1, trajectories=[0, 4])
    for route in (Route.TOKEN_IN, Route.TOKEN_IN, Route.MESSAGE_IN):
        first.add_turn(Turn(route=route, completion_tokens=7))
    for played in (first, second):
        stats.add(played)
    assert (stats.turns, stats.token_in_turns, stats.message_in_turns, stats.completion_tokens) == (3, 2, 1, 21)
    assert (stats.sent_bytes, stats.cpu_s, stats.finished) == (15, 2.0, 3)
    assert (stats.loop_lag_p99_s, stats.loop_lag_max_s) == (0.03, 0.5)
    assert [server.trajectories for server in stats.servers] == [1, 6]


def test_a_process_measures_itself() -> None:
    """Its memory and its CPU are not nothing."""
    played = Played()
    played.measure()
    assert played.peak_rss_mb > 1
    assert played.cpu_s > 0
