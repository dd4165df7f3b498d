"""Runs of the real command in the environment of the packages, and what is asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

MARKS = [pytest.mark.live, pytest.mark.dashboards]

#: The environment's own programs.
BIN = Path(sys.executable).parent

#: How long anything that is waited for may take.
LIMIT_S = 60.0

T = TypeVar("T")


def run(*arguments: object, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A run of the command, to its end."""
    command = [str(BIN / "rollout"), "run", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


@contextlib.contextmanager
def process(*command: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program while a block lasts; it is told to end, and killed where it does not."""
    with subprocess.Popen(list(map(str, command)), text=True, **options) as started:
        try:
            yield started
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(LIMIT_S)
            finally:
                started.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def get(url: str, **query: str) -> Any:
    """What is answered, as JSON where it is."""
    asked = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    with urllib.request.urlopen(asked, timeout=LIMIT_S) as answer:
        body = answer.read()
        return json.loads(body) if "json" in answer.headers.get("content-type", "") else body.decode()


def awaited(found: Callable[[], T | None], what: str, limit_s: float = LIMIT_S) -> T:
    """What another process comes to; looked for again and again."""
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(OSError):
            if (value := found()) is not None:
                return value
        assert time.monotonic() < deadline, f"{what} did not come within {limit_s:g} s"
        time.sleep(0.2)


def metrics_url(stderr: Iterator[str]) -> str:
    """Where a run says that its metrics are."""
    for line in stderr:
        if (said := re.match(r"metrics: (http://\S+/metrics)$", line)) is not None:
            return said[1]
    raise AssertionError("the run ended without saying where its metrics are")
