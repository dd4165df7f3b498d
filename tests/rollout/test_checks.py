"""Settings that cannot be are named with those that can, whoever builds them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rollout.checks import check_sampling, check_values, choice
from rollout.config import EngineConfig, check_config
from rollout.errors import ConfigError
from rollout.store.settings import RunSettings, read_settings


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"mode": "titoo"}, "mode must be tito or mito, not 'titoo'; did you mean 'tito'?"),
        ({"match": "loose"}, "match must be strict, loose_tool_call or role_content, not 'loose'"),
        ({"thinking_retention": "none"}, "thinking_retention must be all or tool_cycle, not 'none'"),
        ({"stale_policy": 3}, "stale_policy must be drop or cancel, not 3"),
        ({"concurrency": "many"}, "concurrency must be a whole number or auto, not 'many'"),
        ({"concurrency": True}, "concurrency must be a whole number or auto, not True"),
        ({"concurrency": 2.5}, "concurrency must be a whole number or auto, not 2.5"),
        ({"request_timeout_s": math.nan}, "request_timeout_s must be a finite number, not nan"),
        ({"step_timeout_s": -math.inf}, "step_timeout_s must be a finite number, not -inf"),
        ({"step_timeout_s": -1.0}, "step_timeout_s must be above 0 seconds, not -1"),
        ({"verify": "yes"}, "verify must be true or false, not 'yes'"),
        ({"base_url": 8000}, "base_url must be text or a list of text, not 8000"),
        ({"sampling": [1]}, "sampling must be a mapping of names to values, not [1]"),
        ({"headers": {"X": 1}}, "headers must be a mapping of names to text, not {'X': 1}"),
        ({"success_at": "1"}, "success_at must be a finite number, not '1'"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: dict[str, Any], said: str) -> None:
    """Built in Python, where nothing has looked at its type."""
    with pytest.raises(ConfigError) as raised:
        check_config(EngineConfig(**setting))
    assert said in str(raised.value)


def test_numbers_of_numpy_are_numbers() -> None:
    """A trainer's own configuration may hold them."""
    check_config(EngineConfig(concurrency=np.int64(4), request_timeout_s=np.float32(3.5)))  # type: ignore[arg-type]


def test_a_deadline_may_never_come() -> None:
    """To wait for a server without end is a thing to want; NaN seconds are not."""
    check_config(EngineConfig(server_wait_s=math.inf))


def test_what_stands_in_for_containers_is_taken() -> None:
    """Tuples of addresses, and mappings that are no dicts."""
    from types import MappingProxyType

    check_config(EngineConfig(base_url=("http://a", "http://b"), sampling=MappingProxyType({"top_p": 0.9})))


def test_the_defaults_are_settings_that_can_be() -> None:
    """Of the engine and of a run."""
    check_values(EngineConfig())
    check_values(RunSettings())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=5,
)


@example("base_url", "")
@given(st.sampled_from(EngineConfig.__struct_fields__), VALUES)
def test_any_value_of_any_setting_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    """Nothing but a ConfigError that names the setting comes of it."""
    said = name
    try:
        check_config(EngineConfig(**{name: value}))
    except ConfigError as error:
        said = str(error)
    assert name in said


def test_flags_and_files_are_asked_the_same() -> None:
    """The command line says what the library says."""
    with pytest.raises(ConfigError, match="match must be strict, loose_tool_call or role_content, not 'lose'"):
        read_settings(None, {"env": "echo", "match": "lose"})


def test_a_null_in_a_list_is_refused() -> None:
    """The run folder is TOML, which has none; a null by itself is a setting that is not set."""
    with pytest.raises(ConfigError, match=r"sampling.stop\[1\] is null"):
        read_settings(None, {"env": "echo", "sampling": {"stop": ["a", None]}})
    read_settings(None, {"env": "echo", "sampling": {"stop": None}})


def test_a_choice_names_all_there_are() -> None:
    """And the nearest."""
    with pytest.raises(ConfigError, match="in_flight must be keep, wait or abort, not 'abrt'; did you mean 'abort'"):
        choice("in_flight", "abrt", ("keep", "wait", "abort"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", "hot", "a finite number, not 'hot'"),
        ("temperature", True, "a finite number, not True"),
        ("top_k", 0.5, "a whole number, not 0.5"),
        ("top_p", [1.0], "a finite number, not [1.0]"),
        ("seed", "1", "a whole number, not '1'"),
        ("stop", 5, "text or a list of text, not 5"),
        ("stop", ["a", 5], "text or a list of text, not ['a', 5]"),
        ("stop_token_ids", [1, "b"], "a list of whole numbers, not [1, 'b']"),
        ("stop_token_ids", 7, "a list of whole numbers, not 7"),
        ("ignore_eos", "yes", "true or false, not 'yes'"),
        ("logit_bias", {"5": "much"}, "a mapping of names to finite numbers, not {'5': 'much'}"),
    ],
)
def test_a_sampling_parameter_of_a_wrong_type_is_named(name: str, value: Any, words: str) -> None:
    """With what it may be."""
    with pytest.raises(ConfigError) as refused:
        check_sampling({"top_p": 0.9, name: value})
    assert str(refused.value) == f"sampling: {name} must be {words}"


def test_sampling_parameters_that_are_not_known_pass() -> None:
    """A server may take more than are known here; None leaves a parameter to it."""
    known = {"temperature": 1, "top_k": -1, "stop": "x", "stop_token_ids": [1], "logit_bias": {"5": -100}, "seed": None}
    check_sampling({**known, "guided_regex": 5, "custom": {"a": "b"}})
