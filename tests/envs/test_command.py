"""Any program is an agent: it finds the model's address, its task, and nothing of the run's own secrets."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from envs.command import Command, ProgramFailed
from rollout.agent import Endpoint, Outcome
from rollout.errors import ConfigError
from rollout.registry import find_env

PYTHON = shlex.quote(sys.executable)


class Served:
    """A model that programs would ask over HTTP."""

    endpoint = Endpoint(base_url="http://127.0.0.1:9", api_key="rollout-key", model="tiny")
    limit: str | None = None

    def agent(self, name: str) -> Any:
        raise NotImplementedError

    async def chat(self, messages: Sequence[Any], **asked: Any) -> Any:
        raise NotImplementedError


def python(code: str, *arguments: str) -> str:
    return f"{PYTHON} -c {shlex.quote(code)} {' '.join(arguments)}"


async def run(code: str, *arguments: str, task: dict[str, Any] | None = None, **given: Any) -> tuple[Outcome, Command]:
    agent = Command(python(code, *arguments), **given)
    return await agent.run(task or {}, Served()), agent


async def test_a_program_finds_the_model_and_its_task() -> None:
    """In the variables that such programs read, in its arguments where the command says so, and in a file."""
    code = """
import json, os, sys
names = ["OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_MODEL"]
task = json.load(open(os.environ["ROLLOUT_TASK_FILE"]))
print(json.dumps([sys.argv[1:], [os.environ[n] for n in names], task, os.environ["ROLLOUT_TASK_QUESTION"]]))
"""
    task = {"question": "a; rm -rf $HOME `x` \"'", "deep": {"list": [1, {"b": True}]}}
    arguments = ("{task[question]}", "--url={base_url}/x", "{task[deep][list][1]}", "'{unknown} ${HOME}'", "{api_key}")
    outcome, agent = await run(code, *arguments, task=task)
    given, variables, read, question = json.loads(agent.notes["output"])
    assert given == [task["question"], "--url=http://127.0.0.1:9/x", '{"b":true}', "{unknown} ${HOME}", "rollout-key"]
    assert variables == ["http://127.0.0.1:9/v1", "rollout-key", "http://127.0.0.1:9", "rollout-key", "tiny"]
    assert (read, question) == (task, task["question"])
    assert (outcome.reward, outcome.metrics) == (1.0, {"exit_status": 0.0})


async def test_a_key_of_the_task_takes_no_variable_of_ours() -> None:
    """A task with a key `file` is found by its file all the same, and has that key in it."""
    code = "import json, os; print(json.load(open(os.environ['ROLLOUT_TASK_FILE']))['file'])"
    _, agent = await run(code, task={"file": "src/a.py"})
    assert agent.notes["output"] == "src/a.py\n"


async def test_only_variables_that_are_allowed_reach_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own API key does not; what `env` names does."""
    monkeypatch.setenv("MY_SERVERS_KEY", "secret")
    monkeypatch.setenv("WANTED", "yes")
    _, agent = await run("import os, json; print(json.dumps(dict(os.environ)))", env="WANTED")
    found = json.loads(agent.notes["output"])
    assert "MY_SERVERS_KEY" not in found
    assert (found["WANTED"], found["PATH"]) == ("yes", os.environ["PATH"])


async def test_each_task_has_a_folder_of_its_own_that_is_removed(tmp_path: Path) -> None:
    """With the files that each is to have; it stays where the folders are kept."""
    files, kept = tmp_path / "files", tmp_path / "kept"
    files.mkdir()
    (files / "given.txt").write_text("given", "utf-8")
    code = "import os; open('made.txt', 'w').write(open('given.txt').read()); print(os.getcwd())"
    _, agent = await run(code, files=str(files))
    removed = Path(agent.notes["output"].strip())
    await _until(lambda: not removed.exists())
    _, agent = await run(code, files=str(files), keep=str(kept))
    (folder,) = kept.iterdir()
    assert (folder / "made.txt").read_text("utf-8") == "given"
    assert not (files / "made.txt").exists()


