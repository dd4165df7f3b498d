"""`rollout probe` tells the truth of real servers, and they refuse as our messages say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.servers import Server
from tests.live.test_run import TOKENIZER, command
from transports.embedded import MODEL_DIR
from transports.vllm.wire import GENERATE

pytestmark = pytest.mark.live


def probe(server: Server, *args: str, cwd: Path) -> dict[str, Any]:
    done = command("probe", server.url, *args, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_exact(found: dict[str, Any]) -> None:
    """Everything but typed special text, which servers take for tokens, is token-exact."""
    exact = {shape["shape"]: shape["exact"] for shape in found["shapes"]}
    assert exact.pop("special text") is False
    assert all(exact.values()), found["verdict"]
    assert "its prompt starts with turn 1's ids" in found["live"]


def another_revision(folder: Path) -> Path:
    """The embedded model's folder with a later revision of its chat template."""
    shutil.copytree(MODEL_DIR, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].replace("<tool_response>\\n", "<tool_response>")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_another_revision_of_the_template_is_found(vllm: Server, tmp_path: Path) -> None:
    """A folder that drifted from the server is told by shape, with the first token that differs, and the remedy."""
    found = probe(vllm, "--tokenizer", str(another_revision(tmp_path / "drifted")), cwd=tmp_path)
    exact = {shape["shape"]: shape["exact"] for shape in found["shapes"]}
    assert exact["user"] is True
    assert exact["tool"] is False
    drift = next(shape["drift"] for shape in found["shapes"] if shape["shape"] == "tool")
    assert "<tool_response>" in drift["here_text"]
    assert drift["here"] != drift["there"]
    assert found["command"].endswith("--renderer server")


def test_dynamos_engine_is_told(dynamo_engine: Server, tmp_path: Path) -> None:
    """A frontend with a real vLLM worker reports the engine's own ids and logprobs."""
    found = probe(dynamo_engine, *TOKENIZER, cwd=tmp_path)
    assert found["server"]["ids_source"] == "engine_data"
    assert found["server"]["token_routes"] == ["/v1/chat/completions", "/inference/v1/generate"]
    assert found["server"]["keeps_stop_token"] is True
    assert found["server"]["logprobs_mode"] == "raw_logprobs"
    assert_exact(found)


def test_vllm_is_told_as_it_is(vllm: Server, tmp_path: Path) -> None:
    """Dialect, routes, context, ids and the template of a vLLM server are what it was started with."""
    found = probe(vllm, cwd=tmp_path)
    server = found["server"]
    assert server["dialect"] == "vllm"
    assert server["version"] == httpx.get(f"{vllm.url}/version").json()["version"]
    assert server["token_routes"] == ["/inference/v1/generate", "/v1/completions"]
    assert server["max_model_len"] == 4096
    assert server["reports_prompt_ids"]
    assert server["ids_source"] == "choice"
    assert server["keeps_stop_token"] is True
    assert server["reports_cached_tokens"]
    assert server["reports_weight_versions"]
    assert_exact(found)
    assert found["command"].startswith(f"rollout run guess_number --base-url {vllm.url} -m tiny")


def test_dynamo_is_told_as_it_is(dynamo: Server, tmp_path: Path) -> None:
    """A frontend with mocker reports its own ids, no context length, and the template's prompt.

    It lists the generate route, which no mocker serves.
    """
    assert GENERATE in httpx.get(f"{dynamo.url}/openapi.json").json()["paths"]
    found = probe(dynamo, *TOKENIZER, cwd=tmp_path)
    server = found["server"]
    assert server["dialect"] == "dynamo"
    assert server["token_routes"] == ["/v1/chat/completions"]
    assert server["max_model_len"] is None
    assert server["ids_source"] == "nvext"
    assert server["reports_cached_tokens"]
    assert not server["can_tokenize"]
    assert_exact(found)
    assert "--max-model-len" in found["command"]


@pytest.mark.parametrize("server", ["vllm", "dynamo"])
def test_a_wrong_model_lists_the_right_ones(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Both servers' models are listed, in one line, with status 2."""
    running: Server = request.getfixturevalue(server)
    done = command("run", "echo", "--base-url", running.url, "-m", "huge", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("it serves: tiny")
    assert "Traceback" not in done.stderr


def test_a_refused_parameter_is_shown_once(dynamo: Server, tmp_path: Path) -> None:
    """What the server refuses of the caller's own parameters is shown as it says it, with status 3."""
    args = ("run", "echo", "-n", "8", "--base-url", dynamo.url, *TOKENIZER, "-s", "no_such_field=1")
    done = command(*args, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("no_such_field") == 1
