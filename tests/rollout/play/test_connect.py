"""What is set of servers is checked before anything is opened, and no secret is in what is said."""

from __future__ import annotations

import pytest

from rollout.config import EngineConfig, check_config
from rollout.errors import ConfigError
from rollout.play.connect import api_key, transport_config


def test_a_key_is_read_as_files_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newline at its end is no part of it."""
    monkeypatch.setenv("KEY", "sk-1\n")
    assert api_key("KEY") == "sk-1"
    monkeypatch.setenv("KEY", " ")
    with pytest.raises(ConfigError, match="KEY is not set"):
        api_key("KEY")


def test_a_wrong_address_is_found_before_anything_is_opened() -> None:
    """Each of several."""
    with pytest.raises(ConfigError, match="99999"):
        check_config(EngineConfig(base_url=["http://a:1", "http://b:99999"]))


def test_no_rollout_waits_for_a_connection() -> None:
    """The pool has room for more than one request of each."""
    config = transport_config(EngineConfig(concurrency=500, base_url="http://me:secret@h:1"), "http://me:secret@h:1")
    assert config.max_connections >= 1000
    assert "secret" not in repr(config)
