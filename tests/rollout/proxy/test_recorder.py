"""The recorder: a key is a rollout, and what was answered outlives a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rollout.chat.messages import Function, Message, ToolCall
from rollout.errors import ServerBusy, UsageError
from rollout.proxy.journal import read_sessions, read_turns
from rollout.proxy.journal_lines import TurnLine
from rollout.records import FailureKind, Route, StopReason
from rollout.store.export import samples_of_run
from rollout.store.folder import read_rollouts
from rollout.store.index import RunIndex
from tests.rollout.play.test_session import ByteCodec
from tests.rollout.proxy.kit import text_of
from tests.rollout.proxy.recorder_kit import Recorded, recorded
from transports.scripted import Fault, Held, reply


class Thinks(ByteCodec):
    """Reads a line of reasoning, what is said, and calls: `think|say|name:arguments`."""

    async def parse(self, prompt_ids: Any, completion_ids: Any, context: Any) -> Message:
        text = bytes(i for i in completion_ids if i < 256).decode()
        thought, said, *calls = text.split("|")
        made = [call.partition(":") for call in calls]
        return Message(
            "assistant",
            said or None,
            thought or None,
            tuple(ToolCall(function=Function(name, arguments)) for name, _, arguments in made),
        )


def turns_of(one: Recorded) -> list[Any]:
    """Those of the only session."""
    (live,) = one.recorder._live.values()
    return live.session.turns


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


async def test_sessions_of_one_key_are_told_apart_by_a_header(tmp_path: Path) -> None:
    """Claude Code's and Codex's runs under one key are rollouts of their own; a registered key beats the header."""
    async with recorded(tmp_path / "run") as one:
        await one.post("/sessions", {"key": "registered"})
        for key in ("any", "registered"):
            for session in ("one", "two", "one"):
                text_of(await one.chat(key, "hello", headers={"x-claude-code-session-id": session}))
        states = (await one.client.get("/sessions")).json()["sessions"]
        assert [state["turns"] for state in states] == [3, 2, 1]


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


async def test_a_turn_is_in_the_journal_before_it_is_answered(tmp_path: Path) -> None:
    """Whoever has an answer finds its turn on the disk, and its key nowhere in the folder."""
    async with recorded(tmp_path / "run", fsync=True) as one:
        text_of(await one.chat("a-secret-key", "hello"))
        ((_, line),) = read_turns(tmp_path / "run")
        assert isinstance(line, TurnLine)
        assert [turn.node for turn in line.turns] == [1]
        for path in (tmp_path / "run").iterdir():
            assert b"a-secret-key" not in path.read_bytes()


async def test_a_crash_loses_no_turn_and_the_conversation_goes_on_token_in(tmp_path: Path) -> None:
    """The same key is accepted, and an answer that comes back without its reasoning is still known."""
    entries = [reply(f"thought {n}|said {n}") for n in range(9)]
    async with recorded(tmp_path / "run", *entries, codec=Thinks()) as one:
        assert text_of(await one.chat("k1", "hello")) == "said 0"
        assert text_of(await one.chat("k1", "hello", "said 0", "more")) == "said 1"
        before = turns_of(one)
    async with recorded(tmp_path / "run", *entries, codec=Thinks()) as one:
        assert turns_of(one) == before
        text_of(await one.chat("k1", "hello", "said 0", "more", "said 1", "and more"))
        after = turns_of(one)
        assert [turn.route for turn in after] == [Route.MESSAGE_IN, Route.TOKEN_IN, Route.TOKEN_IN]
        (live,) = one.recorder._live.values()
        session = live.opened.session
        await one.post(f"/sessions/{session}/end", {"reward": 1})
    (rollout,) = read_rollouts(tmp_path / "run")
    (sample,) = rollout.samples()
    assert sum(sample.loss_mask) == sum(turn.completion_tokens for turn in after)


async def test_calls_of_anthropics_clients_are_known_after_a_crash(tmp_path: Path) -> None:
    """They come back by the ids that were handed out before it, without the thinking."""
    tools = [{"name": "run", "input_schema": {"type": "object"}}]
    asked: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    body = {"model": "m", "max_tokens": 64, "tools": tools, "messages": asked}
    headers = {"x-api-key": "k1"}
    async with recorded(tmp_path / "run", reply("hm|look|run:{}"), codec=Thinks()) as one:
        answer = (await one.client.post("/v1/messages", json=body, headers=headers)).json()
    text, call = answer["content"][1:]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "ok"}
    asked += [{"role": "assistant", "content": [text, call]}, {"role": "user", "content": [result]}]
    async with recorded(tmp_path / "run", reply("|done"), codec=Thinks()) as one:
        assert (await one.client.post("/v1/messages", json=body, headers=headers)).status_code == 200
        assert [turn.route for turn in turns_of(one)] == [Route.MESSAGE_IN, Route.TOKEN_IN]


async def test_responses_are_known_after_a_crash(tmp_path: Path) -> None:
    """`previous_response_id` names one, and what goes on from that one names it in turn."""
    entries = [reply(f"hm|said {n}") for n in range(9)]
    headers = {"authorization": "Bearer k1"}
    previous = None
    for n in range(4):
        async with recorded(tmp_path / "run", *entries[n:], codec=Thinks()) as one:
            body = {"model": "m", "input": f"ask {n}", "previous_response_id": previous}
            answer = await one.client.post("/v1/responses", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            previous = answer.json()["id"]
            assert [turn.route for turn in turns_of(one)][1:] == [Route.TOKEN_IN] * n


async def test_a_marked_retry_is_answered_once_over_a_crash(tmp_path: Path) -> None:
    """A client that never saw its answer gets that answer, not another; an unmarked one is a new turn."""
    named = {"idempotency-key": "i-1"}
    async with recorded(tmp_path / "run") as one:
        first = await one.chat("k1", "hello", headers=named)
    async with recorded(tmp_path / "run", reply("another")) as one:
        for headers in ({"x-stainless-retry-count": "1"}, named):
            again = await one.chat("k1", "hello", headers=headers)
            assert again.json() == first.json()
        assert len(turns_of(one)) == 1
        assert text_of(await one.chat("k1", "hello")) == "another"


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


async def test_an_end_that_a_crash_cut_is_done_by_the_next_process(tmp_path: Path) -> None:
    """It was asked for: the session's line is written, with the reward that was given."""
    run = tmp_path / "run"
    async with recorded(tmp_path / "run") as one:
        made = await one.post("/sessions", {"key": "k1"})
        text_of(await one.chat("k1", "hello"))
        await one.post(f"/sessions/{made['id']}/end", {"reward": 0.25})
        turns = (run / "turns.000001.jsonl").read_bytes()
    (run / "turns.000001.jsonl").write_bytes(turns)
    whole = (run / "sessions.jsonl").read_bytes().splitlines(keepends=True)
    (run / "sessions.jsonl").write_bytes(b"".join(whole[:-1]) + whole[-1][:20])  # it had begun to write that
    (run / "rollouts.jsonl").write_bytes(b"")
    async with recorded(run) as one:
        assert len(one.recorder) == 0
    assert [line.session for line in read_sessions(run)] == [made["id"]] * 2
    (rollout,) = read_rollouts(run)
    assert (rollout.reward, len(rollout.turns)) == (0.25, 1)


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


