"""Agents that are recorded: `rollout proxy` in front of a server, and programs that are pointed at it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.live.recipes import MAX_TOKENS, Script, environment
from tests.live.servers import Server, free_port

#: Seconds for a recorder to start, and for an agent to end.
_START_S, _LIMIT_S = 120.0, 300.0


class Recorder:
    """`rollout proxy`, which can be killed and started again."""

    def __init__(self, upstream: str, folder: Path) -> None:
        port = free_port()
        self.folder = folder / "recorded"
        self._server = Server(f"http://127.0.0.1:{port}", folder / "proxy.log")
        self._command = [
            *(str(Path(sys.executable).with_name("rollout")), "proxy", "--base-url", upstream, "--port", str(port)),
            *("-o", str(self.folder), "--max-tokens", str(MAX_TOKENS), "--verify"),
            *("--keepalive", "0.1"),  # streams have begun, and break off: no SDK asks again by itself then
        ]

    def start(self) -> None:
        self._server.spawn(self._command, {})
        self._server.wait(_lives, _START_S)

    def kill_and_restart(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        self._server.kill(0)
        self._server.respawn(0)
        self._server.wait(_lives, _START_S)

    def end(self) -> None:
        self._server.end()

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self._server.url}{path}", json=body, timeout=60)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def turns(self) -> list[int]:
        """Of each session, how many are recorded."""
        sessions = httpx.get(f"{self._server.url}/sessions", timeout=60).json()["sessions"]
        return [session["turns"] for session in sessions]

    def wait_until(self, holds: Callable[[list[int]], bool]) -> list[int]:
        """The turns of each session, once they are so."""
        until = time.monotonic() + _LIMIT_S
        while not holds(turns := self.turns()):
            assert time.monotonic() < until, f"recorded turns: {turns}\n{self._server.tail()}"
            time.sleep(0.2)
        return turns


@contextlib.contextmanager
def recorder(upstream: str, folder: Path) -> Iterator[Recorder]:
    """A recorder that is ended."""
    found = Recorder(upstream, folder)
    try:
        found.start()
        yield found
    finally:
        found.end()


class Program:
    """An agent's program, in a folder of its own, with a session of its own."""

    def __init__(self, recorder: Recorder, command: list[str], script: Script, folder: Path) -> None:
        self.script = script
        opened = recorder.post("/sessions", task=script.task)
        self.session: str = opened["id"]
        fields = {
            "{task[question]}": script.task["question"],
            "{folder}": str(folder),
            "{model}": "tiny",
            "{openai_base_url}": opened["openai_base_url"],
        }
        variables = {
            "OPENAI_BASE_URL": opened["openai_base_url"],
            "ANTHROPIC_BASE_URL": opened["base_url"],
            **dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY"), opened["key"]),
            **dict.fromkeys(("OPENAI_MODEL", "ANTHROPIC_MODEL"), "tiny"),
        }
        folder.mkdir()
        self._said = folder / "said.txt"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [_filled(argument, fields) for argument in command],
                cwd=folder,
                env={**environment(), **variables},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def wait(self) -> None:
        """It must end well."""
        assert self._process.wait(_LIMIT_S) == 0, self._said.read_text("utf-8", "replace")

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _filled(argument: str, fields: dict[str, str]) -> str:
    for field, value in fields.items():
        argument = argument.replace(field, value)
    return argument


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/sessions", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
