"""The recorder: a key is a rollout, and what was answered outlives a crash."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from rollout.cli.show import Choice, show
from rollout.proxy.journal import read_turns
from rollout.records import Route, StopReason
from rollout.store.export import export, samples_of_run
from rollout.store.folder import read_rollouts
from rollout.store.index import RunIndex
from tests.rollout.proxy.kit import text_of
from tests.rollout.proxy.recorder_kit import recorded
from transports.scripted import Held, Stalled, reply


async def test_a_key_that_nobody_registered_opens_a_session(tmp_path: Path) -> None:
    """Each key is a rollout, and so is each path; the second turn of one goes out token-in."""
    async with recorded(tmp_path / "run") as one:
        first = text_of(await one.chat("k1", "hello"))
        text_of(await one.chat("k1", "hello", first, "go on"))
        text_of(await one.chat("k2", "hello"))
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        text_of(await one.client.post("/r/k3/v1/chat/completions", json=body))
        states = (await one.client.get("/sessions")).json()["sessions"]
        assert [(state["turns"], state["fallbacks"]) for state in states] == [
            (2, {"first_turn": 1}),
            (1, {"first_turn": 1}),
            (1, {"first_turn": 1}),
        ]


async def test_a_loop_without_a_session_takes_nobody_elses_into_its_own(tmp_path: Path) -> None:
    """Of one key, who names a session keeps it, whoever asks by the key alone meanwhile."""
    async with recorded(tmp_path / "run") as one:
        named = {"x-claude-code-session-id": "one"}
        for headers in (named, {}, named, {}):
            text_of(await one.chat("any", "hello", headers=headers))
        states = (await one.client.get("/sessions")).json()["sessions"]
        assert [state["turns"] for state in states] == [2, 2]


async def test_sessions_of_one_key_are_told_apart_by_a_header(tmp_path: Path) -> None:
    """Claude Code's and Codex's runs under one key are rollouts of their own; a registered key beats the header."""
    async with recorded(tmp_path / "run") as one:
        await one.post("/sessions", {"key": "registered"})
        for key in ("any", "registered"):
            for session in ("one", "two", "one"):
                text_of(await one.chat(key, "hello", headers={"x-claude-code-session-id": session}))
        states = (await one.client.get("/sessions")).json()["sessions"]
        assert [state["turns"] for state in states] == [3, 2, 1]


async def test_a_session_of_an_open_key_outlives_the_others_of_that_key(tmp_path: Path) -> None:
    """A loop without a session and Claude Code share a key: where the loop's ends, Claude Code goes on, restarted or
    not; where the key is registered its end is the end of all."""
    named = {"x-claude-code-session-id": "one"}
    async with recorded(tmp_path / "run") as one:
        made = await one.post("/sessions", {"key": "registered"})
        text_of(await one.chat("registered", "hello", headers=named))
        await one.post(f"/sessions/{made['id']}/end")
        assert (await one.chat("registered", "hello", headers=named)).status_code == 409
        text_of(await one.chat("any", "hello", headers=named))
        text_of(await one.chat("any", "hello"))
        loop = (await one.client.get("/sessions")).json()["sessions"][1]
        await one.post(f"/sessions/{loop['id']}/end", {"reward": 1})
        text_of(await one.chat("any", "hello", headers=named))
        assert (await one.chat("any", "hello")).status_code == 409
    async with recorded(tmp_path / "run") as one:
        text_of(await one.chat("any", "hello", headers=named))
        states = (await one.client.get("/sessions")).json()["sessions"]
        assert [state["turns"] for state in states] == [3]
        for key, headers in (("any", {}), ("registered", named)):
            assert (await one.chat(key, "hello", headers=headers)).status_code == 409


async def test_a_request_without_a_key_is_told_how(tmp_path: Path) -> None:
    """401, in one line; the model's name is told all the same, and opens no session."""
    async with recorded(tmp_path / "run") as one:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        refused = await one.client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 401
        assert "/r/KEY" in refused.json()["error"]["message"]
        assert (await one.client.get("/v1/models")).json()["data"][0]["id"] == one.transport._info.model
        assert len(one.recorder) == 0


async def test_where_keys_must_be_registered_others_are_refused(tmp_path: Path) -> None:
    """Beyond this machine a key is a secret that was given out."""
    async with recorded(tmp_path / "run", open_unknown=False) as one:
        assert (await one.chat("k1", "hello")).status_code == 401
        assert (await one.client.get("/v1/models")).status_code == 401
        key = (await one.recorder.open("", {}, "k1")).opened.key
        assert "k1" not in key
        text_of(await one.chat("k1", "hello"))


