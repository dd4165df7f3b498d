"""These tests run in the environment that has verl (`make trainers`); elsewhere they are not collected."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator

import pytest

collect_ignore_glob = ["test_*.py"]

if importlib.util.find_spec("verl") is not None:
    collect_ignore_glob = []
    with warnings.catch_warnings():  # what importing it warns of is its own to mend
        warnings.simplefilter("ignore")
        import verl.experimental.agent_loop
        import verl.trainer.ppo.v1.agent_loop_tq  # noqa: F401


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine, with the least of everything."""
    import ray

    from tests.live.install import PROJECT

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(PROJECT)}},
    )
    yield
    ray.shutdown()
