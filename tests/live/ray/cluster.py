"""A Ray cluster on this machine: a head and two nodes, each a raylet of its own, in a process group that ends with it.

    python -m tests.live.ray.cluster        # prints its address and raylets, and takes commands: add, quit

It runs in a process of its own, as no test is to be a driver by itself, and so that nothing is left of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.live.ray.runs import environ

#: Of a node's object store, the least that Ray takes: workers have nothing there.
STORE = 80 * 2**20


class Cluster:
    """A running one."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self.folder = folder
        """Its session's logs are somewhere below."""
        self.address = ""
        self.raylets: list[int] = []
        """Their process ids, the head's first."""

    def begin(self) -> None:
        """Waits until it runs."""
        self.address, *raylets = self._told()
        self.raylets = [int(pid) for pid in raylets]

    def __repr__(self) -> str:
        return f"<Cluster {self.address} {self.raylets}>"

    def add(self) -> int:
        """Adds a node; its raylet."""
        (pid,) = self._ask("add")
        self.raylets.append(int(pid))
        return self.raylets[-1]

    def kill(self, at: int) -> None:
        """Kills a raylet, as a node that dies."""
        os.kill(self.raylets.pop(at), signal.SIGKILL)

    def kill_head(self) -> None:
        """Kills what the head runs."""
        self._ask("kill head")

    def end(self) -> None:
        """All of it, by its process group and what Ray has detached from that."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, command: str) -> list[str]:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self._told()

    def _told(self) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the Ray cluster ended: {(self.folder / 'log').read_text()[-2000:]}")
        return line.split()


@contextlib.contextmanager
def cluster(*, cpus: int = 2, nodes: int = 2) -> Iterator[Cluster]:
    """A head, and so many nodes beside it, each with so many CPUs to place by."""
    # Not below pytest's folder: Ray's sockets are there, and their names may have a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="rt"))
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "tests.live.ray.cluster", str(folder), str(cpus), str(nodes)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**environ(), "RAY_TMPDIR": str(folder)},
        )
    running = Cluster(process, folder)
    try:
        running.begin()
        yield running
    finally:
        running.end()
        shutil.rmtree(folder, ignore_errors=True)


def main(folder: str, cpus: int, count: int) -> None:
    """The process."""
    from ray.cluster_utils import Cluster as RayCluster

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = {"num_cpus": cpus, "object_store_memory": STORE}
    made = RayCluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    nodes = [made.head_node, *(made.add_node(**options) for _ in range(count))]

    def pid_of(node: object, name: str = "raylet") -> int:
        return int(node.all_processes[name][0].process.pid)  # type: ignore[attr-defined]

    print(made.address, *map(pid_of, nodes), file=out, flush=True)
    for line in sys.stdin:
        match line.strip():
            case "add":
                print(pid_of(made.add_node(**options)), file=out, flush=True)
            case "kill head":
                for name in ("raylet", "gcs_server"):
                    os.kill(pid_of(made.head_node, name), signal.SIGKILL)
                print("killed", file=out, flush=True)
    made.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
