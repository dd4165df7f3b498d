"""The command line as a user meets it: its output, its exit status, its one line for each mistake."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any

import pytest
import typer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from typer.testing import CliRunner, Result

from rollout import registry
from rollout.cli.app import app
from rollout.store.folder import read_config, read_rollouts
from rollout.store.settings import RunSettings
from tests.live.servers import free_port
from tests.local_server import serving
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app

KEYS = {
    *(
        "env",
        "unknown_rewards",
        "model",
        "transport",
        "mode",
        "bridges",
        "reader",
        "tasks",
        "rollouts",
        "failures",
        "turns",
        "token_in_turns",
    ),
    *(
        "message_in_turns",
        "fallbacks",
        "folded_messages",
        "prefix_breaks",
        "reward_mean",
        "prompt_tokens",
        "completion_tokens",
    ),
    *("cached_tokens", "samples", "wall_s", "client_cpu_s", "turns_per_s", "run_dir"),
    *("failures_by_kind", "stops", "cut_off_turns", "cut_off_share", "reward_std", "metrics", "groups"),
    *("equal_groups", "pass_at_k", "left_out_tokens", "agents"),
    "concurrency",
    "most_running",
    "processes",
    "process_deaths",
    "retried",
    "loop_lag_p99_s",
    "loop_lag_max_s",
    "servers",
}

SHORT = ["echo", "-n", "2", "-a", "turns=3", "-a", "chars=20", "--max-tokens", "6"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROLLOUT_API_KEY", raising=False)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    app = create_app()
    with serving(app) as url:
        yield url
    app.state.engine.close()


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def mistake(*args: str, status: int) -> str:
    """What is said of a mistake: the last line; the status is checked, and that there is no traceback."""
    result = invoke(*args)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.startswith("rollout: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def played(*args: str) -> dict[str, Any]:
    result = invoke("run", *args, "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.slow
def test_json_is_one_object_with_the_promised_keys() -> None:
    """Standard output holds the object and nothing else; the run folder holds the same."""
    result = played(*SHORT, "-r", "2", "--verify")
    assert result.keys() == KEYS
    assert (result["rollouts"], result["turns"], result["token_in_turns"]) == (4, 12, 8)
    assert result["fallbacks"] == {"first_turn": 4}
    assert (result["failures"], result["prefix_breaks"], result["samples"]) == (0, 0, 4)
    assert (result["env"], result["transport"], result["mode"]) == ("echo", "embedded", "tito")
    assert (result["bridges"], result["reader"]) == ("renderer qwen3, then template", "hermes")
    folder = Path(result["run_dir"])
    assert json.loads((folder / "summary.json").read_text()) == result
    assert len(list(read_rollouts(folder))) == 4
    assert read_config(folder)["env_args"] == {"turns": "3", "chars": "20"}


@pytest.mark.slow
def test_people_get_a_table() -> None:
    """Without --json standard output is the table, which names what was played and where it lies."""
    result = invoke("run", *SHORT)
    assert result.exit_code == 0
    for word in (
        "reward",
        "read as hermes",
        "token-in 4, message-in 2",
        "first_turn 2",
        "cached",
        "tokens/s",
        "runs/echo--rollout-tiny",
    ):
        assert word in result.stdout


@pytest.mark.slow
def test_message_in_reports_its_breaks() -> None:
    """In mode mito every turn goes message-in, and each break is one more training sample."""
    result = played(*SHORT, "--mode", "mito", "--temperature", "1")
    assert result["message_in_turns"] == 6
    assert result["samples"] == 2 + result["prefix_breaks"]


@pytest.mark.slow
def test_a_served_model_is_found_out_and_played(server: str) -> None:
    """With --base-url the dialect is found, /v1 or not, and the tokenizer with it."""
    result = played(*SHORT, "--base-url", f"{server}/v1", "--require-token-in", "--verify")
    assert (result["transport"], result["token_in_turns"]) == ("vllm", 4)


@pytest.mark.slow
def test_settings_come_from_a_file_and_flags_beat_it(tmp_path: Path) -> None:
    """A TOML file sets what a flag sets; where both do, the flag wins."""
    (tmp_path / "run.toml").write_text(
        'env = "echo"\nnum_tasks = 3\nmax_tokens = 5\n[env_args]\nturns = 2\nchars = 9\n[sampling]\ntop_p = 0.9\n'
    )
    result = played("--config", "run.toml", "-n", "1", "-a", "turns=4")
    assert (result["tasks"], result["turns"]) == (1, 4)
    config = read_config(Path(result["run_dir"]))
    assert config["sampling"] == {"top_p": 0.9}
    assert config["env_args"] == {"turns": "4", "chars": 9}


@pytest.mark.slow
def test_tasks_come_from_a_file(tmp_path: Path) -> None:
    """--tasks plays one task per line."""
    (tmp_path / "tasks.jsonl").write_text('{"target": 5}\n\n{"target": 6}\n')
    result = played("guess_number", "--tasks", "tasks.jsonl", "--max-tokens", "8")
    assert result["tasks"] == 2
    targets = sorted(rollout.task["target"] for rollout in read_rollouts(result["run_dir"]))
    assert targets == [5, 6]


@pytest.mark.slow
def test_resume_plays_what_is_missing() -> None:
    """A run cut in the middle of a line is completed, and the summary counts all of it."""
    played(*SHORT, "-r", "3", "-o", "run")
    path = Path("run/rollouts.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    result = played(*SHORT, "-r", "3", "-o", "run", "--resume")
    assert result["rollouts"] == 6
    assert len({rollout.id for rollout in read_rollouts("run")}) == 6
    assert [rollout.id for rollout in read_rollouts("run")][:3] == [json.loads(line)["id"] for line in lines[:3]]


@pytest.mark.slow
def test_resume_refuses_other_settings() -> None:
    """What would change the meaning of a run is named."""
    played(*SHORT, "-o", "run")
    said = mistake("run", *SHORT, "-o", "run", "--resume", "--temperature", "0.1", status=2)
    assert "sampling" in said


@pytest.mark.slow
def test_a_key_is_never_written(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """The API key is in no file of the run folder and in no output."""
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    result = invoke("run", *SHORT, "--base-url", server, "--api-key-env", "MY_KEY", "-o", "run")
    assert result.exit_code == 0
    assert "sk-very-secret" not in result.output + result.stderr
    assert all(b"sk-very-secret" not in file.read_bytes() for file in Path("run").iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["gess_number"], "did you mean 'guess_number'"),
        (["echo", "-a", "turn=3"], "did you mean 'turns'"),
        (["echo", "-a", "turns=many"], "turns=many is not a int"),
        (["echo", "-a", "turns"], "'turns' is not KEY=VALUE"),
        (["echo", "-n", "0"], "-n must be 1 or more"),
        (["echo", "--mode", "both"], "both"),
        (["echo", "--transport", "vlm"], "did you mean 'vllm'"),
        (["echo", "--transport", "vllm"], "needs the server's address"),
        (["echo", "--tokenizer", "/no/such/folder"], "tokenizer '/no/such/folder' was not found"),
        (["echo", "--renderer", "qwenn"], "no renderer 'qwenn'"),
        (["echo", "--config", "missing.toml"], "cannot read 'missing.toml'"),
        (["echo", "--config", "broken.toml"], "broken.toml is not TOML"),
        (["--config", "unknown.toml"], "did you mean 'concurrency'"),
        (["echo", "--tasks", "broken.jsonl"], "broken.jsonl, line 2"),
        (["echo", "--tasks", "missing.jsonl"], "cannot read the tasks"),
        (["echo", "-o", "file/run"], "cannot write the run folder"),
        (["echo", "-s", "temperature=hot"], "sampling: temperature must be a finite number, not 'hot'"),
        (["echo", "-s", 'stop_token_ids=["a"]'], "sampling: stop_token_ids must be a list of whole numbers"),
        (["echo", "--resume"], "--resume needs -o DIR"),
        (["echo", "--resume", "-o", "nothing"], "nothing to resume"),
        (["echo", "--api-key-env", "NO_SUCH_KEY_VARIABLE"], "NO_SUCH_KEY_VARIABLE is not set"),
        ([], "no environment"),
    ],
)
def test_a_mistake_is_one_clear_line(args: list[str], said: str, tmp_path: Path) -> None:
    """Wrong use exits with 2 and says what to do."""
    (tmp_path / "broken.toml").write_text("env = [")
    (tmp_path / "unknown.toml").write_text('env = "echo"\nconcurency = 3\n')
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a": \n')
    (tmp_path / "file").write_text("")
    assert said in mistake("run", *args, status=2)
    assert not Path("runs").exists()


def test_a_server_that_is_down_is_named() -> None:
    """Nobody at the address: status 3, and the address."""
    url = f"http://127.0.0.1:{free_port()}"
    assert url in mistake("run", *SHORT, "--base-url", url, status=3)


def test_a_wrong_model_lists_the_right_ones(server: str) -> None:
    """The server's models are named."""
    assert "it serves: rollout-tiny" in mistake("run", *SHORT, "--base-url", server, "-m", "huge", status=2)


