"""Settings are plain data, whoever made them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from rollout.config import EngineConfig
from rollout.errors import ConfigError


def test_settings_of_numpy_are_numbers() -> None:
    """A setting that is computed is sent and written like one that is typed in."""
    config = EngineConfig(
        max_tokens=np.int64(7),  # type: ignore[arg-type]
        sampling={"temperature": np.float64(0.5), "stop": ("a",)},
        base_url=("a", "b"),
        template_args={"name": "\udce9"},
    )
    assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config
    assert (config.max_tokens, config.sampling, config.base_urls) == (
        7,
        {"temperature": 0.5, "stop": ["a"]},
        ["a", "b"],
    )
    assert config.template_args == {"name": "\ufffd"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampling": {"temperature": math.nan}}, "setting 'sampling' cannot be used: temperature is nan"),
        ({"sampling": {"stop": {"a"}}}, "setting 'sampling' cannot be used: stop is of type set"),
        ({"template_args": {"now": object()}}, "setting 'template_args' cannot be used: now is of type object"),
    ],
)
def test_a_setting_that_cannot_be_sent_is_named(settings: dict[str, Any], said: str) -> None:
    """A setting that no server could be sent is an error before anything is played."""
    with pytest.raises(ConfigError, match=said):
        EngineConfig(**settings)
