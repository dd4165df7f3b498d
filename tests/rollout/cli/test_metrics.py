"""`--metrics-port` as a user meets it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.cases.commands import command, env_file, ran
from tests.rollout.cli.test_proxy_command import Process, chat

#: Every second rollout fails; each holds still until a file is there, so that what is scraped stands.
HELD = """
class E(Env):
    def reset(self, task): self.n = task["n"]; return [user("go")]
    def step(self, m):
        while not os.path.exists("go"): time.sleep(0.02)
        if self.n % 2: raise ValueError("broken")
        return Step(done=True, reward=1.0)
    @classmethod
    def tasks(cls, n, seed): return [{"n": i} for i in range(n)]
"""


def scraped(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def until(url: str, line: str) -> str:
    """Scrapes until a line is there; the run's own end bounds it."""
    while True:
        text = scraped(url)
        if line in text.splitlines():
            return text


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_is_scraped_while_it_plays(processes: int, tmp_path: Path) -> None:
    """The address is said; what every process plays is there; the port is closed with the run."""
    env, out = env_file(tmp_path, HELD), tmp_path / "r"
    line = command("run", env, "-n", 4, "--max-tokens", 2, "--processes", processes, "--metrics-port", 0, "-o", out)
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        assert run.stderr is not None
        url = ""
        while not url:
            url = "".join(re.findall(r"^metrics: (http://127\.0\.0\.1:\d+/metrics)$", run.stderr.readline()))
        text = until(url, "rollout_rollouts_running 4.0")
        assert f"rollout_processes {processes}.0" in text
        text = until(url, 'rollout_turns_total{fallback="first_turn",route="message_in"} 4.0')
        answered = [
            line for line in text.splitlines() if 'requests_total{outcome="answered",server="embedded"}' in line
        ]
        assert [line.rpartition(" ")[2] for line in answered] == ["4.0"]
        (tmp_path / "go").touch()
        said = run.stderr.read()
        assert run.wait() == 1, said
    with pytest.raises(OSError, match="refused"):
        scraped(url)


@pytest.mark.slow
def test_a_recorder_is_scraped(tmp_path: Path) -> None:
    """`rollout proxy` has the turns that agents asked for, and the sessions under way as what runs."""
    with Process(tmp_path / "r", "--metrics-port", "0") as recorder:
        assert recorder.process.stderr is not None
        found = re.search(r"http://\S+/metrics", recorder.process.stderr.readline())
        assert found
        assert chat(recorder.url, "one", [{"role": "user", "content": "hi"}]).status_code == 200
        text = scraped(found[0])
        assert "rollout_rollouts_running 1.0" in text
        assert 'rollout_turns_total{fallback="first_turn",route="message_in"} 1.0' in text
        assert 'rollout_server_up{server="embedded"} 1.0' in text
        assert recorder.end(signal.SIGTERM)[0] == 0


@pytest.mark.slow
def test_what_cannot_be_served_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    """A port that is taken, or is none, and a host that is none: one line, status 2, and no folder."""
    out = tmp_path / "r"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, said in (
            (
                ["--metrics-port", port],
                f"cannot serve metrics on 127.0.0.1:{port}: Address already in use; give another",
            ),
            (["--metrics-port", 70_000], "--metrics-port is a number from 0 (any that is free) to 65535, not 70000"),
            (["--metrics-port", 0, "--metrics-host", ""], "--metrics-host is empty: "),
            (["--metrics-host", "0.0.0.0"], "--metrics-host 0.0.0.0 has no effect without --metrics-port"),
        ):
            done = ran("run", "echo", *options, "-o", out)
            assert done.returncode == 2
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"rollout: {said}")
            assert not out.exists()
