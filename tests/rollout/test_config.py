"""Settings are plain data, whoever made them."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from rollout.config import EngineConfig, check_config
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


TIMES = [name for name in EngineConfig.__struct_fields__ if name.endswith("_s")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"http_retries": -1}, "http_retries must be 0 or more, not -1"),
        ({"max_model_len": 0}, "max_model_len must be 1 or more, not 0"),
        ({"transport": "vllm"}, "transport 'vllm' needs the server's address: give base_url"),
        ({"base_url": "http://gpu:99999"}, "the port is a number from 1 to 65535"),
        ({"mode": "mito", "require_token_in": True}, "mode mito sends messages, and require_token_in forbids it"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, not 0"),
        ({"concurrency": 0}, "concurrency must be 1 or more, not 0"),
        ({"max_turns": 0}, "max_turns must be 1 or more, not 0"),
        ({"max_staleness": -1}, "max_staleness must be 0 or more, not -1"),
        ({"proxy_port": 70_000}, "proxy_port is a number from 0 (any that is free) to 65535, not 70000"),
        ({"proxy_host": ""}, "proxy_host is empty"),
        ({"proxy_address": "http://a b"}, "proxy_address: "),
        ({"proxy_address": "gw:9000", "processes": 2}, "it must be a host alone, not 'gw:9000'"),
        ({"proxy_body_bytes": 10}, "proxy_body_bytes must be 1024 or more, not 10"),
        ({"agent_sampling": "mine"}, "agent_sampling must be run or keep, not 'mine'"),
        ({"processes": 0}, "processes must be 1 or more, not 0"),
        ({"launch": 3}, "launch must be a name or a function that starts a process, not 3"),
        ({"ray_address": "ray://head:10001"}, "ray_address is a cluster's own (HOST:6379, or auto), not Ray Client's"),
        ({"ray_num_cpus": -1.0}, "ray_num_cpus is a number of CPUs, 0 or more, not -1.0"),
        ({"ray_resources": {"CPU": 2.0}}, "not CPU=2.0: give ray_num_cpus"),
        ({"ray_resources": {"rollout": 0.0}}, "ray_resources has custom resources and how much of each"),
        ({"ray_resources": {"rollout": "two"}}, "ray_resources must be a mapping of names to finite numbers, not"),
        ({"ray_listen": "0.0.0.0:"}, "ray_listen is HOST or HOST:PORT, not '0.0.0.0:'"),
        ({"ray_listen": "host:99999"}, "ray_listen is HOST or HOST:PORT, not 'host:99999'"),
        ({"rollout_retries": -1}, "rollout_retries must be 0 or more, not -1"),
        *(({name: 0.0}, f"{name} must be above 0 seconds, not 0") for name in TIMES),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    """In every block: server, tokens, sampling, schedule, workers, proxy, faults."""
    with pytest.raises(ConfigError) as raised:
        check_config(EngineConfig(**settings))
    assert said in str(raised.value)


def test_every_setting_is_documented() -> None:
    """Beneath its field, in the class, with its unit where it has one."""
    tree = ast.parse(inspect.getsource(EngineConfig))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    documented = {
        field.target.id
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    assert documented == set(EngineConfig.__struct_fields__)


def test_what_starts_a_process_is_a_name_or_a_function() -> None:
    """A function stays what it is; a file has a name."""

    async def launch() -> None:
        raise AssertionError

    assert EngineConfig(launch=launch).launch is launch
    check_config(EngineConfig(launch=launch))
    assert msgspec.convert({"launch": "ray"}, EngineConfig).launch == "ray"
