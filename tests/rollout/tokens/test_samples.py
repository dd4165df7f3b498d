"""What a trainer would learn that nobody sampled, where prompts were made of text again."""

from __future__ import annotations

from rollout.bench.never_sampled import never_sampled
from rollout.chat.messages import user
from rollout.play.session import Session
from rollout.records import Rollout
from tests.rollout.play.test_session import session
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
