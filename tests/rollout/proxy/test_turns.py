"""Each turn is played once, however often its client asks for it and whether it waits or not."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import httpx
import pytest

from rollout.chat.messages import Message
from rollout.dialects.types import Call, Said
from rollout.errors import ServerBusy
from rollout.proxy.turns import Turned, Turns, Under
from rollout.records import Route
from tests.rollout.proxy.kit import Proxied, proxied, text_of
from tests.rollout.proxy.test_restore import Thinks
from transports.scripted import Fault, Held, Stalled, reply

AGAIN = {"x-stainless-retry-count": "1"}


def turns(served: Proxied) -> int:
    return len(served.asking.session.turns)


async def gone(served: Proxied, **fields: Any) -> None:
    """A client that leaves while the model thinks."""
    request = asyncio.ensure_future(served.chat("hello", **fields))
    await served.transport.wait_for(len(served.transport.requests) + 1)
    request.cancel()
    await asyncio.wait([request])


def told(own: Turns, name: str) -> asyncio.Event:
    """Set where a request begins to wait for a turn, or does not any more."""
    does, event = getattr(own, name), asyncio.Event()

    def does_and_tells(turn: Under) -> None:
        does(turn)
        event.set()

    setattr(own, name, does_and_tells)
    return event


async def test_a_marked_retry_is_given_the_answer_that_was_lost() -> None:
    """The very same answer, by its id; the model is not asked again."""
    async with proxied() as served:
        first = (await served.chat("hello")).json()
        assert (await served.chat("hello", headers=AGAIN)).json() == first
        assert turns(served) == 1


async def test_a_marked_retry_joins_the_turn_that_is_under_way() -> None:
    """Both requests are answered by it."""
    held = Held(reply("4"))
    async with proxied(held) as served:
        first = asyncio.ensure_future(served.chat("hello"))
        await served.transport.wait_for(1)
        second = asyncio.ensure_future(served.chat("hello", headers=AGAIN))
        held.release()
        assert [text_of(await first), text_of(await second)] == ["4", "4"]
        assert turns(served) == 1


async def test_equal_requests_that_are_not_marked_are_turns_of_their_own() -> None:
    """Best of n asks the same n times."""
    async with proxied() as served:
        answers = await asyncio.gather(*(served.chat("hello") for _ in range(3)))
        assert sorted(map(text_of, answers)) == ["answer 0", "answer 1", "answer 2"]


async def test_equal_requests_that_were_lost_are_each_given_a_turn_of_their_own() -> None:
    """Two that are sent again do not both get the answer of one."""
    held = [Held(reply(f"{n}")) for n in range(2)]
    async with proxied(*held) as served:
        await gone(served)
        await gone(served)
        again = [asyncio.ensure_future(served.chat("hello", headers=AGAIN)) for _ in range(2)]
        for each in held:
            each.release()
        assert sorted([text_of(await each) for each in again]) == ["0", "1"]
        assert turns(served) == 2


async def test_a_retry_is_never_given_another_agents_turn() -> None:
    """Nor one that is left out of training where its own is not: both may have asked the same."""
    async with proxied(*[reply(text) for text in "abcd"]) as served:
        for name, text in (("one", "a"), ("two", "b")):
            assert text_of(await served.chat("hello", headers={"x-rollout-agent": name})) == text
        again = {"x-rollout-agent": "one", **AGAIN}
        assert text_of(await served.chat("hello", headers=again)) == "a"
        assert text_of(await served.chat("hello", headers={"x-rollout-agent": "three", **AGAIN})) == "c"
        assert text_of(await served.chat("hello", headers={"x-rollout-train": "false", **again})) == "d"


async def test_a_known_idempotency_key_is_a_retry_without_a_count() -> None:
    """With another body it is another request."""
    key = {"idempotency-key": "k"}
    async with proxied() as served:
        first = (await served.chat("hello", headers=key)).json()
        assert (await served.chat("hello", headers=key)).json() == first
        assert text_of(await served.chat("hello", headers={"idempotency-key": "other"})) == "answer 1"
        assert text_of(await served.chat("another", headers=key)) == "answer 2"


async def test_a_retry_under_a_key_that_was_never_seen_is_a_turn_of_its_own() -> None:
    """Its first try was refused a connection: an equal request under another key has nothing to do with it."""
    async with proxied() as served:
        assert text_of(await served.chat("hello", headers={"idempotency-key": "k1"})) == "answer 0"
        other = {"idempotency-key": "k2", **AGAIN}
        assert text_of(await served.chat("hello", headers=other)) == "answer 1"
        assert text_of(await served.chat("hello", headers=other)) == "answer 1"
        assert text_of(await served.chat("hello", headers={"idempotency-key": "k1", **AGAIN})) == "answer 0"


async def test_many_equal_requests_that_were_lost_are_each_given_a_turn_of_their_own() -> None:
    """However many they are, while they are under way and once they are over."""
    count = 20
    held = [Held(reply(f"{n}")) for n in range(count)]
    async with proxied(*held, client_gone_s=60) as served:
        first = [asyncio.ensure_future(served.chat("hello")) for _ in range(count)]
        await served.transport.wait_for(count)
        for each in first:
            each.cancel()
        await asyncio.wait(first)
        again = [asyncio.ensure_future(served.chat("hello", headers=AGAIN)) for _ in range(count - 2)]
        for one in held:
            one.release()
        found = {text_of(await each) for each in again}
        found |= {text_of(await served.chat("hello", headers=AGAIN)) for _ in range(2)}
        assert found == {f"{n}" for n in range(count)}
        assert turns(served) == count


async def test_a_turn_under_way_is_known_by_its_key_whatever_comes_meanwhile() -> None:
    """A long turn of the main loop outlasts many of its sub-agents'; what is over is kept within bounds."""
    held = Held(reply("held"))
    call = Call(model="m", messages=[])
    async with proxied(held) as served:
        first = asyncio.ensure_future(served.chat("hello", headers={"idempotency-key": "k"}))
        await served.transport.wait_for(1)
        inner = served.endpoints.keys._served
        (own,) = (each.turns for each in inner.values())
        for number in range(1_000):
            said = Said(message=Message("assistant", "x"), id=f"{number}")
            own.restore(call, said, b"%d" % number, f"other-{number}")
        again = asyncio.ensure_future(served.chat("hello", headers={"idempotency-key": "k"}))
        held.release()
        assert [text_of(await first), text_of(await again)] == ["held", "held"]
        assert len(own._kept) == 512
        assert len(own._known) == 2 * 512


