"""A completion that was aborted goes on from its sampled tokens, and is one completion in the end."""

from __future__ import annotations

import itertools

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import user
from rollout.errors import CompletionAborted
from rollout.play.session import Session
from rollout.records import Route
from rollout.request import Reply, Request, TokenPrompt, WeightSpan
from rollout.servers.completion import LONGEST_PAUSE_S, MAX_RESUMPTIONS, joined, rest_of, with_version
from rollout.token_fields import SamplingMask
from rollout.tokens.samples import samples_of_tree
from tests.rollout.play.test_session import session
from transports.scripted import STOP, Held, encode_bytes, experts_of, render_bytes, reply


def part(count: int, version: str | None, finish: str = "abort") -> Reply:
    spans = (WeightSpan(version, 0, count),) if version and count else ()
    return Reply(
        completion_ids=list(range(count)),
        logprobs=[-0.5] * count,
        finish_reason=finish,  # type: ignore[arg-type]
        weight_versions=spans,
        prompt_ids=[1],
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_parts_join_to_one_completion(counts: list[int]) -> None:
    """Ids, logprobs and versions of all parts stand in their order, and versions cover them."""
    parts = [part(count, str(i)) for i, count in enumerate(counts)]
    whole = joined(parts)
    assert whole.completion_ids == [i for count in counts for i in range(count)]
    assert len(whole.logprobs or ()) == sum(counts)
    assert sum(span.end - span.start for span in whole.weight_versions) == sum(counts)
    assert [span.start for span in whole.weight_versions[1:]] == [span.end for span in whole.weight_versions[:-1]]


def test_a_part_without_versions_leaves_none_of_them() -> None:
    """Versions that would not cover the completion are not claimed."""
    assert joined([part(2, "1"), part(2, None)]).weight_versions == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=5))
def test_parts_have_one_mask(counts: list[tuple[int, bool]]) -> None:
    """An entry for each token; those of a part that reports none are not known."""
    masks = [SamplingMask.of([[at] for at in range(count)]) if told else None for count, told in counts]
    parts = [
        msgspec.structs.replace(part(count, None), sampling_mask=mask)
        for (count, _), mask in zip(counts, masks, strict=True)
    ]
    whole = joined(parts)
    if len(parts) == 1 or not any(told for _, told in counts):
        assert whole.sampling_mask == masks[0]
        return
    assert whole.sampling_mask is not None
    assert whole.sampling_mask.tokens == len(whole.completion_ids or ())
    _, offsets = whole.sampling_mask.arrays()
    told_of = [end > start for start, end in itertools.pairwise(offsets)]
    assert told_of == [told for count, told in counts for _ in range(count)]


def test_the_rest_asks_for_experts_from_where_the_parts_end() -> None:
    """A part that reports none is asked for again; who does not ask at first does not ask then."""
    request = Request(prompt=TokenPrompt([1, 2, 3]), request_id="r", session_id="s", routed_experts_from=1)
    aborted = msgspec.structs.replace(part(2, None), routed_experts=experts_of([1, 2, 3, 0], 1))
    rest = rest_of(request, [aborted])
    assert rest is not None
    assert rest.routed_experts_from == 4
    silent = rest_of(rest, [aborted, part(2, None)])
    assert silent is not None
    assert silent.routed_experts_from == 4
    unasked = rest_of(msgspec.structs.replace(request, routed_experts_from=None), [aborted])
    assert unasked is not None
    assert unasked.routed_experts_from is None


def test_a_version_is_given_where_the_server_reports_none() -> None:
    """The version that was in use stands for a server that is silent; a server's own word is kept."""
    assert with_version(part(2, None), "7").weight_versions == (WeightSpan("7", 0, 2),)
    assert with_version(part(2, "3"), "7").weight_versions == (WeightSpan("3", 0, 2),)
    assert with_version(part(2, None), None).weight_versions == ()