async def test_a_session_that_ends_is_a_line_of_the_run(tmp_path: Path) -> None:
    """With its task, its reward and its samples; its key is refused from then on, and its turns' file goes."""
    async with recorded(tmp_path / "run") as one:
        made = await one.post("/sessions", {"name": "sum", "task": {"question": "1+1"}})
        other = await one.post("/sessions", {"name": "sum"})
        text_of(await one.chat(made["key"], "hello"))
        text_of(await one.chat(other["key"], "hello"))
        await one.post(f"/sessions/{made['id']}/reward", {"reward": 0.5, "metrics": {"tests": 3}, "rewards": {"a": 1}})
        ended = await one.post(f"/sessions/{made['id']}/end", {"reward": 1.0})
        assert (ended["reward"], ended["stop"], ended["turns"]) == (1.0, "done", 1)
        again = await one.chat(made["key"], "hello")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "ended")
        told = await one.client.post(f"/sessions/{made['id']}/reward", json={"reward": 2})
        assert told.status_code == 409
        state = (await one.client.get(f"/sessions/{made['id']}")).json()
        assert (state["ended"], state["reward"], state["name"]) == (True, 1.0, "sum")
        samples = (await one.client.get(f"/sessions/{made['id']}/samples")).json()["samples"]
        await one.post(f"/sessions/{other['id']}/end")
    first, second = read_rollouts(tmp_path / "run")
    assert (first.task, first.reward, first.metrics, first.rewards) == (
        {"question": "1+1"},
        1.0,
        {"tests": 3},
        {"a": 1},
    )
    assert (first.task_index, first.member, second.task_index, second.member) == (0, 0, 0, 1)
    assert [sample["token_ids"] for sample in samples] == [sample.token_ids.tolist() for sample in first.samples()]
    assert [sample.rollout_id for sample in samples_of_run(tmp_path / "run")] == [made["id"], other["id"]]
    assert list(read_turns(tmp_path / "run")) == []


async def test_an_ended_session_stays_ended(tmp_path: Path) -> None:
    """Its key is refused by the next process, too, and its record is still told."""
    async with recorded(tmp_path / "run") as one:
        made = await one.post("/sessions", {"key": "k1"})
        text_of(await one.chat("k1", "hello"))
        await one.post(f"/sessions/{made['id']}/end")
    async with recorded(tmp_path / "run") as one:
        assert (await one.chat("k1", "hello")).status_code == 409
        assert (await one.client.post("/sessions", json={"key": "k1"})).status_code == 409
        assert (await one.client.get(f"/sessions/{made['id']}")).json()["turns"] == 1
        assert len((await one.client.get(f"/sessions/{made['id']}/samples")).json()["samples"]) == 1


async def test_a_session_that_nobody_uses_ends(tmp_path: Path) -> None:
    """After its idle time, unless a turn is under way; that it expired is kept with it."""
    now = [0.0]
    held = Held(reply("late"))
    async with recorded(tmp_path / "run", reply("a"), held, clock=lambda: now[0], idle_s=60.0) as one:
        text_of(await one.chat("k1", "hello"))
        waiting = asyncio.ensure_future(one.chat("k2", "hello"))
        await one.transport.wait_for(2)
        now[0] = 61.0
        await one.recorder.end_idle()
        assert len(one.recorder) == 1
        held.release()
        text_of(await waiting)
    async with recorded(tmp_path / "run") as one:
        expired = await one.chat("k1", "hello")
        assert expired.status_code == 409
        assert "nobody asked it for 60 s" in expired.json()["error"]["message"]
    (rollout,) = read_rollouts(tmp_path / "run")
    assert (rollout.stop, rollout.score) == (StopReason.DONE, None)
    assert "60 s" in rollout.notes["ended"]


async def test_a_key_without_a_turn_leaves_nothing(tmp_path: Path) -> None:
    """A request that could not be read opened its session, which is no rollout."""
    async with recorded(tmp_path / "run", clock=iter(range(0, 10**9, 10**4)).__next__) as one:
        body = {"model": "m", "messages": "none"}
        refused = await one.client.post("/v1/chat/completions", json=body, headers={"x-api-key": "k1"})
        assert refused.status_code == 400
        await one.recorder.end_idle()
        assert len(one.recorder) == 0
    assert list(read_rollouts(tmp_path / "run")) == []


