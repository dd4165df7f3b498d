"""A rollout becomes the one row that TRL takes: what was sampled trains, what failed does not."""

from __future__ import annotations

import math
from array import array

import msgspec
import pytest

from rollout.errors import ConfigError
from rollout.records import Failure, FailureKind, Rollout, StopReason
from rollout.trainers.trl.rows import Branches, empty_row, fields_of, row_of
from tests.rollout.play.test_session import play, session
from tests.rollout.tokens.test_samples import rollout_of, two_turns
from transports.scripted import STOP, encode_bytes, reply

FILLER = 7

FIRST = [*encode_bytes("ab"), STOP]

AGAIN = [*encode_bytes("aX"), STOP]


async def straight(**sampling: float) -> Rollout:
    """A rollout of two turns that never forked."""
    talk, _ = session(reply("one"), reply("two"), sampling=sampling or {"temperature": 1.0})
    await play(talk, "a", "b")
    rollout = rollout_of(talk)
    rollout.reward, rollout.stop = 0.5, StopReason.DONE
    return rollout


async def test_a_row_is_the_sample_cut_at_its_first_sampled_token() -> None:
    """Prompt and completion are the sample's ids, and only what was sampled is unmasked and has a logprob."""
    rollout = await straight()
    (sample,) = rollout.samples()
    row = row_of(rollout, "refuse", filler=FILLER, temperature=1.0)
    assert row.prompt_ids + row.completion_ids == list(sample.token_ids)
    assert [0] * len(row.prompt_ids) + row.mask == list(sample.loss_mask)
    assert row.mask[0] == row.mask[-1] == 1
    assert 0 in row.mask
    assert [0.0] * len(row.prompt_ids) + row.logprobs == list(sample.logprobs)
    assert (row.reward, row.failure, row.branches, row.left_out) == (0.5, "", 1, 0)
    assert (row.stop, row.turns) == ("done", 2)


async def test_a_failed_rollout_is_a_masked_row_without_a_reward() -> None:
    """TRL wants a row all the same, and reads a completion's last token; no reward of 0 is made up."""
    rollout = await straight()
    rollout.failure = Failure(kind=FailureKind.ENVIRONMENT, message="no sandbox")
    row = row_of(rollout, "longest", filler=FILLER)
    assert (row.prompt_ids, row.completion_ids, row.logprobs, row.mask) == ([FILLER], [FILLER], [0.0], [0])
    assert (row.reward, row.failure, row.message) == (None, "environment", "no sandbox")


async def test_a_reward_that_nobody_gave_is_none() -> None:
    """TRL leaves the row out of its group's baseline; as NaN it would be the baseline."""
    rollout = await straight()
    rollout.reward_known = False
    row = row_of(rollout, "longest", filler=FILLER)
    assert (row.reward, row.failure) == (None, "")
    assert 1 in row.mask


async def test_a_rollout_without_sampled_ids_is_a_masked_row() -> None:
    """Such as one whose server reports no ids: nothing of it can be trained on."""
    rollout = await straight()
    for turn in rollout.turns:
        turn.train = False
    row = row_of(rollout, "longest", filler=FILLER)
    assert (row.reward, row.failure, sum(row.mask)) == (None, "no_tokens", 0)


@pytest.mark.parametrize(
    ("branches", "tail", "left_out"),
    [("longest", [*encode_bytes("aX"), STOP, *encode_bytes("y")], 3), ("last", AGAIN, 3)],
)
async def test_of_several_branches_one_becomes_the_row(branches: Branches, tail: list[int], left_out: int) -> None:
    """It trains on all that was sampled on it, also on what another branch shares; what is left out is counted."""
    rollout = await two_turns(FIRST, AGAIN)
    one, two = rollout.samples()
    row = row_of(rollout, branches, filler=FILLER)
    total = sum(one.loss_mask) + sum(two.loss_mask)
    assert row.branches == 2
    assert row.left_out == total - sum(row.mask)
    assert row.left_out > 0
    assert row.prompt_ids + row.completion_ids in (list(one.token_ids), list(two.token_ids))


async def test_the_last_branch_may_be_the_shorter_one() -> None:
    """`longest` goes by sampled tokens, of equals takes the later, and `last` goes by when a branch was begun."""
    rollout = await two_turns([*encode_bytes("a long first answer"), STOP], AGAIN)
    one, two = rollout.samples()
    longest, last = (row_of(rollout, branches, filler=FILLER) for branches in ("longest", "last"))
    assert longest.prompt_ids + longest.completion_ids == list(one.token_ids)
    assert last.prompt_ids + last.completion_ids == list(two.token_ids)
    shared = sum(turn.end - turn.start for turn in two.turns)
    assert sum(last.mask) == shared > sum(two.loss_mask)


async def test_several_branches_are_masked_or_refused_where_that_is_asked_for() -> None:
    """Masked as if it had failed, with a reason of its own; refused with the settings that take it."""
    rollout = await two_turns(FIRST, AGAIN)
    row = row_of(rollout, "mask", filler=FILLER)
    assert (row.reward, row.failure, row.mask, row.branches) == (None, "several_branches", [0], 2)
    with pytest.raises(ConfigError, match="2 branches, and TRL takes one row a rollout: give rollout_func branches="):
        row_of(rollout, "refuse", filler=FILLER)


async def test_another_temperature_than_the_trainers_is_refused() -> None:
    """Its logprobs would be compared with those of another distribution, without a word."""
    rollout = await straight(temperature=0.5)
    with pytest.raises(ConfigError, match=r"sampled at temperature 0\.5, and TRL divides its logits by 1: give"):
        row_of(rollout, "longest", filler=FILLER, temperature=1.0)
    assert row_of(rollout, "longest", filler=FILLER, temperature=0.5).failure == ""


async def test_a_temperature_that_is_not_known_is_let_through() -> None:
    """A server that keeps it to itself is told of when it is opened."""
    talk, _ = session(reply("one"), info={"sampling_defaults": None})
    await play(talk, "a")
    rollout = rollout_of(talk)
    rollout.stop = StopReason.DONE
    (sample,) = rollout.samples()
    assert math.isnan(sample.temperatures[-1])
    assert row_of(rollout, "longest", filler=FILLER, temperature=1.0).failure == ""


async def test_a_logprob_that_is_no_number_is_none() -> None:
    """TRL takes None for one that its sampler could not give."""
    rollout = await straight()
    node = next(node for node in rollout.nodes if node.sampled)
    node.logprobs = array("d", [-math.inf, math.nan, *node.logprobs[2:]])
    row = row_of(rollout, "longest", filler=FILLER)
    assert row.logprobs[:2] == [None, None]
    assert all(value is not None for value in row.logprobs[2:])


async def test_the_columns_have_a_row_each() -> None:
    """TRL's own four among them, each as long as there are rows."""
    rows = [row_of(await straight(), "longest", filler=FILLER), empty_row(FILLER, "timeout", "late")]
    fields = fields_of(rows)
    assert {"prompt_ids", "completion_ids", "logprobs", "env_mask"} < set(fields)
    assert {len(column) for column in fields.values()} == {2}
    assert fields["rollout_reward"] == [0.5, None]
    assert fields["rollout_failure"] == ["", "timeout"]
    for ids, logprobs, mask in zip(fields["completion_ids"], fields["logprobs"], fields["env_mask"], strict=True):
        assert len(ids) == len(logprobs) == len(mask) > 0
    assert msgspec.json.encode(fields)