async def test_a_reward_comes_from_a_command_a_function_or_a_file(tmp_path: Path) -> None:
    """Each sees what the program left."""
    leaves = "open('reward.json', 'w').write('{\"reward\": 0.5, \"rewards\": {\"sub\": 2}}'); print('said')"
    judge = python("print('so'); print(open('reward.json').read())")
    outcome, _ = await run(leaves, reward_command=judge)
    assert (outcome.reward, outcome.rewards) == (0.5, {"sub": 2.0})
    outcome, _ = await run(leaves, reward_file="reward.json")
    assert outcome.reward == 0.5
    file = tmp_path / "judges_of_commands.py"
    file.write_text("def judge(task, ran):\n    return task['worth'] * ('said' in ran.output)\n", "utf-8")
    outcome, _ = await run(leaves, task={"worth": 3.0}, reward=f"{file}:judge")
    assert outcome.reward == 3.0


@pytest.mark.parametrize(
    "given", ["np.float32(0.5)", "{'reward': np.float32(0.5), 'metrics': {'n': np.int64(2)}}", "np.array([0.5])"]
)
async def test_a_reward_function_may_give_numbers_of_numpys(tmp_path: Path, given: str) -> None:
    """As any other reward may be one."""
    file = tmp_path / "judges_by_numpy.py"
    file.write_text(f"import numpy as np\ndef judge(task, ran):\n    return {given}\n", "utf-8")
    outcome, _ = await run("print(1)", reward=f"{file}:judge")
    assert outcome.reward == 0.5


