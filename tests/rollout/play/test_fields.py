"""A trajectory's routed experts and sampling masks are asked for where they are missing, checked, and kept."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rollout.chat.messages import user
from rollout.errors import MalformedReply
from rollout.play.session import Session
from rollout.request import TokenPrompt
from rollout.token_fields import SamplingMask
from rollout.tokens.samples import samples_of_tree
from tests.rollout.play.test_session import ByteCodec, play, session
from tests.rollout.servers.test_completion import unhurried
from tests.rollout.test_histories import check_fields
from transports.scripted import STOP, encode_bytes, experts_of, kept_with, render_bytes, reply

#: All that a run can ask for.
ASKED: dict[str, Any] = {"routed_experts": True, "sampling_mask": True}


def known(talk: Session) -> list[list[bool]]:
    """Of each sample's tokens, whether their experts are known."""
    marks: list[list[bool]] = []
    for sample in samples_of_tree(talk.trajectory):
        experts = sample.routed_experts
        marks.append([] if experts is None else [bool((row >= 0).all()) for row in experts.to_numpy()])
    return marks


async def test_each_turn_asks_from_where_they_are_known() -> None:
    """Turn 2 from the last token of turn 1 on, so that nothing comes twice; the sample has them all."""
    talk, transport = session(reply("b"), reply("d"), reply("f"), **ASKED)
    await play(talk, "a", "c", "e")
    starts = [request.routed_experts_from for request in transport.requests]
    first = len(render_bytes([user("a")])) + len([*encode_bytes("b"), STOP])
    second = first + len(render_bytes([user("c")])) + len([*encode_bytes("d"), STOP])
    assert starts == [0, first - 1, second - 1]
    assert all(request.sampling_mask for request in transport.requests)
    (sample,) = samples_of_tree(talk.trajectory, talk.turns)
    check_fields(sample)
    assert sample.routed_experts is not None
    assert sample.routed_experts.known == len(sample.token_ids) - 1


async def test_who_does_not_ask_gets_none() -> None:
    """Neither asked for nor kept, also where a server sends them unasked."""
    unasked = reply("b", routed_experts=experts_of([1, 2]), sampling_mask=SamplingMask.of([[1]]))
    talk, transport = session(unasked)
    await play(talk, "a")
    assert (transport.requests[0].routed_experts_from, transport.requests[0].sampling_mask) == (None, False)
    assert all(node.routed_experts is None and node.sampling_mask is None for node in talk.trajectory.nodes)
    (sample,) = samples_of_tree(talk.trajectory)
    assert sample.to_numpy().keys().isdisjoint({"routed_experts", "sampling_mask_ids", "sampling_mask_offsets"})


async def test_message_in_asks_for_all_and_keeps_what_is_new() -> None:
    """Nobody knows which ids the server will make of the messages; the tree has each row once."""
    talk, transport = session(reply("b"), reply("d"), mode="mito", **ASKED)
    await play(talk, "a", "c")
    assert [request.routed_experts_from for request in transport.requests] == [0, 0]
    (sample,) = samples_of_tree(talk.trajectory, talk.turns)
    check_fields(sample)
    rows = [node.routed_experts.rows for node in talk.trajectory.nodes if node.routed_experts is not None]
    assert sum(rows) == len(sample.token_ids) - 1


async def test_a_turn_that_reports_none_is_asked_for_again_with_the_next() -> None:
    """Its tokens' experts are not known until then; its masks never are, for nobody samples it again."""
    silent = reply("d", without=("routed_experts", "sampling_mask"))
    talk, transport = session(reply("b"), silent, **ASKED)
    history = await play(talk, "a", "c")
    turn_1 = len(render_bytes([user("a")])) + len([*encode_bytes("b"), STOP])
    (marks,) = known(talk)
    assert marks == [at < turn_1 - 1 for at in range(len(marks))]
    transport.add(reply("f"))
    await talk.turn([*history, user("e")])
    assert transport.requests[-1].routed_experts_from == turn_1 - 1
    (marks,) = known(talk)
    assert marks == [True] * (len(marks) - 1) + [False]
    (sample,) = samples_of_tree(talk.trajectory)
    _, offsets = sample.to_numpy()["sampling_mask_ids"], sample.to_numpy()["sampling_mask_offsets"]
    masked = [bool(end > start) for start, end in itertools.pairwise(offsets)]
    silent_turn = talk.turns[1]
    start = silent_turn.prompt_tokens
    assert not any(masked[start : start + silent_turn.completion_tokens])
    assert sum(masked) == sum(turn.completion_tokens for turn in talk.turns if turn is not silent_turn)


