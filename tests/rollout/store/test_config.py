"""The settings of a run come back from its folder as they were, without secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import ConfigError, UsageError
from rollout.store.config import (
    CONFIG,
    FORMAT,
    FolderConfig,
    check_format,
    config_of,
    missing_secrets,
    read_folder_config,
    refuse_other_settings,
    write_folder_config,
)
from rollout.store.settings import RunSettings

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_any_sampling_parameters_come_back(tmp_path_factory: pytest.TempPathFactory, sampling: dict[str, Any]) -> None:
    """Also those that TOML cannot hold: null, and integers beyond 64 bits."""
    folder = tmp_path_factory.mktemp("run")
    write_folder_config(folder, config_of(RunSettings(env="echo", sampling=sampling)))
    assert read_folder_config(folder).settings["sampling"] == sampling


def test_secrets_are_not_kept_and_that_is_known() -> None:
    """Headers and a password in an address are in no file; who goes on learns what is missing."""
    settings = RunSettings(env="echo", base_url="http://me:hunter2@host:8000/v1", headers={"X-Auth": "hunter2"})
    config = config_of(settings)
    assert "hunter2" not in str(config)
    assert config.settings["base_url"] == "http://host:8000/v1"
    assert missing_secrets(config, RunSettings(env="echo")) == ["headers.X-Auth", "base_url's password"]
    assert missing_secrets(config, settings) == []


def test_what_workers_are_given_as_variables_is_not_kept() -> None:
    """A runtime environment's `env_vars` may hold a key; the rest of it is the run's."""
    runtime_env = {"working_dir": ".", "env_vars": {"HF_TOKEN": "hunter2"}}
    settings = RunSettings(env="echo", ray_runtime_env=runtime_env)
    config = config_of(settings)
    assert "hunter2" not in str(config)
    assert config.settings["ray_runtime_env"] == {"working_dir": "."}
    assert missing_secrets(config, RunSettings(env="echo")) == ["ray_runtime_env.env_vars.HF_TOKEN"]
    assert missing_secrets(config, settings) == []
    assert settings.ray_runtime_env == runtime_env


def test_the_size_that_was_meant_is_kept() -> None:
    """Eight tasks by default are eight tasks later; all of a file's are all."""
    assert config_of(RunSettings(env="echo")).settings["num_tasks"] == 8
    assert config_of(RunSettings(env="echo", tasks="/t.jsonl")).settings["num_tasks"] is None


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    """What would change the meaning is named with both values; where and how fast may change."""
    before = config_of(RunSettings(env="/a/e.py:E", concurrency=1, max_tokens=5))
    refuse_other_settings(tmp_path, before, RunSettings(env="/b/e.py:E", concurrency=9, max_tokens=5))
    with pytest.raises(ConfigError, match=r"max_tokens: 5 before, 6 now: .*another -o"):
        refuse_other_settings(tmp_path, before, RunSettings(env="/a/e.py:E", max_tokens=6))
    with pytest.raises(ConfigError, match=r"env: '/a/e.py:E' before, 'echo' now"):
        refuse_other_settings(tmp_path, before, RunSettings(env="echo", max_tokens=5))


def test_a_setting_that_an_older_rollout_did_not_have_is_at_its_default(tmp_path: Path) -> None:
    """A run goes on after an update that added settings."""
    refuse_other_settings(tmp_path, FolderConfig(settings={"env": "echo"}), RunSettings(env="echo"))
    with pytest.raises(ConfigError, match="unknown field `mood`"):
        refuse_other_settings(tmp_path, FolderConfig(settings={"env": "echo", "mood": 1}), RunSettings(env="echo"))


def test_formats_are_told_apart(tmp_path: Path) -> None:
    """No version is format 1; a file that is no TOML is named."""
    assert check_format(tmp_path) == 1
    (tmp_path / CONFIG).write_text('env = "echo"\n')
    assert check_format(tmp_path) == 1
    write_folder_config(tmp_path, config_of(RunSettings(env="echo")))
    assert check_format(tmp_path) == FORMAT
    (tmp_path / CONFIG).write_bytes(b"\xff = [")
    with pytest.raises(UsageError, match=r"cannot read .*config\.toml"):
        check_format(tmp_path)
