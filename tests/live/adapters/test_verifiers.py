"""`verifiers:TASKSET`: tasksets as users write them, the package's own environments, and its own harnesses."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import verifiers.v1 as vf
from aiohttp import web
from aiohttp.test_utils import TestServer

from envs.adapters.verifiers.agent import Verifiers
from envs.adapters.verifiers.play import Served
from envs.adapters.verifiers.settings import load
from rollout import EngineConfig
from rollout.errors import ConfigError, PromptTooLong, TransportError
from rollout.records import FailureKind, StopReason
from rollout.registry import env_factory
from tests.live.adapters.kit import MARKS, all_ended, play, refused, same_tasks
from tests.live.adapters.taskset_kit import FILES, engine_of, played
from tests.live.adapters.test_many import AT_ONCE, leave_nothing
from transports.scripted import Fault, ScriptedTransport, Stalled, reply

pytestmark = MARKS


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One folder of tasksets for all tests: a file's module is known by its name."""
    place = tmp_path_factory.getbasetemp() / "tasksets"
    if not place.is_dir():
        place.mkdir()
        for name, text in FILES.items():
            (place / name).write_text(text)
    monkeypatch.chdir(place)
    return place


def calling(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def test_64_rollouts_of_several_turns(folder: Path, tmp_path: Path) -> None:
    """The taskset's own environment asks three times: each turn after the first goes out token-in; two processes."""
    result = play(f"verifiers:{folder}/talk.py", "--processes", "2", cwd=tmp_path)
    assert result["turns"] == 3 * 64
    assert result["token_in_turns"] >= 2 * 64
    assert "reward_said" in result["metrics"]


def test_64_rollouts_of_one_turn_and_of_several_seats(folder: Path, tmp_path: Path) -> None:
    """The package's `best-of-n` over a taskset: four traces a rollout, each an agent."""
    more = ["-a", "n=4", "-a", "max_concurrent_agents=null", "-a", "num_tasks=20"]
    result = play(f"verifiers:best-of-n+{folder}/sums.py", *more, cwd=tmp_path)
    assert result["turns"] == 4 * 64
    assert {"best", "pass_at_n", "chars", "reward_right"} <= set(result["metrics"])


async def test_rewards_and_metrics_are_the_packages_own() -> None:
    """Of recorded answers, as `trace.score` gives them: weights, each reward function, each metric."""
    tasks = [{"index": 0, "data": {"prompt": "What is 4 + 1?", "answer": 5}}] * 2
    right, wrong = await played(["5", "six"], "sums.py", tasks)
    own = []
    for answer in ("5", "six"):
        import sums  # type: ignore[import-not-found]

        task = sums.SumTask(sums.SumData(prompt="What is 4 + 1?", answer=5))
        trace = vf.Trace(task=vf.TraceTask(type="SumTask", data=task.data), agent=vf.AgentInfo(config=vf.AgentConfig()))
        trace.root_reply = answer
        await task.score(trace)
        own.append((trace.reward, trace.metrics, {name: reward.score for name, reward in trace.rewards.items()}))
    for rollout, (reward, metrics, scores) in zip((right, wrong), own, strict=True):
        assert rollout.failure is None
        assert rollout.reward == pytest.approx(reward)
        assert rollout.metrics == {**metrics, **{f"reward_{name}": value for name, value in scores.items()}}
    assert right.reward == 2.5


def test_tasks_are_the_same_for_a_seed() -> None:
    """Of a taskset with an end and of one without; a row is made into the same task again."""
    rows = same_tasks(lambda: Verifiers("sums.py"))
    assert len({row["index"] for row in rows}) == 8
    assert [row["index"] for row in Verifiers("sums.py", shuffle=False).tasks(3, 5)] == [0, 1, 2]
    assert len(list(Verifiers("sums.py", num_tasks=3).tasks(8, 0))) == 3
    endless = same_tasks(lambda: Verifiers("talk.py"))
    assert all(row["data"]["name"] == str(row["index"]) for row in endless)


async def test_a_row_becomes_the_same_task_again() -> None:
    """By the package's own hash of it, from JSON: messages, numbers, what is set and what is not."""
    for taskset in ("rows.py", "sums.py"):
        env = load(taskset, "", "subprocess", {})
        served, own = Served(env, taskset, 1.0), {task.data.idx: task for task in env.taskset}
        rows = json.loads(json.dumps(list(Verifiers(taskset).tasks(64, 0))))
        assert {row["index"] for row in rows} == set(own)
        assert [served.task(row).hash for row in rows] == [own[row["index"]].hash for row in rows]
    rollouts = await played(["Bye.", "Bye."], "rows.py", shuffle=False, tasks=list(Verifiers("rows.py").tasks(2, 0)))
    assert [rollout.failure for rollout in rollouts] == [None, None]
    assert max(len(rollout.messages) for rollout in rollouts) == 5


async def test_a_conversation_is_one_branch() -> None:
    """The user's turns come from the environment; the reward is its own, over the whole."""
    (rollout,) = await played(["yes", "no", "yes"], "talk.py")
    assert rollout.failure is None
    assert rollout.reward == pytest.approx(2 / 3)
    assert [message.role for message in rollout.messages] == ["system", *["user", "assistant"] * 3]
    assert rollout.notes == {"stop": "user_closed"}


async def test_each_seat_is_an_agent_and_one_may_not_be_trained_on() -> None:
    """By its name in the environment's configuration; the rollout's reward is that of what is trained on."""
    (rollout,) = await played(["one", "three"], "duet.py")
    assert rollout.failure is None
    assert [(turn.agent, turn.train) for turn in rollout.turns] == [("a", True), ("b", False)]
    assert (rollout.reward, dict(rollout.rewards)) == (3.0, {"a": 3.0})


async def test_a_seat_with_a_model_of_its_own_is_no_part_of_the_rollout() -> None:
    """What another server answers is neither a turn nor a reward of the policy's."""

    async def answer(request: web.Request) -> web.Response:
        message = {"role": "assistant", "content": "four"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        )

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server:
        given: Any = {"a.client.base_url": str(server.make_url("/v1"))}
        (rollout,) = await played(["one"], "duet.py", **given)
    assert rollout.failure is None
    assert [turn.agent for turn in rollout.turns] == ["b"]
    assert (rollout.reward, dict(rollout.rewards)) == (0.0, {})
    assert sorted(rollout.notes) == ["a stop", "b stop"]


async def test_tools_are_called(folder: Path) -> None:
    """One server for all rollouts: its tools are the model's, its refusals are told to the model."""
    calls = [calling("shop_price", thing="bread"), calling("shop_price", thing="air"), calling("no_such"), "It is 5."]
    (rollout,) = await played(calls, "shop.py")
    assert rollout.failure is None
    assert (rollout.reward, len(rollout.turns)) == (1.0, 4)
    told = [message.text for message in rollout.messages if message.role == "tool"]
    assert told[0] == "bread costs 5"
    assert "price" in told[1]
    assert told[2] == "error: unknown tool 'no_such'"


async def test_a_modules_load_environment_is_played() -> None:
    """A module without a taskset of its own makes its environment; `-a` is what it is called with."""
    assert len(list(Verifiers("made.py", num_tasks=2).tasks(8, 0))) == 2
    (rollout,) = await played(["21"], "made.py", shuffle=False)
    assert (rollout.failure, rollout.metrics["reward_right"]) == (None, 1.0)


async def test_the_runs_limit_is_scored_as_the_packages_own() -> None:
    """An episode that reaches `max_turns` ends there, and is judged as far as it came."""
    config = EngineConfig(concurrency=1, max_turns=2)
    (rollout,) = await played(["yes", "yes"], "talk.py", config=config)
    assert (rollout.failure, rollout.stop) == (None, StopReason.MAX_TURNS)
    assert rollout.reward == pytest.approx(2 / 3)
    own: Any = {"agent.max_turns": 2}
    (rollout,) = await played(["yes", "yes"], "talk.py", **own)
    assert (rollout.failure, rollout.stop, rollout.notes) == (None, StopReason.DONE, {"stop": "max_turns"})
    assert rollout.reward == pytest.approx(2 / 3)


async def test_a_context_that_is_full_ends_with_what_was_said() -> None:
    """As the package's own chat loop ends there: it is judged as far as it came, and the rollout says why."""
    full = Fault(PromptTooLong("the prompt has 90 tokens, the context 80"))
    (rollout,) = await played(["yes", full], "talk.py")
    assert (rollout.failure, rollout.stop) == (None, StopReason.CONTEXT_LENGTH)
    assert rollout.reward == pytest.approx(1 / 3)


async def test_a_server_that_fails_is_the_rollouts_failure() -> None:
    """Of the infrastructure, not of the taskset; nothing is a reward of 0."""
    gone = Fault(TransportError("the server is gone"))
    config = EngineConfig(concurrency=1, http_retries=0)
    (rollout,) = await played(["yes", gone], "talk.py", config=config)
    assert rollout.failure is not None
    assert (rollout.failure.kind, "the server is gone" in str(rollout.failure)) == (FailureKind.TRANSPORT, True)


async def test_what_raises_is_its_rollouts_failure() -> None:
    """A reward function that raises, and a row that is none; others are played."""
    rows = [{"data": {"prompt": "?", "answer": answer}} for answer in (13, 5, "many")]
    unlucky, sound, wrong = await played(["5", "5"], "sums.py", rows)
    assert "TaskError: task SumTask scoring: ValueError: unlucky" in str(unlucky.failure)
    assert sound.failure is None
    assert "has no such task: data.answer: Input should be a valid integer" in str(wrong.failure)


async def test_limits_hold_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts that are given up at their deadline leave no session behind, and the next are played."""
    monkeypatch.setattr("verifiers.v1.runtimes.subprocess.CACHE_DIR", tmp_path)  # other tests' are in the user's
    config = EngineConfig(concurrency=8, episode_timeout_s=2.0)
    transport = ScriptedTransport([*[Stalled()] * 8, *[reply("yes")] * 3])
    tasks = list(Verifiers("talk.py").tasks(8, 0))
    async with asyncio.timeout(60), engine_of("talk.py", transport, config) as engine:
        groups = [group async for group in engine.stream(tasks)]
        assert ["timeout" in str(group.rollouts[0].failure) for group in groups] == [True] * 8
        (last,) = [group async for group in engine.stream(tasks[:1])]
    assert (last.rollouts[0].failure, last.rollouts[0].reward) == (None, 1.0)
    assert list((tmp_path / "runtimes").iterdir()) == [tmp_path / "runtimes" / "subprocess"]
    assert list((tmp_path / "runtimes" / "subprocess").iterdir()) == []


async def test_programs_end_with_a_rollout_that_is_given_up(folder: Path) -> None:
    """A harness of the taskset's own, whose program does not end: at the rollout's deadline it does."""
    config = EngineConfig(concurrency=4, episode_timeout_s=4.0)
    async with asyncio.timeout(60), engine_of("sleeper.py", ScriptedTransport([]), config) as engine:
        groups = [group async for group in engine.stream(list(Verifiers("sleeper.py").tasks(4, 0)))]
        assert ["timeout" in str(group.rollouts[0].failure) for group in groups] == [True] * 4
        started = [int(pid) for pid in (folder / "pids").read_text().split()]
        assert len(started) == 4
        await all_ended(started)


async def test_a_start_that_hangs_ends_the_run() -> None:
    """What rollouts share has a limit of its own."""
    async with asyncio.timeout(60):
        with pytest.raises(ConfigError, match=r"did not start within 0.5 s \(start_s\)"):
            await played([], "slow.py", start_s=0.5)


async def test_256_at_once_leave_nothing() -> None:
    """Memory is that of what plays, not of what has played."""
    make = env_factory("verifiers:sums.py", {"num_tasks": AT_ONCE})
    await leave_nothing(make, "12", 1, each=AT_ONCE)


def test_a_program_of_the_package_plays(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `null` harness: a Python program for each rollout, which uv prepares."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(vf.__file__).parents[5] / "bin"), os.environ["PATH"]]))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("UV_CACHE_DIR", str(tmp_path / "uv")), ("UV_SYSTEM_CERTS", "true")):
        monkeypatch.setenv(name, value)
    result = play(f"verifiers:{folder}/talk.py", "-a", "harness=null", cwd=tmp_path, n=2, r=2)
    assert (result["turns"], result["token_in_turns"] >= 8) == (12, True)
    shutil.rmtree(tmp_path / "uv")  # what the program needs was downloaded


@pytest.mark.parametrize(
    ("taskset", "given", "words"),
    [
        ("no_such_set", {}, "verifiers:no_such_set is not there; a taskset is a package that is installed here"),
        ("harbr", {}, "did you mean 'harbor'"),
        ("no_such.py", {}, "there is no file"),
        ("breaks.py", {}, "breaks.py cannot be imported: RuntimeError: no licence"),
        ("older.py", {}, "module 'verifiers' has no attribute 'MultiTurnEnv'"),
        ("loose.py", {}, "has tasks of RowTask with RowData, and declares Task with TaskData: write class MyTask"),
        ("textarena", {}, "textarena requires nltk and textarena"),
        ("best-of-m+sums.py", {}, "did you mean 'best-of-n'"),
        ("sums.py", {"num_task": "2"}, "has no setting 'num_task', did you mean 'num_tasks'?"),
        ("sums.py", {"num_tasks": "many"}, "-a taskset.num_tasks='many': Input should be a valid integer"),
        ("sums.py", {"agent.retries.max_retries": "2"}, "--rollout-retries has a rollout played again"),
        ("sums.py", {"harness": "nul"}, "harness 'nul' not found"),
        ("sums.py", {"harness": "codex"}, "needs a container runtime"),
        ("sums.py", {"agent": "5"}, "-a agent=5: Input should be"),
        (
            "sums.py",
            {"agent.max_turns": "2", "agent.max_turns.most": "3"},
            "is set below max_turns=2: give one of the two",
        ),
        ("sums.py", {"start_s": "0"}, "start_s must be above 0"),
        ("sums.py", {"num_tasks": "0"}, "has no tasks"),
        ("made.py", {"num_task": "2"}, "unexpected keyword argument 'num_task'"),
    ],
)
def test_mistakes_are_one_line(taskset: str, given: dict[str, str], words: str) -> None:
    """Each says what there is."""
    assert words in refused(f"verifiers:{taskset}", **given)
