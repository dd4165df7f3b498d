"""`rollout run` against real servers: 64 rollouts of 8 turns, checked token for token while they run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.live.servers import Server
from transports.embedded import MODEL_DIR

pytestmark = pytest.mark.live

ECHO = ["echo", "-n", "16", "-r", "4", "-a", "turns=8", "-a", "chars=200", "--max-tokens", "16", "--verify"]
TOKENIZER = ["--tokenizer", str(MODEL_DIR)]


def command(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The console script of this environment, as a user runs it."""
    script = Path(sys.executable).with_name("rollout")
    return subprocess.run([str(script), *args], cwd=cwd, capture_output=True, text=True, timeout=540, check=False)


def run(*args: str, cwd: Path) -> dict[str, Any]:
    done = command("run", *args, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def assert_token_exact(result: dict[str, Any]) -> None:
    """Of `ECHO`: every later turn extended, whatever the server."""
    assert result["rollouts"] == 64
    assert result["turns"] == 512
    assert result["failures"] == 0
    assert result["prefix_breaks"] == 0
    assert result["fallbacks"] == {"first_turn": 64}
    assert result["token_in_turns"] == 448
    assert result["samples"] == 64
    assert result["cached_tokens"] > 0


@pytest.mark.parametrize("route", ["/inference/v1/generate", "/v1/completions"])
def test_vllm_is_token_exact_by_each_route(vllm: Server, route: str, tmp_path: Path) -> None:
    """On vLLM no turn breaks its prefix, by either token route."""
    assert_token_exact(run(*ECHO, "--base-url", vllm.url, "--token-route", route, cwd=tmp_path))


@pytest.mark.parametrize("renderer", ["template", "server"])
def test_vllm_is_token_exact_by_each_bridge(vllm: Server, renderer: str, tmp_path: Path) -> None:
    """The template bridge and the server bridge extend as the renderer's does."""
    # None is cut off: what was cut off before any turn ended leaves the server's bridge without a stop token.
    more = ["--max-tokens", "48", "--renderer", renderer]
    assert_token_exact(run(*ECHO, "--base-url", vllm.url, *more, cwd=tmp_path))


def test_dynamo_is_token_exact(dynamo: Server, tmp_path: Path) -> None:
    """On Dynamo no turn breaks its prefix."""
    assert_token_exact(run(*ECHO, "--base-url", dynamo.url, *TOKENIZER, cwd=tmp_path))


@pytest.mark.parametrize("server", ["vllm", "dynamo"])
def test_message_in_works_and_reports_its_breaks(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In mode mito every turn goes message-in, and the turns that broke the prefix are counted."""
    running: Server = request.getfixturevalue(server)
    result = run(*ECHO, "--base-url", running.url, *TOKENIZER, "--mode", "mito", cwd=tmp_path)
    assert result["failures"] == 0
    assert result["message_in_turns"] == 512
    assert result["fallbacks"] == {"first_turn": 64, "disabled": 448}
    assert 0 < result["prefix_breaks"] <= 448
    assert result["samples"] == 64 + result["prefix_breaks"]


def test_tools_are_called_on_vllm(vllm: Server, tmp_path: Path) -> None:
    """Tool calls are read from the ids on a server without a tool parser, and their results go token-in."""
    result = run("calculator", "-n", "8", "-r", "4", "--base-url", vllm.url, "--verify", cwd=tmp_path)
    assert result["fallbacks"] == {"first_turn": 32}
    assert result["token_in_turns"] >= 32
    assert result["prefix_breaks"] == 0
    assert result["reward_mean"] > 0.3


def test_the_embedded_model_plays_as_well_on_vllm(vllm: Server, tmp_path: Path) -> None:
    """The same folder wins guess_number on vLLM as often as in process, give or take chance."""
    result = run("guess_number", "-n", "16", "-r", "4", "--base-url", vllm.url, "--require-token-in", cwd=tmp_path)
    assert 0.4 < result["reward_mean"] < 0.97
