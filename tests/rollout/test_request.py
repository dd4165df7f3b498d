"""What a token was drawn from: what was asked for, else what the server does by itself, else not known."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.request import Sampling

NUMBERS = st.none() | st.floats(0, 2)
SETTINGS = st.builds(
    Sampling,
    temperature=NUMBERS,
    top_p=NUMBERS,
    top_k=st.none() | st.integers(0, 50),
    min_p=NUMBERS,
    repetition_penalty=NUMBERS,
)


@pytest.mark.slow
@given(settings=SETTINGS)
def test_settings_are_read_back(settings: Sampling) -> None:
    """What changes nothing is left out of a record, and what is not known stays so."""
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Sampling) == settings
    assert msgspec.json.encode(Sampling()) == b"{}"


@pytest.mark.slow
@given(settings=SETTINGS)
def test_what_is_asked_for_comes_before_the_servers_own(settings: Sampling) -> None:
    """A null is not asked for, as servers have it."""
    asked = {"temperature": 0.5, "top_p": None, "max_tokens": 3}
    found = Sampling.of(asked, settings)
    assert found == msgspec.structs.replace(settings, temperature=0.5)
    assert Sampling.of({}, settings) == settings


def test_what_a_server_does_not_say_is_not_known() -> None:
    """Nobody takes a server's silence for temperature 1."""
    found = Sampling.of({"top_k": -1, "temperature": True})
    assert (found.top_k, found.temperature) == (0, None)
    assert "temperature" in found.unknown
    assert "top_k" not in found.unknown


@pytest.mark.parametrize(("settings", "given_"), [(Sampling(), {}), (Sampling(top_k=5, min_p=None), {"top_k": 5})])
def test_what_changes_something_is_told(settings: Sampling, given_: dict[str, float]) -> None:
    """By the servers' names; what changes nothing and what is not known is not."""
    assert settings.given == given_