@pytest.mark.parametrize("most", [0, 1_000])
async def test_a_reward_that_ends_a_long_output_is_found(most: int) -> None:
    """However little of the output is kept for people."""
    judge = python("print('so ' * 100_000); print(0.5)")
    outcome, agent = await run("print(1)", reward_command=judge, output_bytes=most)
    assert outcome.reward == 0.5
    assert agent.notes["reward output"].startswith("so " * (most // 3))


@pytest.mark.parametrize(
    ("code", "given", "said"),
    [
        ("raise SystemExit('no docker')", {}, "ended with status 1: no docker"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {"check": False}, "ended by signal 9"),
        ("print(1)", {"reward_command": python("raise SystemExit(3)")}, "reward_command ended with status 3"),
        ("print(1)", {"reward_command": python("print('good')")}, "neither a number nor JSON: 'good'"),
        ("print(1)", {"reward_file": "none.json"}, "left no 'none.json'"),
        ("print(1)", {"reward_command": "/no/such/judge"}, "cannot start '/no/such/judge'"),
        ("import os; os.symlink('/dev/zero', 'r')", {"reward_file": "r"}, "leads out of the folder"),
        ("import os; os.mkfifo('r')", {"reward_file": "r"}, "no regular file"),
        ("open('r', 'w').write('{}')", {"reward_file": "r"}, "its keys are \\[\\], and 'reward' is none"),
        ("open('r', 'w').write('1' * 2_000_000)", {"reward_file": "r"}, "more than 1000000 bytes"),
    ],
)
async def test_what_broke_is_a_failure_and_no_reward(code: str, given: dict[str, Any], said: str) -> None:
    """It says what, and what was printed is kept all the same."""
    with pytest.raises(ProgramFailed, match=said):
        await run(code, **given)


async def test_a_program_that_was_told_of_a_limit_is_judged() -> None:
    """It ends badly because the model said no: that is no fault of the infrastructure."""
    agent = Command(python("raise SystemExit(1)"), reward_command=python("print(0.5)"))
    model = Served()
    model.limit = "context_length"
    assert (await agent.run({}, model)).reward == 0.5


@pytest.mark.slow
async def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """Its process group, SIGTERM ignored or not; what it had printed is kept."""
    beat = tmp_path / "child"
    child = f"import time; open({str(beat)!r}, 'w').write(str(__import__('os').getpid())); time.sleep(600)"
    code = f"""
import signal, subprocess, sys, time, os
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {child!r}])
while not os.path.exists({str(beat)!r}) or not open({str(beat)!r}).read(): time.sleep(0.01)
print("here", flush=True)
time.sleep(600)
"""
    agent = Command(python(code), timeout_s=3.0)
    with pytest.raises(ProgramFailed, match="longer than 3 s"):
        await agent.run({}, Served())
    assert agent.notes["output"] == "here\n"
    await _gone(int(beat.read_text("utf-8")))


async def test_a_program_is_ended_when_its_rollout_is_cancelled(tmp_path: Path) -> None:
    """Nothing of it is left behind."""
    beat = tmp_path / "pid"
    code = f"import os, time; open({str(beat)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    running = asyncio.create_task(Command(python(code)).run({}, Served()))
    await _until(lambda: beat.exists() and bool(beat.read_text("utf-8")))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await _gone(int(beat.read_text("utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("session", [False, True])
async def test_a_program_that_leaves_a_server_behind_is_judged_when_it_ends(session: bool) -> None:
    """What holds its output still is ended with its group, or not waited for."""
    child = "import time; time.sleep(10)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session={session})"
    outcome, agent = await run(f"print('here', flush=True); {code}", timeout_s=20.0)
    assert (outcome.reward, agent.notes["output"]) == (1.0, "here\n")


async def test_a_reward_function_is_bounded_too(tmp_path: Path) -> None:
    """As the program is."""
    file = tmp_path / "slow_judges_of_commands.py"
    text = "import asyncio\nasync def judge(task, ran):\n    await asyncio.sleep(60)\n"
    file.write_text(text, "utf-8")
    with pytest.raises(ProgramFailed, match=r"reward function took longer than 1.5 s"):
        await run("print(1)", reward=f"{file}:judge", timeout_s=1.5)


async def test_output_beyond_its_limit_is_read_and_left_out() -> None:
    """The program does not wait for anybody to read it, and memory is bounded."""
    _, agent = await run("import sys; sys.stdout.write('a' * 300_000)", output_bytes=1_000)
    assert agent.notes["output"] == "a" * 1_000 + "\n[299000 bytes left out]"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"command": ""}, "empty"),
        ({"command": "a 'b"}, "No closing quotation"),
        ({"command": "a", "reward_command": "b", "reward_file": "c"}, "one of reward_command"),
        ({"command": "a", "timeout_s": 0.0}, "above 0"),
        ({"command": "a", "files": "/no/such"}, "no folder"),
        ({"command": "a", "reward": "nothing"}, "file.py:function"),
        ({"command": "a", "reward": "json:no_such"}, "no function"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match=said):
        Command(**given)


def test_a_task_of_the_files_own_is_not_overwritten(tmp_path: Path) -> None:
    """Each program finds its own task under that name, so the file must have another."""
    (tmp_path / "task.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has a task\.json"):
        Command("cat task.json", files=str(tmp_path))


async def test_a_key_that_the_task_has_not_is_named() -> None:
    """The command wants it, so nothing is started."""
    with pytest.raises(ProgramFailed, match=r"\{task\[gone\]\}"):
        await run("print(1)", "{task[gone]}")


def test_it_is_found_by_name() -> None:
    """As environments are."""
    assert find_env("command") is Command


async def _gone(pid: int) -> None:
    """Waits until a process has ended: a zombie that nobody has read yet has."""

    def gone() -> bool:
        try:
            return ") Z " in Path(f"/proc/{pid}/stat").read_text("utf-8")
        except OSError:
            return True

    await _until(gone)


async def _until(holds: Callable[[], bool]) -> None:
    """Another process tells nobody, so it is looked at now and then."""

    def wait() -> None:
        end = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.01)

    await anyio.to_thread.run_sync(wait)
