"""`rollout serve` says where it listens and what it serves, or why it cannot."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.errors import ConfigError
from transports.embedded.serve import run

SERVE = [str(Path(sys.executable).with_name("rollout")), "serve"]


@contextlib.contextmanager
def served(*options: str, says: str = "serving rollout-tiny (vllm dialect)") -> Iterator[str]:
    """The command on a free port, which its first line names; an interrupt ends it with a line."""
    command = [*SERVE, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(f"rollout: {says} on http://127.0.0.1:")
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=300)[0] == "rollout: stopped serving\n"


@pytest.mark.slow
def test_it_says_where_it_listens() -> None:
    """Port 0 takes a free one, which the line names; an interrupt ends it with a line."""
    options = ("--served-model-name", "mine", "--dialect", "dynamo")
    with (
        served(*options, says="serving mine (dynamo dialect)") as url,
        urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer,
    ):
        assert b'"mine"' in answer.read()


def test_a_port_that_is_taken_is_said() -> None:
    """One line with the remedy, before the model is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use; give"):
            run(port=port)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 99999}, "--port is a number from 0 (any that is free) to 65535, not 99999"),
        ({"api_key": " "}, "--api-key is empty: give a key, or leave it out"),
        ({"host": "nowhere.invalid"}, "cannot listen on nowhere.invalid:8000"),
        ({"served_name": ""}, "--served-model-name is the name that clients ask for: give one"),
        ({"dialect": "openai"}, "--dialect is vllm, sglang or dynamo, not 'openai'"),
        ({"logprobs_mode": "raw"}, "--logprobs-mode is raw_logprobs or processed_logprobs, not 'raw'"),
        ({"port": 0, "model_dir": Path("/nowhere")}, "no model to serve in '/nowhere'"),
    ],
)
def test_what_cannot_be_served_is_one_line(options: dict[str, object], said: str) -> None:
    """A wrong address, dialect or folder is a mistake of the caller's."""
    with pytest.raises(ConfigError) as caught:
        run(**options)  # type: ignore[arg-type]  # of several types
    assert said in str(caught.value)


def test_weights_that_are_none_are_said(tmp_path: Path) -> None:
    """A file that is no safetensors is no model."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match="no model to serve in"):
        run(port=0, model_dir=tmp_path)
