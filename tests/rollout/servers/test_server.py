"""A server is dead by what it says, or by long silence where it was asked; never by what could not be heard."""

from __future__ import annotations

import anyio
import pytest

from rollout.errors import ConnectionFailed, NotSent, RequestTimeout, ServerError, TransportError
from rollout.loop.deadlines import Clock
from rollout.request import Reply, Request, TokenPrompt
from rollout.servers.server import HUNG_S, STRIKES, Health
from rollout.servers.server import Server as FleetServer
from transports.scripted import Fault, ScriptedTransport, Stalled, reply


def test_refusals_in_a_row_are_a_death() -> None:
    """A completion that comes in between does not say that it is well; its own word does."""
    health = Health(0.0)
    health.refused()
    health.heard(1.0)
    assert not health.dead(1.0)
    health.well(1.0)
    for _ in range(STRIKES):
        health.refused()
    assert health.dead(1.0)


def test_silence_is_a_death_only_where_it_was_asked_for_long() -> None:
    """Any answer ends it; a look that comes late, since our own loop stood still, is none."""
    health = Health(0.0)
    health.silent()
    assert not health.dead(10 * HUNG_S)
    health.silent()
    assert not health.dead(HUNG_S - 1)
    assert health.dead(HUNG_S + 1)
    health.heard(HUNG_S)
    health.silent()
    health.silent()
    assert not health.dead(HUNG_S + 1)


class Checked(ScriptedTransport):
    """Answers how it is from a list."""

    answers: list[Exception | None]

    async def check(self) -> None:
        if (error := self.answers.pop(0)) is not None:
            raise error


def checked(*answers: Exception | None) -> tuple[FleetServer, Checked]:
    transport = Checked([reply("x"), Stalled()])
    transport.answers = [None, *answers]
    return FleetServer("http://a", transport, check_every_s=0.001), transport


@pytest.mark.parametrize(
    ("answers", "lives"),
    [
        ([None], True),
        ([ConnectionFailed("refused"), None], True),
        ([ConnectionFailed("refused"), TransportError("503")], False),
        ([NotSent("no file descriptor is left")], True),
        ([RequestTimeout("busy")] * 5 + [None], True),
        ([ServerError("no word of ours"), ServerError("again")], False),
        ([ZeroDivisionError("of another make"), None], True),
    ],
)
async def test_whatever_a_check_raises_is_an_answer(answers: list[Exception | None], lives: bool) -> None:
    """It is asked until it is clear, and nothing comes out but whether it lives."""
    member, transport = checked(*answers)
    await member.open()
    assert await member.alive() is lives
    assert transport.answers == []


async def test_a_request_has_its_time() -> None:
    """What is not answered in it fails, and is ended on the server; what is dropped goes elsewhere."""
    member, transport = checked()
    await member.open()
    request = Request(prompt=TokenPrompt([1]), request_id="r", session_id="s")
    assert isinstance(await member.generate(request, Clock(), 60), Reply)
    with pytest.raises(RequestTimeout, match=r"http://a: no answer within 0\.01 s"):
        await member.generate(request, Clock(), 0.01)
    assert transport.cancelled == 1
    transport._entries.append(Stalled())
    got: list[Reply | None] = []
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            got.append(await member.generate(request, Clock(), 60))

        group.start_soon(ask)
        await transport.wait_for(3)
        member.drop()
    assert got == [None]


async def test_a_transport_is_opened_anew_in_place_of_the_one_before() -> None:
    """What was remembered of the server is forgotten with it; its traffic is not."""
    made: list[ScriptedTransport] = []

    async def open_it() -> ScriptedTransport:
        made.append(ScriptedTransport([]))
        return made[-1]

    member = FleetServer("http://a", open_it)
    with pytest.raises(ConnectionFailed, match="not connected yet"):
        _ = member.transport
    await member.open()
    await member.open()
    assert member.transport is made[1]
    assert [one.closed for one in made] == [True, False]
    await member.aclose()
    assert made[1].closed


async def test_requests_are_counted_by_how_they_ended() -> None:
    """An answer, a failure, one in flight; what its caller cancelled is neither answered nor failed."""
    member, transport = checked()
    await member.open()
    transport._entries.append(Fault(ConnectionFailed("gone")))
    transport._entries.append(Stalled())
    request = Request(prompt=TokenPrompt([1]), request_id="r", session_id="s")
    assert await member.generate(request, Clock(), 60) is not None
    with pytest.raises(RequestTimeout):
        await member.generate(request, Clock(), 0.01)
    with pytest.raises(ConnectionFailed):
        await member.generate(request, Clock(), 60)
    async with anyio.create_task_group() as group:
        group.start_soon(member.generate, request, Clock(), 60)
        await transport.wait_for(4)
        assert member.tally.in_flight == 1
        group.cancel_scope.cancel()
    tally = member.tally
    assert (tally.answered, tally.failed, tally.in_flight) == (1, 2, 0)
    assert sum(tally.counts) == 1
    assert 0 <= tally.answer_s < 60
