"""Where a sample's turns lie, what they were drawn from, and what a trainer would learn that nobody sampled."""

from __future__ import annotations

import math

from rollout.bench.never_sampled import never_sampled
from rollout.chat.messages import user
from rollout.play.session import Session
from rollout.records import Rollout
from rollout.tokens.samples import turn_ids
from tests.rollout.play.test_session import play, session
from transports.scripted import OPEN, STOP, encode_bytes, render_bytes, reply


def rollout_of(talk: Session) -> Rollout:
    tree = talk.trajectory
    return Rollout(
        id="r",
        task_id="t",
        task_index=0,
        member=0,
        turns=talk.turns,
        roots=tree.roots,
        nodes=tree.nodes,
        leaves=tree.leaves,
    )


async def two_turns(first: list[int], again: list[int], finish: str = "stop") -> Rollout:
    """A rollout whose first completion is `first`, and comes back as `again` in the second prompt."""
    prompt = render_bytes([user("x")])
    later = [*prompt, *again, OPEN, *encode_bytes("user\ny"), STOP, OPEN, *encode_bytes("assistant\n")]
    entries = [reply("ab", completion_ids=first, finish_reason=finish), reply("c", prompt_ids=later)]
    talk, _ = session(*entries, mode="mito", verify=False)
    history = [user("x")]
    history += [await talk.turn(history), user("y")]
    await talk.turn(history)
    return rollout_of(talk)


async def test_a_sample_says_where_its_turns_lie() -> None:
    """Each turn's ids are its completion's, with its reward and temperature; what nobody sampled has temperature 1."""
    talk, _ = session(
        reply("one"), reply("two"), sampling={"temperature": 0.5}, info={"logprobs_mode": "processed_logprobs"}
    )
    await play(talk, "a", "b")
    for reward, turn in enumerate(talk.turns):
        turn.reward, turn.metrics = float(reward), {"at": float(reward)}
    (sample,) = rollout_of(talk).samples()
    assert [bytes(sample.token_ids[turn.start : turn.end - 1].tolist()) for turn in sample.turns] == [b"one", b"two"]
    assert [(turn.turn, turn.trained, turn.reward, turn.metrics, turn.temperature) for turn in sample.turns] == [
        (0, 4, 0.0, {"at": 0.0}, 0.5),
        (1, 4, 1.0, {"at": 1.0}, 0.5),
    ]
    assert sample.logprobs_mode == "processed_logprobs"
    sampled = zip(sample.temperatures, sample.loss_mask, turn_ids(sample), strict=True)
    assert {(temperature, mask, turn >= 0) for temperature, mask, turn in sampled} == {(0.5, 1, True), (1.0, 0, False)}


async def test_a_temperature_that_the_server_keeps_to_itself_is_not_known() -> None:
    """It is NaN, which no loss can use unseen; and turns that differ in what their logprobs are of have no one word."""
    talk, _ = session(reply("one"), reply("two"), info={"sampling_defaults": None, "logprobs_mode": None})
    await play(talk, "a", "b")
    talk.turns[0].logprobs_mode = "raw_logprobs"
    (sample,) = rollout_of(talk).samples()
    assert [turn.temperature for turn in sample.turns] == [None, None]
    assert [math.isnan(value) for value in sample.temperatures] == [bool(mask) for mask in sample.loss_mask]
    assert sample.logprobs_mode is None


async def test_a_turn_that_a_fork_splits_is_one_turn() -> None:
    """Its beginning may stand in two samples, and each of its tokens is trained on in one."""
    first = [*encode_bytes("ab"), STOP]
    rollout = await two_turns(first, [*encode_bytes("aX"), STOP])
    one, two = rollout.samples()
    assert [(turn.turn, turn.end - turn.start, turn.trained) for turn in one.turns] == [(0, 3, 3)]
    assert [(turn.turn, turn.end - turn.start, turn.trained) for turn in two.turns] == [(0, 1, 0), (1, 2, 2)]
    for sample in (one, two):
        for turn in sample.turns:
            assert sum(sample.loss_mask[turn.start : turn.end]) == turn.trained


async def test_what_comes_back_as_it_was_is_sampled() -> None:
    """No break, nothing to count; and a rollout on token-in has none by construction."""
    ids = [*encode_bytes("ab"), STOP]
    assert never_sampled(await two_turns(ids, ids)) == 0


async def test_other_ids_of_the_same_message_are_counted() -> None:
    """Only those of the message, and only those that were not sampled in their place."""
    first = [*encode_bytes("ab"), STOP]
    assert never_sampled(await two_turns(first, [*encode_bytes("aXYb"), STOP])) == 2
    assert never_sampled(await two_turns(first, [*encode_bytes("a"), STOP])) == 0


async def test_a_message_that_was_cut_off_is_as_long_as_it_was() -> None:
    """Nothing tells where it ends in the later prompt but its length."""
    assert never_sampled(await two_turns(encode_bytes("ab"), [*encode_bytes("Xb"), STOP], "length")) == 1