async def test_a_retry_of_what_failed_is_tried_anew() -> None:
    """An error is not replayed."""
    async with proxied(Fault(ServerBusy("full")), reply("4")) as served:
        assert (await served.chat("hello")).status_code == 503
        assert text_of(await served.chat("hello", headers=AGAIN)) == "4"


async def test_a_client_that_stays_away_cancels_its_turn_on_the_server_too() -> None:
    """And nothing of it is kept: asked for again it is a turn of its own."""
    async with proxied(Stalled(), reply("4"), client_gone_s=0.01) as served:
        await gone(served)
        with anyio.fail_after(20):
            while not served.transport.cancelled:
                await anyio.lowlevel.checkpoint()
        assert turns(served) == 0
        assert text_of(await served.chat("hello", headers=AGAIN)) == "4"


async def test_a_client_that_comes_back_in_time_has_its_turn() -> None:
    """It goes on while nobody waits, and its answer is there."""
    held = Held(reply("4"))
    async with proxied(held, client_gone_s=60) as served:
        await gone(served)
        held.release()
        assert text_of(await served.chat("hello", headers=AGAIN)) == "4"
        assert turns(served) == 1


async def test_turns_under_way_are_bounded() -> None:
    """429 over the limit, with when to come again."""
    async with proxied(Stalled(), Stalled(), proxy_turns=2) as served:
        waiting = [asyncio.ensure_future(served.chat("hello")) for _ in range(2)]
        await served.transport.wait_for(2)
        refused = await served.chat("hello")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        served.endpoints.close(served.model)
        assert {(await each).status_code for each in waiting} == {409}


async def test_a_turn_is_journalled_before_anything_of_it_is_answered() -> None:
    """And where that fails, the client is answered an error."""
    async with proxied() as served:
        (key, opened, _) = next(iter(served.endpoints._of.values()))
        seen = list[str]()

        async def journal(turned: Turned) -> None:
            assert served.asking.session.turns[turned.index] is turned.turn
            seen.append(turned.said.message.text)
            if len(seen) == 2:
                raise OSError("the disk is full")

        opened.turns._before_last_event = journal
        assert text_of(await served.chat("hello")) == "answer 0"
        refused = await served.chat("hello", "answer 0", "go on")
        assert (refused.status_code, seen) == (500, ["answer 0", "answer 1"])
        assert key not in repr(opened)


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_turn_that_was_asked_for_anew_and_that_nobody_received_is_not_trained_on(comes_back: bool) -> None:
    """A stream broke off, and its program asked again without a mark: the session's reward is not that turn's."""
    held = Held(reply("nobody read this"))
    async with proxied(held, reply("read"), client_gone_s=60) as served:
        (own,) = (each.turns for each in served.endpoints.keys._served.values())
        left, waits = told(own, "leave"), told(own, "wait")
        await gone(served)
        await left.wait()
        assert text_of(await served.chat("hello")) == "read"
        waits.clear()
        again = asyncio.ensure_future(served.chat("hello", headers=AGAIN)) if comes_back else None
        if again is not None:
            await waits.wait()
        held.release()
        await own.settled()
        if again is not None:
            assert text_of(await again) == "nobody read this"
        assert [turn.train for turn in served.asking.session.turns] == [True, comes_back]


async def test_an_answer_is_known_though_its_client_had_written_the_same_before() -> None:
    """A judge wrote the example, and then the model said it at that very place: what goes on from it is token-in."""
    async with proxied(reply("x|ok"), reply("thought|4"), *[reply("x|ok")] * 3) as served:
        served.asking.session._model.codec = Thinks()
        for said in (("2+2", "4", "right?"), ("2+2",), ("2+2", "4", "right?"), ("2+2", "4", "and now?")):
            assert (await served.chat(*said)).status_code == 200
        routes = [turn.route for turn in served.asking.session.turns]
        assert routes == [Route.MESSAGE_IN, Route.MESSAGE_IN, Route.TOKEN_IN, Route.TOKEN_IN]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_may_ask_in_the_same_way_only(stream: bool) -> None:
    """Its body is the same, so it streams where the first did, and the frames are the same."""
    async with proxied() as served:
        answers: list[httpx.Response] = [
            await served.chat("hello", stream=stream),
            await served.chat("hello", stream=stream, headers=AGAIN),
        ]
        assert answers[0].content == answers[1].content
        assert turns(served) == 1
