"""What several processes played adds up to what the engine says."""

from __future__ import annotations

from rollout.observe.stats import Played, Stats, Tallies
from rollout.records import Failure, FailureKind, Group, Rollout, Route, Turn
from rollout.servers.fleet import ServerState
from rollout.servers.tally import Tally
from rollout.tokens.prefix import FallbackReason


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


def test_turns_are_counted_in_all_that_is_told_of_them() -> None:
    """Tokens, reasons and times are sums; what a server does not say counts as nothing."""
    played = Played()
    played.add_turn(Turn(route=Route.TOKEN_IN, prompt_tokens=50, cached_tokens=40, request_s=0.5, render_s=0.25))
    played.add_turn(Turn(route=Route.MESSAGE_IN, fallback=FallbackReason.NO_MATCH, prompt_tokens=7, queue_s=1.5))
    assert (played.prompt_tokens, played.cached_tokens, played.fallbacks) == (57, 40, {"no_match": 1})
    assert (played.request_s, played.render_s, played.queue_s) == (0.5, 0.25, 1.5)


def test_what_one_process_counted_is_not_changed_by_the_sum() -> None:
    """Reasons and servers add up by name and place, anew: a process is counted again and again."""
    stats, first, second = Stats(), Played(fallbacks={"no_match": 1}), Played(fallbacks={"no_match": 2, "disabled": 1})
    first.asked, second.asked = [Tally(failed=1)], [Tally(failed=2, in_flight=1), Tally(in_flight=4)]
    for played in (first, second):
        stats.add(played)
    assert stats.fallbacks == {"no_match": 3, "disabled": 1}
    assert [(tally.failed, tally.in_flight) for tally in stats.asked] == [(3, 1), (0, 4)]
    assert (first.fallbacks, first.asked) == ({"no_match": 1}, [Tally(failed=1)])


def test_staleness_is_counted_when_groups_come() -> None:
    """By finished rollouts; what lived through very many updates shares a place."""
    tallies, stats = Tallies(), Stats()
    rollouts = [Rollout(id=f"a-{n}", task_id="a", task_index=0, member=n, staleness=n * 40) for n in range(4)]
    rollouts[0].failure = Failure(kind=FailureKind.STALE, message="")
    tallies.add_group(Group(task_id="a", task_index=0, task={}, rollouts=rollouts), 1.0)
    tallies.tell(stats)
    assert stats.staleness == {40: 1, 64: 2}