def answering(status: int, body: Any) -> Starlette:
    async def answer(request: Request) -> JSONResponse:
        return JSONResponse(body, status)

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


def test_a_refused_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers 401 is status 3, with the remedy and without the key."""
    monkeypatch.setenv("ROLLOUT_API_KEY", "sk-wrong")
    with serving(answering(401, {"error": "Unauthorized"})) as url:
        said = mistake("run", *SHORT, "--base-url", url, status=3)
    assert "refused the API key" in said
    assert "--api-key-env" in said
    assert "sk-wrong" not in said


def test_a_stranger_is_not_taken_for_a_server_we_know() -> None:
    """A server of neither dialect is named as such."""
    models = {"data": [{"id": "m", "owned_by": "somebody"}]}
    with serving(answering(200, models)) as url:
        assert "neither vLLM, SGLang nor Dynamo" in mistake("run", *SHORT, "--base-url", url, status=3)


@pytest.mark.slow
def test_a_server_without_a_token_route_under_require_token_in(tmp_path: Path) -> None:
    """Every rollout fails with the reason, and the status is 1."""
    app = create_app()
    app.router.routes = [
        r for r in app.router.routes if getattr(r, "path", "") not in ("/v1/completions", "/inference/v1/generate")
    ]
    with serving(app) as url:
        result = invoke("run", *SHORT, "--base-url", url, "--require-token-in", "--json")
    app.state.engine.close()
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failures"] == 2
    assert "no_token_route" in result.stderr


def test_a_refused_parameter_is_said_once(server: str) -> None:
    """What the server refuses of every request ends the run with its own words and status 3."""
    said = mistake("run", *SHORT, "-n", "9", "--base-url", server, "-s", "temperature=-1", status=3)
    assert "refuses" in said


@pytest.mark.slow
def test_failed_rollouts_are_status_one(tmp_path: Path) -> None:
    """A rollout that fails is in the summary, with the first message of its kind."""
    (tmp_path / "bad.py").write_text(
        "from rollout import Env\nclass Bad(Env):\n    def reset(self, task):\n        raise RuntimeError('boom')\n"
    )
    result = invoke("run", "bad.py:Bad", "-n", "2", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failures"] == 2
    assert "reset raised RuntimeError: boom" in result.stderr


def test_the_version_is_said() -> None:
    """On standard output, with status 0."""
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"rollout {version('rollout-engine')}\n")


def options() -> Iterator[tuple[str, Any]]:
    """Every option of every command, with the command's name."""
    root: Any = typer.main.get_command(app)
    for name, command in {"": root, **root.commands}.items():
        yield from ((name, option) for option in command.params)


