"""Rollouts by their keys."""

from __future__ import annotations

import pytest

from rollout.config import EngineConfig
from rollout.dialects.headers import Caller
from rollout.dialects.types import DialectError
from rollout.proxy.sessions import Keys, Served, key_digest
from tests.rollout.proxy.kit import asking_of
from transports.scripted import ScriptedTransport


def served() -> Served:
    config = EngineConfig()
    return Served(asking_of(ScriptedTransport([]), config), config, start=lambda function: None)


def test_the_first_key_that_is_known_names_the_rollout() -> None:
    """Whatever session its headers name; each key is another, and long enough that nobody guesses it."""
    keys, one, other = Keys(), served(), served()
    first, second = keys.add(one), keys.add(other)
    caller = Caller(session=second)
    assert keys.find((first, second), caller) is one
    assert keys.find(("unknown", second), caller) is other
    assert len({first, second}) == 2
    assert len(first) > 40


def test_a_key_that_nobody_has_is_told_from_one_whose_rollout_has_ended() -> None:
    """401 and 409; and no key at all is 401."""
    keys = Keys()
    key = keys.add(served())
    keys.remove(key)
    for asked, status in (((key,), 409), (("x", key), 409), (("x",), 401), ((), 401), (("\udcff",), 401)):
        with pytest.raises(DialectError) as refused:
            keys.find(asked, Caller())
        assert refused.value.status == status


def test_keys_are_looked_up_by_a_digest() -> None:
    """So how long that takes tells nothing of them, and no `repr` has one."""
    keys = Keys()
    key = keys.add(served())
    assert key not in repr(keys)
    assert key.encode() not in key_digest(key)
