"""How long a worker has said nothing, by the time that this process was awake for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout.workers.silence import LOOK_S, MOST_COUNTED_S, Silence


def test_a_worker_that_says_nothing_is_silent_for_that_long() -> None:
    """Four looks a second apart in which nothing came are a second of silence."""
    silence = Silence()
    assert silence.look(10, LOOK_S) == 0.0
    assert [silence.look(10, LOOK_S) for _ in range(4)][-1] == 4 * LOOK_S


def test_a_word_ends_the_silence() -> None:
    """Any byte is a sign of life, also one of a frame that is still on its way."""
    silence = Silence()
    for _ in range(100):
        silence.look(10, LOOK_S)
    assert silence.look(11, LOOK_S) == 0.0


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_time_in_which_we_slept_ourselves_does_not_count(elapsed: list[float]) -> None:
    """However late the looks come, each counts half a second at most: a suspended engine finds no worker silent."""
    silence = Silence()
    silence.look(10, LOOK_S)
    for elapsed_s in elapsed:
        silence.look(10, elapsed_s)
    assert silence.seconds <= len(elapsed) * MOST_COUNTED_S
    assert silence.seconds <= sum(elapsed) + 1e-9
