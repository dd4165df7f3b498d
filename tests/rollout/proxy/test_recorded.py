"""One session: what is written of a turn before it is answered, and what a session comes to."""

from __future__ import annotations

from pathlib import Path

import msgspec

from rollout.errors import ServerBusy
from rollout.proxy.journal import read_turns
from rollout.proxy.journal_lines import TurnLine
from rollout.records import FailureKind
from rollout.store.folder import encode_array, read_rollouts
from tests.rollout.proxy.kit import text_of
from tests.rollout.proxy.recorder_kit import recorded
from transports.scripted import Fault, reply


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


async def test_a_turn_is_in_the_journal_before_it_is_answered(tmp_path: Path) -> None:
    """Whoever has an answer finds its turn on the disk, and its key nowhere in the folder."""
    async with recorded(tmp_path / "run", fsync=True) as one:
        text_of(await one.chat("a-secret-key", "hello"))
        ((_, line),) = read_turns(tmp_path / "run")
        assert isinstance(line, TurnLine)
        assert [turn.node for turn in line.turns] == [1]
        for path in (tmp_path / "run").iterdir():
            assert b"a-secret-key" not in path.read_bytes()


async def test_what_is_streamed_is_journalled_first(tmp_path: Path) -> None:
    """The last event comes after the turn is on the disk."""
    async with recorded(tmp_path / "run") as one:
        answer = await one.chat("k1", "hello", stream=True)
        assert answer.text.rstrip().endswith("[DONE]")
        assert len(list(read_turns(tmp_path / "run"))) == 1


async def test_a_record_of_a_live_session_is_of_one_moment(tmp_path: Path) -> None:
    """Its samples are made in another thread, while turns are committed: also such as cut what was there in two."""
    async with recorded(tmp_path / "run") as one:
        text_of(await one.chat("k1", "hello"))
        (live,) = one.recorder._live.values()
        rollout = live.rollout()
        before = msgspec.json.encode(rollout, enc_hook=encode_array)
        for more in ("hello again", "help", "hello"):
            text_of(await one.chat("k1", more))
        assert msgspec.json.encode(rollout, enc_hook=encode_array) == before
        assert len(live.rollout().turns) == 4
        assert [sum(sample.loss_mask) for sample in rollout.samples()] == [rollout.turns[0].completion_tokens]


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