async def test_an_aborted_turn_goes_on_from_its_tokens() -> None:
    """The second request is the first prompt and what was sampled; the turn's completion is both parts."""
    talk, transport = session(reply("ab", finish_reason="abort"), reply("cd"), max_tokens=9, sampling={"min_tokens": 3})
    unhurried(talk)
    message = await talk.turn([user("x")])
    assert message.text == "abcd"
    assert isinstance(transport.requests[1].prompt, TokenPrompt)
    assert transport.requests[1].prompt.ids.tolist() == [*render_bytes([user("x")]), *encode_bytes("ab")]
    assert transport.requests[1].max_tokens == 7
    assert transport.requests[1].sampling == {"min_tokens": 1}
    assert talk.turns[0].finish_reason == "stop"
    (sample,) = samples_of_tree(talk.trajectory)
    assert [i for i, mask in zip(sample.token_ids, sample.loss_mask, strict=True) if mask] == [
        *encode_bytes("abcd"),
        STOP,
    ]


async def test_an_aborted_turn_on_token_in_goes_on_too() -> None:
    """From turn 2 on the resumed prompt still starts with everything sampled before."""
    talk, _ = session(reply("b"), reply("c", finish_reason="abort"), reply("d"))
    unhurried(talk)
    history = [user("a")]
    history += [await talk.turn(history), user("x")]
    assert (await talk.turn(history)).text == "cd"
    assert talk.turns[1].route is Route.TOKEN_IN
    assert talk.turns[1].prefix_break is False


async def test_a_server_that_aborts_by_itself_is_asked_after_growing_pauses_then_fails() -> None:
    """A completion that it never ends is no turn."""
    entries = [reply("a", finish_reason="abort") for _ in range(MAX_RESUMPTIONS + 5)]
    talk, transport = session(*entries)
    waited = unhurried(talk)
    with pytest.raises(CompletionAborted, match=f"ended this completion {MAX_RESUMPTIONS + 1} times"):
        await talk.turn([user("x")])
    assert talk.turns == []
    assert len(transport.requests) == MAX_RESUMPTIONS + 1
    assert waited[:3] == [0.5, 1.0, 2.0]
    assert max(waited) == LONGEST_PAUSE_S


async def test_what_we_aborted_ourselves_is_asked_for_at_once() -> None:
    """An update that aborts what is in flight costs its completions no pause, however many there are."""
    held = [Held(reply("a", finish_reason="abort")) for _ in range(MAX_RESUMPTIONS + 2)]
    talk, transport = session(*held, reply("z"))
    waited = unhurried(talk)
    async with anyio.create_task_group() as group:
        group.start_soon(talk.turn, [user("x")])
        for number, one in enumerate(held, start=1):
            await transport.wait_for(number)
            talk._model.weights.aborts += 1
            one.release()
    assert waited == []
    assert talk.turns[0].finish_reason == "stop"


async def test_an_aborted_completion_without_ids_is_asked_for_anew() -> None:
    """Where there is nothing to go on from, what was sampled is lost, and not taken for the answer."""
    talk, transport = session(
        reply("ab", finish_reason="abort", without={"completion_ids", "logprobs"}), reply("whole")
    )
    unhurried(talk)
    assert (await talk.turn([user("x")])).text == "whole"
    assert transport.requests[0].prompt is transport.requests[1].prompt


async def test_an_abort_after_the_last_token_is_a_completion_at_its_limit() -> None:
    """Nothing is missing of it."""
    talk, transport = session(reply("ab", finish_reason="abort"), max_tokens=2)
    unhurried(talk)
    await talk.turn([user("x")])
    assert talk.turns[0].finish_reason == "length"
    assert len(transport.requests) == 1


def unhurried(talk: Session) -> list[float]:
    """Has the session wait for nothing; the list is what it would have waited."""
    waited: list[float] = []

    async def note(seconds: float) -> None:
        waited.append(seconds)

    talk._model.sleep = note
    return waited
