"""Flags and files become one struct."""

from __future__ import annotations

import pytest

from rollout.errors import ConfigError
from rollout.settings import concurrency_of, read_settings


def test_concurrency_is_a_number_or_auto() -> None:
    """Anything else is named."""
    assert [concurrency_of(text) for text in (None, "auto", "12")] == [None, "auto", 12]
    with pytest.raises(ConfigError, match="-c takes a number or auto, not 'many'"):
        concurrency_of("many")


def test_several_servers_are_a_list_and_one_is_an_address() -> None:
    """One address given once is the same setting as in a file, so that a run goes on with either."""
    one = read_settings(None, {"env": "x", "base_url": ["a"]})
    assert (one.base_url, one.base_urls) == ("a", ["a"])
    assert read_settings(None, {"env": "x", "base_url": ["a", "b", "a"]}).base_urls == ["a", "b"]
    assert read_settings(None, {"env": "x"}).base_urls == []
