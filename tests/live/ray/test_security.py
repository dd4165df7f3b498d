"""Who may connect: actors of this engine alone, of the same versions, by a secret that stands nowhere."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout import Engine, EngineConfig
from rollout.errors import ConfigError, RolloutError
from rollout.workers.rendezvous import Rendezvous
from tests.live.ray.cluster import Cluster
from tests.live.ray.runs import PROJECT
from tests.live.ray.test_deaths import until
from tests.log_kit import capture_logs
from tests.rollout.workers.kit import Asking

pytestmark = [pytest.mark.live, pytest.mark.ray]


def settings(cluster: Cluster, **more: Any) -> EngineConfig:
    asked = {"launch": "ray", "ray_address": cluster.address, "ray_num_cpus": 0.5, "max_tokens": 4, **more}
    return EngineConfig(**asked)


async def test_a_secret_stands_nowhere(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """In no process's arguments or environment, in no file of Ray's session, and in no event of ours."""
    found: list[bytes] = []
    await_worker = Rendezvous.await_worker

    def spied(self: Rendezvous, number: int, secret: bytes) -> Any:
        found.append(secret)
        return await_worker(self, number, secret)

    monkeypatch.setattr(Rendezvous, "await_worker", spied)
    with capture_logs() as log:
        async with Engine(settings(ray_cluster), Asking) as engine:
            groups = [group async for group in engine.stream([{"n": 0}])]
            said = b"\0".join([*_processes(), *_files(ray_cluster.folder), repr(log).encode()])
    assert groups[0].rollouts[0].ok
    assert b"ray::RolloutWorker" in said
    assert b"raylet" in said
    (secret,) = found
    forms = (secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), repr(secret)[2:-1].encode())
    assert [form for form in forms if form in said] == []


def _processes() -> list[bytes]:
    parts = []
    for entry in Path("/proc").iterdir():
        for name in ("cmdline", "environ"):
            try:
                parts.append((entry / name).read_bytes() if entry.name.isdigit() else b"")
            except OSError:  # it has ended
                continue
    return parts


def _files(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.rglob("*") if file.is_file()]


async def test_another_version_of_the_engine_is_refused(
    ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it connects, with both versions."""
    for package in ("rollout", "transports", "envs"):
        shutil.copytree(
            PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    (tmp_path / "rollout" / "__init__.py").write_text(
        (PROJECT / "rollout" / "__init__.py").read_text().replace('__version__ = "', '__version__ = "99.')
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # Ray has actors look where their driver stands, first
    older = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"a Ray actor on .* runs rollout-engine 99\..*: the same must be on every"):
        async with Engine(settings(ray_cluster, ray_runtime_env=older), Asking):
            pass


async def test_a_runtime_environment_that_cannot_be_is_named(ray_cluster: Cluster) -> None:
    """What Ray says of it, in one line."""
    with pytest.raises(RolloutError) as raised:
        async with Engine(settings(ray_cluster, ray_runtime_env={"working_dir": "/nowhere/at/all"}), Asking):
            pass
    assert "/nowhere/at/all" in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_no_cluster_is_one_line() -> None:
    """Nothing listens there: said within seconds."""
    with pytest.raises(ConfigError, match=r"no Ray cluster at 127\.0\.0\.1:9: nothing answers at 127\.0\.0\.1:9"):
        async with Engine(EngineConfig(launch="ray", ray_address="127.0.0.1:9"), Asking):
            pass


async def test_what_no_node_has_is_said(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A custom resource that is misspelt: one waits in vain, unless a node comes that has it."""
    monkeypatch.setattr("rollout.workers.ray.ROOM_S", 0.1)
    asked = settings(ray_cluster, ray_resources={"rolout": 1.0})
    with capture_logs() as events:
        async with anyio.create_task_group() as beside:
            beside.start_soon(_open, asked)
            await until(lambda: _waits(events) != [])
            beside.cancel_scope.cancel()
    (warning,) = _waits(events)
    assert warning["asks"] == {"num_cpus": 0.5, "rolout": 1.0}
    assert warning["no_node_has"] == ["rolout"]


def _waits(events: list[Any]) -> list[Any]:
    return [event for event in events if event["event"] == "process_waits_for_room"]


async def _open(config: EngineConfig) -> None:
    async with Engine(config, Asking):
        pass