@functools.cache
def printed_help(command: str) -> list[str]:
    arguments = [command, "--help"] if command else ["--help"]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "400"}).stdout.splitlines()


def test_every_option_has_a_help_text_and_its_default() -> None:
    """Of every command, as it is printed: what it does, and what holds where it is not given."""
    for name, option in options():
        assert option.help, f"{name}: {option.name} has no help"
        if option.param_type_name == "option":
            default = option.show_default if isinstance(option.show_default, str) else option.default
            assert default not in (None, True), f"{name}: {option.opts} does not say its default"
            longest = max(option.opts, key=len)
            line = next(line for line in printed_help(name) if line.strip("│ ").startswith(f"{longest} "))
            assert f"[default: {f'({default})' if isinstance(option.show_default, str) else default}]" in line


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("concurrency", "64"),
        ("request_timeout_s", "600"),
        ("close_timeout_s", "60"),
        ("stop_grace_s", "25"),
        ("weights_timeout_s", "600"),
        ("worker_silence_s", "20"),
        ("worker_start_s", "300"),
        ("max_abandoned_threads", "256"),
        ("http_retries", "4"),
        ("rollout_retries", "0"),
        ("success_at", "1.0"),
        ("seed", "0"),
        ("processes", "1"),
    ],
)
def test_defaults_that_are_told_are_those_of_the_settings(name: str, setting: str) -> None:
    """A text that has fallen behind misleads."""
    told = next(option.show_default for command, option in options() if command == "run" and option.name == name)
    assert told == setting
    assert getattr(RunSettings(), name) == float(setting)


