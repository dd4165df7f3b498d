"""Two hosts with addresses of their own: network namespaces, joined by a cable. Loopback is each one's own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.ray.cluster import STORE
from tests.live.ray.runs import ROLLOUT, assert_each_once, environ, start

pytestmark = [pytest.mark.live, pytest.mark.ray]

HEAD, NODE = "10.213.7.1", "10.213.7.2"
RAY = str(Path(sys.executable).with_name("ray"))


def inside(space: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", space, *command]


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces that reach each other, and nothing else."""
    names = (f"rh{os.getpid()}", f"rn{os.getpid()}")
    ip = [["netns", "add", name] for name in names]
    ip.append(["link", "add", names[0], "type", "veth", "peer", "name", names[1]])
    for name, address in zip(names, (HEAD, NODE), strict=True):
        ip.append(["link", "set", name, "netns", name])
        ip += [["-n", name, *rest] for rest in (["addr", "add", f"{address}/24", "dev", name],)]
        ip += [["-n", name, "link", "set", device, "up"] for device in (name, "lo")]
    try:
        for each in ip:
            subprocess.run(["ip", *each], check=True, capture_output=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def running(space: str, *command: str, folder: Path, says: str) -> Iterator[str]:
    """A process in a namespace, once it has said something; its group ends with the block."""
    log = folder / f"{space}-{Path(command[0]).name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            inside(space, *command),
            env={**environ(), "RAY_TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 90
        while (found := re.search(says, log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield found[0]
    finally:
        for pid in _of(space):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()


def _of(space: str) -> list[int]:
    """Every process in a namespace: Ray detaches some from their groups."""
    done = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def test_workers_connect_back_over_the_nodes_address(tmp_path: Path) -> None:
    """The head's host only schedules; all is played on the other, against a server of the head's host. A server on
    loopback would be each host's own: that is refused in one line."""
    folder = Path(tempfile.mkdtemp(prefix="rt"))
    store = f"--object-store-memory={STORE}"
    flags = ["--block", "--disable-usage-stats", "--num-gpus=0", store]
    head = [RAY, "start", "--head", "--port=6379", f"--node-ip-address={HEAD}", "--num-cpus=0", *flags]
    node = [RAY, "start", f"--address={HEAD}:6379", f"--node-ip-address={NODE}", "--num-cpus=2", *flags]
    serve = [ROLLOUT, "serve", "--host", "0.0.0.0", "--port", "8123"]
    try:
        with (
            two_hosts() as (first, second),
            running(first, *head, "--include-dashboard=false", folder=folder, says="Ray runtime started"),
            running(second, *node, folder=folder, says="Ray runtime started"),
            running(first, *serve, folder=folder, says="8123"),
        ):
            asked: tuple[str, ...] = (
                "run",
                "echo",
                "-n",
                "8",
                "-r",
                "4",
                "-a",
                "turns=2",
                "--max-tokens",
                "4",
                "--verify",
                "--launch",
            )
            asked += ("ray", "--ray-address", f"{HEAD}:6379", "--processes", "2", "--base-url")
            prefix = ("ip", "netns", "exec", first)
            process = start(*asked, f"http://{HEAD}:8123", "-o", str(tmp_path / "run"), cwd=tmp_path, prefix=prefix)
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
            assert all(each["failure"] is None for each in assert_each_once(tmp_path / "run", 8, 4))
            loopback = "http://127.0.0.1:8123"
            process = start(*asked, loopback, "-o", str(tmp_path / "other"), cwd=tmp_path, prefix=prefix)
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 2, errors
            said = f"rollout: base_url {loopback} is this machine alone, and a Ray actor runs on {NODE}"
            assert said in errors
    finally:
        shutil.rmtree(folder, ignore_errors=True)