async def test_no_more_sessions_than_are_allowed(tmp_path: Path) -> None:
    """The next one is told to come again, and those that there are go on."""
    async with recorded(tmp_path / "run", most_sessions=1) as one:
        text_of(await one.chat("k1", "hello"))
        refused = await one.chat("k2", "hello")
        assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
        assert (await one.client.post("/sessions", json={})).status_code == 429
        text_of(await one.chat("k1", "hello"))


async def test_what_the_server_broke_is_a_failure_unless_somebody_judged_it(tmp_path: Path) -> None:
    """Never a reward of 0 that nobody gave."""
    fault = Fault(ServerBusy("full", status=503))
    async with recorded(tmp_path / "run", reply("a"), fault, reply("a"), fault) as one:
        for key, given in (("k1", {}), ("k2", {"reward": 0.5})):
            text_of(await one.chat(key, "hello"))
            assert (await one.chat(key, "more")).status_code == 503
            (live,) = one.recorder._live.values()
            await one.post(f"/sessions/{live.opened.session}/end", given)
    broken, judged = read_rollouts(tmp_path / "run")
    assert broken.failure is not None
    assert broken.failure.kind is FailureKind.TRANSPORT
    assert (judged.failure, judged.reward) == (None, 0.5)


async def test_turns_at_once_are_all_kept(tmp_path: Path) -> None:
    """Sub-agents ask in parallel, and their names and branches are there after a crash."""
    async with recorded(tmp_path / "run") as one:
        first = text_of(await one.chat("k1", "hello"))
        asks = [one.chat("k1", "hello", first, f"go {n}", headers={"x-rollout-agent": f"a{n}"}) for n in range(12)]
        assert len({text_of(answer) for answer in await asyncio.gather(*asks)}) == 12
        (live,) = one.recorder._live.values()
        before = live.rollout()
    async with recorded(tmp_path / "run") as one:
        (live,) = one.recorder._live.values()
        after = live.rollout()
        assert (after.nodes, after.turns, after.leaves) == (before.nodes, before.turns, before.leaves)
        assert {turn.agent for turn in after.turns} == {"", *(f"a{n}" for n in range(12))}
        assert after.samples() == before.samples()


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


async def test_only_a_recorders_folder_goes_on(tmp_path: Path) -> None:
    """A run's folder is refused, and so are other settings, each by name."""
    async with recorded(tmp_path / "run"):
        with pytest.raises(UsageError, match="is being written"):
            async with recorded(tmp_path / "run"):
                pass
    with pytest.raises(UsageError, match="match: 'strict' before"):
        async with recorded(tmp_path / "run", config={"match": "role_content"}):
            pass
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace('env = "proxy"', 'env = "echo"'))
    with pytest.raises(UsageError, match="no recorder's"):
        async with recorded(tmp_path / "run"):
            pass


async def test_what_is_streamed_is_journalled_first(tmp_path: Path) -> None:
    """The last event comes after the turn is on the disk."""
    async with recorded(tmp_path / "run") as one:
        answer = await one.chat("k1", "hello", stream=True)
        assert answer.text.rstrip().endswith("[DONE]")
        assert len(list(read_turns(tmp_path / "run"))) == 1


async def test_a_disk_that_takes_no_more_answers_nothing(tmp_path: Path) -> None:
    """A turn that is not written is refused, and the recorder is told why it cannot go on."""
    async with recorded(tmp_path / "run") as one:
        text_of(await one.chat("k1", "hello"))
        one.recorder._journal._turns.close()
        one.recorder._journal._turns = (tmp_path / "run" / "turns.000001.jsonl").open("rb", buffering=0)  # not writable
        refused = await one.chat("k1", "more")
        assert refused.status_code == 503
        assert "cannot write the journal" in refused.json()["error"]["message"]
    assert len(list(read_turns(tmp_path / "run"))) == 1
