"""Real agents against a real vLLM: the recipes of docs/agents.md, sixteen at once, each turn token-in but the first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.live.random_model import write_random_model
from tests.live.recipes import (
    Script,
    assert_each_is_exact,
    assert_token_exact,
    play,
    program_of_recipe,
    write_scripts,
)
from tests.live.recorded import Program, recorder
from tests.live.servers import vllm_server
from tests.live.steered import Relay, steered

pytestmark = [pytest.mark.live, pytest.mark.agents]

#: Codex's prompt alone takes 17,000 tokens.
POSITIONS = 32_768


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Relay]:
    """A model of random weights, whose tokens no template would write, held to the forms of calls."""
    model = write_random_model(tmp_path_factory.mktemp("models") / "random", positions=POSITIONS)
    long = ["--max-model-len", str(POSITIONS)]
    # One thread: the agents have the other core, and several would wait for each other at every token.
    with (
        vllm_server(model, logs, extra_args=long, env={"OMP_NUM_THREADS": "1"}) as vllm,
        steered(vllm.url, model) as relay,
    ):
        yield relay


@pytest.fixture
def server(relay: Relay) -> str:
    return relay.url


def played(
    section: str,
    server: str,
    folder: Path,
    *steps: str,
    members: int = 8,
    which: int = 0,
    more: str = "",
    worth: Mapping[str, float] | None = None,
) -> None:
    """Plays a recipe and checks its run: `members` agents for each script, all at once."""
    scripts = [Script(each) for each in steps]
    run = play(section, server, scripts, folder, members=members, which=which, more=more)
    assert_token_exact(run, scripts, members, worth or {})


ALONE = ("bash,bash,bash+bash,bash,bash,bash,bash,say", "think:bash,bash,bash+bash,bash,think:bash,bash,bash,say")
HELPED = (
    "bash,helper,bash+bash,helper+helper,bash,bash,bash,say",
    "think:bash,bash,helper,bash,think:bash,bash,helper+bash,say",
)
CODEX = "exec,spawn,exec,exec,think:exec,exec,exec,exec,exec,exec,say"


@pytest.mark.parametrize("which", [0, 1], ids=["openai", "anthropic"])
def test_the_sdks_own_loops(server: str, which: int, tmp_path: Path) -> None:
    """Streaming loops with the official SDKs of OpenAI and Anthropic."""
    played("A loop of your own, with the SDKs", server, tmp_path, *ALONE, which=which)


def test_mini_swe_agent(server: str, tmp_path: Path) -> None:
    """mini-swe-agent as it is, which asks by LiteLLM."""
    steps = "bash,bash,bash+bash,bash,bash,bash,bash,submit"
    played("mini-swe-agent", server, tmp_path, steps, f"think:{steps}")


#: What a run's rollouts and its helpers are worth, where somebody judges.
JUDGE = """
def judge(task, ran):
    return {"reward": 1.0, "rewards": {"helper": 0.5}}
"""


def test_openai_agents(server: str, tmp_path: Path) -> None:
    """The OpenAI Agents SDK, over Responses, with agents that are tools of others."""
    (tmp_path / "judge.py").write_text(JUDGE)
    played("OpenAI Agents SDK", server, tmp_path, *HELPED, more="-a reward=judge.py:judge", worth={"helper": 0.5})


def test_langgraph(server: str, tmp_path: Path) -> None:
    """A LangGraph whose tool is another graph: it leaves out what the model thought, and goes on token-in."""
    (tmp_path / "judge.py").write_text(JUDGE)
    played("LangGraph", server, tmp_path, *HELPED, more="-a reward=judge.py:judge", worth={"helper": 0.5})


def test_claude_code(server: str, tmp_path: Path) -> None:
    """Claude Code as it is, with sub-agents, two of them at once."""
    first, second = (
        "Bash,Agent,Bash,Agent+Agent,Bash,Bash,Bash,say",
        "think:Bash,Bash,Agent,Bash,think:Bash,Bash,Bash,say",
    )
    played("Claude Code", server, tmp_path, first, second)


def test_codex(server: str, tmp_path: Path) -> None:
    """Codex as it is, with its whole prompt, and agents that it starts and does not wait for."""
    played("Codex", server, tmp_path, CODEX, members=4)


#: By section: which of its commands, and the scripts of agents that are recorded at once.
RECORDED = [
    *(("A loop of your own, with the SDKs", which, steps) for which in (0, 1) for steps in ALONE),
    ("mini-swe-agent", 0, "bash,bash,bash+bash,bash,bash,bash,bash,submit"),
    ("OpenAI Agents SDK", 0, HELPED[0]),
    ("LangGraph", 0, HELPED[1]),
    *[("Claude Code", 0, "Bash,Agent,Bash,Bash,think:Bash,Bash,Bash,say")] * 2,
    ("Codex", 0, CODEX),
]


def test_a_recorder_that_is_killed_loses_no_turn(relay: Relay, tmp_path: Path) -> None:
    """Agents outlast `kill -9` of `rollout proxy` in the middle of a turn of each, whose stream has begun.

    What they were answered is recorded, and goes on token-in; what broke off is played once.
    """
    write_scripts(tmp_path)
    with recorder(relay.url, tmp_path) as recording, contextlib.ExitStack() as ended:
        programs = list[Program]()
        with relay.holding(2):
            for section, which, steps in RECORDED:
                command = program_of_recipe(section, tmp_path, which)
                programs.append(Program(recording, command, Script(steps), tmp_path / f"agent-{len(programs)}"))
                ended.callback(programs[-1].kill)
            # A helper is at its third turn while its agent waits for it; Codex goes on beside its own.
            recording.wait_until(lambda _: relay.waiting == len(programs) + 1)
            recording.kill_and_restart()
        for program in programs:
            program.wait()
            recording.post(f"/sessions/{program.session}/end", reward=1.0)
    assert_each_is_exact(recording.folder, {program.session: program.script for program in programs})
