"""The prefix cache: what is found, what is kept apart, what is forgotten."""

from __future__ import annotations

import numpy as np

from transports.embedded.cache import BLOCK_TOKENS, KeyValues, PrefixCache


def filled(length: int) -> KeyValues:
    """Keys and values that tell their position."""
    kv = KeyValues(layers=1, kv_heads=1, head_dim=2)
    kv.reserve(length)
    kv.data[..., :length, :] = np.arange(length, dtype=np.float32)[:, None]
    kv.length = length
    return kv


def empty() -> KeyValues:
    """Room for a prompt."""
    return KeyValues(layers=1, kv_heads=1, head_dim=2)


def test_the_longest_stored_prefix_is_copied() -> None:
    """Whole blocks that agree come back with their contents; the last id is never among them."""
    cache, ids = PrefixCache(1024), list(range(64))
    cache.store(ids, None, filled(64))
    kv = empty()
    assert cache.restore(ids, None, kv) == 48
    np.testing.assert_array_equal(kv.data[0, 0, 0, :48, 0], np.arange(48))
    assert cache.restore([*ids, 99], None, empty()) == 64
    assert cache.restore([*ids[:40], 7, *ids[41:]], None, empty()) == 32
    assert cache.restore([5, *ids], None, empty()) == 0


def test_a_salt_sees_only_its_own() -> None:
    """Prompts under another salt, or none, share nothing."""
    cache, ids = PrefixCache(1024), list(range(40))
    cache.store(ids, "a", filled(40))
    assert [cache.restore(ids, salt, empty()) for salt in ("a", "b", None)] == [32, 0, 0]


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    """Beyond the capacity the least recently used prefix is lost, from its end."""
    cache = PrefixCache(4 * BLOCK_TOKENS)
    old, new = list(range(48)), list(range(100, 132))
    cache.store(old, None, filled(48))
    cache.store(new, None, filled(32))
    assert cache.usage == 1.0
    assert cache.restore([*new, 0], None, empty()) == 32
    assert cache.restore([*old, 0], None, empty()) == 32


def test_what_is_used_stays() -> None:
    """Finding a prefix makes it young again."""
    cache = PrefixCache(4 * BLOCK_TOKENS)
    first, second = list(range(32)), list(range(100, 132))
    cache.store(first, None, filled(32))
    cache.store(second, None, filled(32))
    cache.restore([*first, 0], None, empty())
    cache.store(list(range(200, 232)), None, filled(32))
    assert cache.restore([*first, 0], None, empty()) == 32
    assert cache.restore([*second, 0], None, empty()) == 0


def test_clear_forgets_everything() -> None:
    """After new weights nothing of the old ones is found."""
    cache, ids = PrefixCache(1024), list(range(40))
    cache.store(ids, None, filled(40))
    cache.clear()
    assert cache.restore(ids, None, empty()) == 0


def test_no_capacity_is_no_cache() -> None:
    """A capacity of 0 stores nothing and fails nowhere."""
    cache, ids = PrefixCache(0), list(range(40))
    cache.store(ids, None, filled(40))
    assert (cache.restore(ids, None, empty()), cache.usage) == (0, 0.0)
