"""The Ray launcher where there is no Ray; with one it is tested by `make live-ray`."""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import sys

import anyio
import anyio.lowlevel
import pytest

from rollout import Engine, EngineConfig, __version__
from rollout.errors import ConfigError
from rollout.workers.ray import RayLaunch, differs, listens
from tests.rollout.workers.kit import Asking


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="the package is here")
@pytest.mark.parametrize("processes", [1, 2])
async def test_a_missing_package_is_named_with_its_extra(processes: int) -> None:
    """In one line, whatever number of processes: one is started on the cluster, too."""
    said = "launch 'ray' needs ray, which is not installed: pip install 'rollout-engine[ray]'"
    with pytest.raises(ConfigError) as raised:
        async with Engine(EngineConfig(launch="ray", processes=processes), Asking):
            pass
    assert str(raised.value) == said


def test_ray_is_imported_by_nothing_that_does_not_launch_by_it() -> None:
    """Importing the launcher itself imports no Ray."""
    assert "rollout.workers.ray" in sys.modules
    assert importlib.util.find_spec("ray") is not None or "ray" not in sys.modules


def test_other_versions_are_named() -> None:
    """Python's by major and minor, the engine's to the letter; both sides are said."""
    ours = platform.python_version()
    major, minor, _ = ours.split(".", 2)
    assert differs(ours, __version__) == ""
    assert differs(f"{major}.{minor}.99", __version__) == ""
    assert differs("3.9.1", __version__) == f"Python 3.9.1, and the engine {ours}"
    assert differs(ours, "0.0.1") == f"rollout-engine 0.0.1, and the engine {__version__}"


@pytest.mark.parametrize(
    ("listen", "at"),
    [
        (None, ("10.0.0.1", 0)),
        ("10.9.9.9", ("10.9.9.9", 0)),
        ("10.9.9.9:4000", ("10.9.9.9", 4000)),
        ("[fd00::1]:4000", ("fd00::1", 4000)),
        ("[fd00::1]", ("fd00::1", 0)),
    ],
)
def test_where_workers_connect_back_to(listen: str | None, at: tuple[str, int]) -> None:
    """The node's address, or the host and port that are given."""
    assert listens(listen, "10.0.0.1") == at


async def test_what_speaks_to_ray_ends_with_an_opening_that_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a process of its own: left behind, it would keep its actors for as long as the trainer lives."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    launch, link = RayLaunch(EngineConfig(launch="ray")), _Silent()
    launch._link = link  # type: ignore[assignment]
    launch._listening = asyncio.create_task(launch._listen(link))  # type: ignore[arg-type]
    with anyio.CancelScope() as scope:
        scope.cancel()
        await launch.aclose()
    assert link.closed


class _Silent:
    """A driver that says nothing."""

    closed = False

    async def hear(self) -> None:
        await anyio.sleep_forever()

    async def aclose(self, *, lost: bool) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True
