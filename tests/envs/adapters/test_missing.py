"""Adapters whose packages are in environments of their own say in one line what they lack."""

from __future__ import annotations

import importlib.util

import pytest

from rollout.errors import ConfigError
from rollout.registry import env_factory


@pytest.mark.parametrize(
    ("spec", "package"), [("openenv:http://127.0.0.1:1", "openenv"), ("mcp:http://127.0.0.1:1/mcp", "mcp")]
)
def test_what_is_missing_is_named_with_the_remedy(spec: str, package: str) -> None:
    """Before anything is asked of a server."""
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    make = env_factory(spec, {"judge": "json:loads"} if package == "mcp" else {})
    with pytest.raises(ConfigError, match=f"needs {package}, which is not installed: pip install '{package}'$"):
        make()
