"""`rollout proxy`: the recorder as a process, which may be killed at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import pytest
from typer.testing import CliRunner

from rollout.cli.app import app
from rollout.store.export import samples_of_run
from rollout.store.folder import read_rollouts

ROLLOUT = str(Path(sys.executable).with_name("rollout"))


class Process:
    """A recorder, started in a folder."""

    def __init__(self, folder: Path, *options: str, **settings: Any) -> None:
        command = [ROLLOUT, "proxy", "--port", "0", "-o", str(folder), "--verify", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings)
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        found = re.search(r"http://\S+", self.said)
        assert found, self.said + self.process.stderr.read()
        self.url = found[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Sends a signal; the status, and what was said."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        said = self.process.communicate(timeout=120)[1]
        return self.process.returncode, said


def chat(url: str, key: str, messages: list[dict[str, Any]]) -> httpx.Response:
    body = {"model": "m", "messages": messages, "max_tokens": 8}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def talk(url: str, key: str, messages: list[dict[str, Any]], turns: int) -> None:
    """Turns that drop the model's reasoning, as most clients do."""
    for _ in range(turns):
        answer = chat(url, key, messages)
        assert answer.status_code == 200, answer.text
        said = answer.json()["choices"][0]["message"]["content"]
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "go on"}]


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """After `kill -9`, twice, each key has every turn that was answered; all went token-in but the first."""
    conversations: dict[str, list[dict[str, Any]]] = {
        key: [{"role": "user", "content": f"hello {key}"}] for key in ("k1", "k2")
    }
    for _ in range(2):
        with Process(tmp_path / "run") as one:
            for key, messages in conversations.items():
                talk(one.url, key, messages, 2)
            one.end(signal.SIGKILL)
    with Process(tmp_path / "run") as one:
        assert "2 sessions go on" in one.said
        for key, messages in conversations.items():
            talk(one.url, key, messages, 1)
        sessions = httpx.get(f"{one.url}/sessions").json()["sessions"]
        assert [(each["turns"], each["fallbacks"]) for each in sessions] == [(5, {"first_turn": 1})] * 2
        for each in sessions:
            assert httpx.post(f"{one.url}/sessions/{each['id']}/end", json={"reward": 1}).status_code == 200
        status, said = one.end(signal.SIGTERM)
    assert status == 0, said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [summary[name] for name in ("rollouts", "turns", "token_in_turns", "reward_mean")] == [2, 10, 8, 1.0]
    rollouts = list(read_rollouts(tmp_path / "run"))
    assert [(rollout.reward, len(rollout.turns)) for rollout in rollouts] == [(1.0, 5)] * 2
    for sample, rollout in zip(samples_of_run(tmp_path / "run"), rollouts, strict=True):
        assert sum(sample.loss_mask) == sum(turn.completion_tokens for turn in rollout.turns)
    assert not list((tmp_path / "run").glob("turns.*"))


@pytest.mark.slow
async def test_clients_that_retry_do_not_notice_that_it_was_killed(tmp_path: Path) -> None:
    """The official SDK asks again by itself, and each of its answers is a turn: none is lost, none played twice."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    answered: list[str] = []
    some = asyncio.Event()

    async def agent(number: int, url: str) -> None:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=f"agent-{number}", max_retries=100)
        messages: list[Any] = [{"role": "user", "content": f"hello {number}"}]
        async with client:
            for _ in range(6):
                answer = await client.chat.completions.create(model="m", messages=messages, max_tokens=8)
                answered.append(answer.id)
                some.set()
                said = answer.choices[0].message
                messages += [{"role": "assistant", "content": said.content}, {"role": "user", "content": "go on"}]

    with Process(tmp_path / "run", "--port", port) as one:
        agents = asyncio.gather(*(agent(number, one.url) for number in range(6)))
        await asyncio.wait_for(some.wait(), 60)
        one.end(signal.SIGKILL)
    with await asyncio.to_thread(Process, tmp_path / "run", "--port", port) as one:
        await agents
        status, said = await asyncio.to_thread(one.end, signal.SIGTERM)
    assert status == 0, said
    rollouts = list(read_rollouts(tmp_path / "run"))
    assert [(len(rollout.turns), rollout.fallbacks) for rollout in rollouts] == [(6, {"first_turn": 1})] * 6
    assert len(set(answered)) == 36


@pytest.mark.slow
def test_a_signal_ends_it_well_and_sessions_have_their_lines(tmp_path: Path) -> None:
    """SIGINT: status 0, and what was recorded can be shown and exported at once."""
    with Process(tmp_path / "run", "--fsync") as one:
        talk(one.url, "k1", [{"role": "user", "content": "hello"}], 2)
        status, said = one.end(signal.SIGINT)
    assert (status, "Traceback" in said) == (0, False), said
    result = CliRunner().invoke(app, ["show", str(tmp_path / "run")])
    assert "2 turns" in result.stdout
    assert len(list(samples_of_run(tmp_path / "run"))) == 1


@pytest.mark.slow
def test_a_full_disk_ends_it_and_loses_nothing(tmp_path: Path) -> None:
    """Status 2 and one line; what was answered is there when it is started with room."""

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, resource.RLIM_INFINITY))

    messages: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    answered = 0
    with Process(tmp_path / "run", preexec_fn=little_room) as one:
        for _ in range(50):
            answer = chat(one.url, "k1", messages)
            if answer.status_code != 200:
                break
            answered += 1
            said = answer.json()["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "go on"}]
        assert answer.status_code == 503
        status, words = one.wait()
    assert status == 2, words
    assert "cannot write the journal" in words
    assert answered > 1
    with Process(tmp_path / "run") as one:
        (session,) = httpx.get(f"{one.url}/sessions").json()["sessions"]
        assert session["turns"] == answered
        talk(one.url, "k1", messages, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--token-env"),
        (["--host", "0.0.0.0", "--token-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        (["--idle", "0"], "--idle must be above 0"),
        (["--max-sessions", "0"], "--max-sessions must be 1 or more"),
        (["--keepalive", "0"], "--keepalive must be above 0 seconds"),
        (["--agent-sampling", "mine"], "agent_sampling"),
        (["--port", "70000"], "70000"),
        (["--transport", "vllm"], "base_url"),
        (["-s", "temperature"], "-s 'temperature' is not KEY=VALUE"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    """Status 2, before anything is made."""
    result = CliRunner().invoke(app, ["proxy", *options, "-o", str(tmp_path / "run")])
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (2, 1), result.stderr
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_runs_folder_is_not_taken(tmp_path: Path) -> None:
    """What `rollout run` plays is no recorder's to write, and that is said."""
    runner = CliRunner()
    assert runner.invoke(app, ["run", "echo", "-n", "1", "-o", str(tmp_path / "run")]).exit_code == 0
    result = runner.invoke(app, ["proxy", "--port", "0", "-o", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "holds a run that is no recorder's: give another -o" in result.stderr


@pytest.mark.slow
def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    """Status 3, as every command has it."""
    result = CliRunner().invoke(app, ["proxy", "--port", "0", "--base-url", "http://127.0.0.1:9", "-o", str(tmp_path)])
    assert result.exit_code == 3, result.stderr
    assert os.listdir(tmp_path) == []
