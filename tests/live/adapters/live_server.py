"""A server that a test starts by a command and ends by its process, and how it knows that it listens."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[Any]) -> None:
    """Returns once something listens. Fails where the process ends before."""
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None
        time.sleep(0.1)  # a server that starts has no other sign
    raise AssertionError(f"nothing listens on {port}")


@contextmanager
def serving(command: Sequence[str], port: int, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that listens on a port, until it is left. It finds our modules, from wherever it is started."""
    whole = {"PYTHONPATH": str(PROJECT), **(env or os.environ)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=whole, text=True) as process:
        try:
            wait_for(port, process)
            yield process
        finally:
            process.kill()