async def test_a_key_without_a_turn_may_be_used_later(tmp_path: Path) -> None:
    """An agent asked which models there are by its path, and for its first turn an hour later; restarted or not."""
    now = [0.0]
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    async with recorded(tmp_path / "run", clock=lambda: now[0], idle_s=60.0) as one:
        for key in ("run-3", "run-4"):
            assert (await one.client.get(f"/r/{key}/v1/models")).status_code == 200
        now[0] = 61.0
        await one.recorder.end_idle()
        assert len(one.recorder) == 0
        text_of(await one.client.post("/r/run-3/v1/chat/completions", json=body))
    async with recorded(tmp_path / "run") as one:
        text_of(await one.client.post("/r/run-4/v1/chat/completions", json=body))
        assert len(one.recorder) == 2


async def test_no_more_sessions_than_are_allowed(tmp_path: Path) -> None:
    """The next one is told to come again, and those that there are go on."""
    async with recorded(tmp_path / "run", most_sessions=1) as one:
        text_of(await one.chat("k1", "hello"))
        refused = await one.chat("k2", "hello")
        assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
        assert (await one.client.post("/sessions", json={})).status_code == 429
        text_of(await one.chat("k1", "hello"))


async def test_a_recorder_that_stops_lets_turns_end_and_goes_on_later(tmp_path: Path) -> None:
    """Each session has its line at once, and its last line counts where it went on."""
    held = Held(reply("late"))
    async with recorded(tmp_path / "run", reply("early"), held) as one:
        first = text_of(await one.chat("k1", "hello"))
        waiting = asyncio.ensure_future(one.chat("k1", "hello", first, "go on"))
        await one.transport.wait_for(2)
        stopping = asyncio.ensure_future(one.recorder.stop(30))
        await asyncio.sleep(0)
        refused = await one.chat("k1", "hello")
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        held.release()
        assert text_of(await waiting) == "late"
        await stopping
    (rollout,) = read_rollouts(tmp_path / "run")
    assert len(rollout.turns) == 2
    async with recorded(tmp_path / "run") as one:
        text_of(await one.chat("k1", "hello", "early", "go on", "late", "and on"))
        await one.recorder.end(rollout.id)
    with RunIndex(tmp_path / "run") as index:
        (located,) = index.ordered()
        assert [turn.route for turn in index.read(located).turns][1:] == [Route.TOKEN_IN] * 2


async def test_a_turn_that_a_recorders_end_cuts_off_may_be_asked_for_again(tmp_path: Path) -> None:
    """Its grace is over: the client is told to come again, and its session goes on where one is started anew."""
    async with recorded(tmp_path / "run", Stalled()) as one:
        waiting = asyncio.ensure_future(one.chat("k1", "hello"))
        await one.transport.wait_for(1)
        await one.recorder.stop(0)
        refused = await waiting
        assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "true")
        assert refused.json()["error"]["code"] == "stopping"
    async with recorded(tmp_path / "run") as one:
        text_of(await one.chat("k1", "hello", headers={"x-stainless-retry-count": "1"}))


async def test_a_session_without_a_reward_is_unknown_wherever_it_is_told(tmp_path: Path) -> None:
    """Null to whoever ends it, in its samples and when it is shown; no mean and no advantage of its group counts it."""
    async with recorded(tmp_path / "run") as one:
        made = [await one.post("/sessions", {"name": "sum"}) for _ in range(3)]
        for each in made:
            text_of(await one.chat(each["key"], "hello"))
        samples = (await one.client.get(f"/sessions/{made[0]['id']}/samples")).json()["samples"]
        assert [sample["reward"] for sample in samples] == [None]
        ended = [
            (await one.post(f"/sessions/{each['id']}/end", {"reward": reward}))["reward"]
            for each, reward in zip(made, (None, 1.0, 0.0), strict=True)
        ]
        assert ended == [None, 1.0, 0.0]
    with RunIndex(tmp_path / "run") as index:
        (group,) = index.groups()
    assert group.rewards == [1.0, 0.0]
    unknown, *known = [sample.advantage for sample in group.samples()]
    assert unknown is None
    assert known == pytest.approx([1.0, -1.0], abs=1e-4)
    assert export(tmp_path / "run", None, "jsonl", "grpo").unknown_rewards == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [line["reward"] for line in lines] == [None, 1.0, 0.0]
    shown = "".join(show(tmp_path / "run", Choice(), full=False, as_json=False))
    assert shown.count("reward unknown") == 1
    worst = "".join(show(tmp_path / "run", Choice(worst=9), full=False, as_json=True))
    assert [json.loads(line)["reward"] for line in worst.splitlines()] == [0.0, 1.0]