def test_an_environment_that_is_broken_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's distribution cannot be imported: it is listed with the reason."""
    broken = EntryPoint("broken", "no_such_module:Env", "rollout.envs")
    leaves = EntryPoint("leaves", "sys:exit", "rollout.envs")
    known = entry_points(group="rollout.envs")
    monkeypatch.setattr(registry, "entry_points", lambda group: [*known, broken, leaves])
    result = invoke("envs")
    assert result.exit_code == 0
    assert "broken   cannot be used: " in result.stdout
    assert "ModuleNotFoundError: No module named 'no_such_module'" in result.stdout
    assert "-a turns: int = 8" in result.stdout


def test_envs_lists_arguments_and_defaults() -> None:
    """Each environment with its arguments, for people and as JSON."""
    assert "-a turns: int = 8" in invoke("envs").stdout
    listed = {entry["name"]: entry for entry in json.loads(invoke("envs", "--json").stdout)}
    assert listed["echo"]["error"] is None
    assert listed["echo"]["arguments"][0] == {"name": "turns", "type": "int", "default": 8, "required": False}
    assert listed["guess_number"]["summary"]


def test_model_prints_the_folder() -> None:
    """The embedded model's folder, as other servers want it."""
    assert Path(invoke("model").stdout.strip()) == MODEL_DIR


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["vllm", "dynamo"])
def test_probe_tells_what_a_server_does(dialect: Any) -> None:
    """Routes, where ids come from, what is token-exact and what not; the command line to use is last."""
    app = create_app(dialect=dialect)
    with serving(app) as url:
        result = invoke("probe", url, "--tokenizer", str(MODEL_DIR), "--json")
        shown = invoke("probe", url, "--tokenizer", str(MODEL_DIR))
    app.state.engine.close()
    found = json.loads(result.stdout)
    assert found["server"]["dialect"] == dialect
    assert found["server"]["ids_source"] == {"vllm": "choice", "dynamo": "engine_data"}[dialect]
    assert found["server"]["keeps_stop_token"] is True
    assert {shape["shape"]: shape["exact"] for shape in found["shapes"]}.pop("special text") is False
    assert all(shape["exact"] for shape in found["shapes"] if shape["shape"] != "special text")
    assert found["live"].startswith("turn 2 went token-in by the renderer bridge; its prompt starts with turn 1's ids")
    assert f"--base-url {url}" in found["command"]
    assert "token-exact for user, tool" in shown.stdout


def test_help_needs_no_heavy_imports() -> None:
    """`rollout --help` loads neither transformers nor numpy."""
    code = "import sys, rollout.cli.app; print([m for m in ('transformers', 'numpy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_bench_compares_the_modes(tmp_path: Path) -> None:
    """Both modes' runs as JSON, the same on disk; wrong numbers are named and exit with 2."""
    size = ["--turns", "2", "-c", "2", "--repeats", "1", "--max-tokens", "4", "--env-chars", "20"]
    result = invoke("bench", *size, "-o", str(tmp_path), "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [run["mode"] for run in found["runs"]] == ["tito", "mito"]
    assert found == json.loads((tmp_path / "results.json").read_text())
    wrong = invoke("bench", "--turns", "two")
    assert wrong.exit_code == 2
    assert "--turns takes numbers" in wrong.stderr