async def test_an_aborted_completion_has_them_of_all_its_parts() -> None:
    """Each part is asked from where the one before it ends; a part without a token has none, and is no fault."""
    parts = [reply("ab", finish_reason="abort"), reply("", finish_reason="abort"), reply("cd")]
    talk, transport = session(*parts, max_tokens=9, **ASKED)
    unhurried(talk)
    await talk.turn([user("x")])
    prompt = len(render_bytes([user("x")]))
    assert [request.routed_experts_from for request in transport.requests] == [0, prompt + 1, prompt + 1]
    (sample,) = samples_of_tree(talk.trajectory, talk.turns)
    check_fields(sample)


async def test_a_part_that_reports_none_leaves_the_completion_unknown_until_the_next_turn() -> None:
    """Half of a completion's rows would end at the wrong token."""
    talk, transport = session(
        reply("ab", finish_reason="abort"), reply("cd", without=("routed_experts",)), max_tokens=9, **ASKED
    )
    unhurried(talk)
    message = await talk.turn([user("x")])
    assert known(talk) == [[]]
    transport.add(reply("e"))
    await talk.turn([user("x"), message, user("y")])
    assert transport.requests[-1].routed_experts_from == 0
    (sample,) = samples_of_tree(talk.trajectory, talk.turns)
    check_fields(sample)


async def test_a_server_that_answers_all_of_them_is_read_from_where_they_were_asked() -> None:
    """One that does not know of a start; what it says again is left."""
    talk, transport = session(reply("b"), **ASKED)
    history = await play(talk, "a")
    ids = [*talk.trajectory.ids(talk.turns[0].node), *render_bytes([user("c")])]
    transport.add(reply("d", routed_experts=experts_of([*ids, *encode_bytes("d")])))
    await talk.turn([*history, user("c")])
    (sample,) = samples_of_tree(talk.trajectory, talk.turns)
    check_fields(sample)


@pytest.mark.parametrize("rows", [1, 30])
async def test_another_number_of_positions_is_a_turns_fault(rows: int) -> None:
    """It says how many came and how many were asked for; nothing of the turn is kept."""
    talk, _ = session(reply("b", routed_experts=experts_of(range(rows))), **ASKED)
    with pytest.raises(MalformedReply, match=f"routed experts of {rows} positions, and 20 were asked for"):
        await talk.turn([user("a")])
    assert not talk.trajectory.nodes


async def test_another_number_of_experts_is_a_turns_fault() -> None:
    """A server of another model."""
    talk, transport = session(reply("b"), **ASKED)
    history = await play(talk, "a")
    positions = len(render_bytes([user("c")])) + 2
    narrow = experts_of(range(positions))
    other = type(narrow)(data=narrow.data, layers=1, top_k=1)
    fitting = other.part(0, positions)
    assert fitting is not None
    transport.add(reply("d", routed_experts=fitting))
    with pytest.raises(MalformedReply, match="1 routed experts a position, and before 4"):
        await talk.turn([*history, user("c")])


@pytest.mark.parametrize(
    ("mask", "said"),
    [([[98]], "2 ids but sampling masks of 1"), ([[98], [97]], "without 256, which it sampled")],
)
async def test_a_mask_of_other_tokens_is_a_turns_fault(mask: list[list[int]], said: str) -> None:
    """One for each token, with that token in it."""
    talk, _ = session(reply("b", sampling_mask=SamplingMask.of(mask)), **ASKED)
    with pytest.raises(MalformedReply, match=said):
        await talk.turn([user("a")])


@pytest.mark.parametrize("asked", [True, False])
async def test_the_first_prompt_goes_as_ids_where_only_those_get_a_mask(asked: bool) -> None:
    """As with vLLM: the first turn is sampled as every other, and its mask is wanted, too."""
    talk, transport = session(reply("b"), info={"masks_by_ids_only": True}, sampling_mask=asked)
    await play(talk, "a")
    assert isinstance(transport.requests[0].prompt, TokenPrompt) is asked


async def test_a_prompt_that_nobody_knows_has_none() -> None:
    """Where the server says neither the prompt's ids, there is nothing to put them to."""
    talk, _ = session(reply("b", without=("prompt_ids",), routed_experts=experts_of([1])), codec=ByteCodec(), **ASKED)
    await play(talk, "a")
    assert all(node.routed_experts is None for node in talk.trajectory.nodes)


async def test_a_session_goes_on_with_what_is_on_its_tree() -> None:
    """One that another process began: what it knows is not asked for again."""
    talk, transport = session(reply("b"), reply("d"), **ASKED)
    history = await play(talk, "a")
    later = Session(talk._model, "s", trajectory=talk.trajectory, turns=talk.turns)
    await later.turn([*history, user("c")])
    assert transport.requests[1].routed_experts_from == talk.turns[0].prompt_tokens + 1
    (sample,) = samples_of_tree(later.trajectory, later.turns)
    check_fields(sample)


def test_the_double_keeps_what_it_sampled() -> None:
    """Each mask has its token."""
    assert all(one in kept_with(one) for one in range(9))
