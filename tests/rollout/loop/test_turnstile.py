"""Thousands that are ready at once go through a few a round; between the rounds the loop serves everything else."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import anyio
import anyio.lowlevel

from rollout.loop.turnstile import Turnstile

#: No round is ever as short, so that each lets in fewer than the one before; and none ever as long.
NEVER_S, ALWAYS_S = 0.0, 3600.0


async def through(turnstile: Turnstile, count: int) -> tuple[list[int], list[int]]:
    """The order in which `count` tasks came through, and how many had at each look from outside."""
    order: list[int] = []
    looks: list[int] = []

    async def one(number: int) -> None:
        await turnstile.enter()
        order.append(number)

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
        while len(order) < count:
            await anyio.lowlevel.checkpoint()
            looks.append(len(order))
    return order, looks


async def test_nobody_waits_where_there_is_room() -> None:
    """The first to come enters without giving up the loop."""
    turnstile, elsewhere = Turnstile(), list[bool]()
    asyncio.get_running_loop().call_soon(elsewhere.append, True)
    await turnstile.enter()
    assert not elsewhere


async def test_a_crowd_goes_through_in_its_order() -> None:
    """In the order of arrival, and in rounds that grow while they are short."""
    order, looks = await through(Turnstile(round_s=ALWAYS_S), 2_000)
    assert order == list(range(2_000))
    rounds = [b - a for a, b in pairwise(looks) if b > a]
    assert len(rounds) > 5
    assert max(rounds) > 4 * rounds[0]
    assert max(rounds) < 1_000


async def test_long_rounds_let_in_one_at_a_time() -> None:
    """Rounds that take too long shrink, but never to nothing."""
    order, looks = await through(Turnstile(round_s=NEVER_S), 200)
    assert order == list(range(200))
    assert all(b - a <= 1 for a, b in pairwise(looks[20:]))


async def test_who_leaves_the_line_holds_up_nobody() -> None:
    """A task that is cancelled in line is passed over; those behind it come through."""
    turnstile, entered = Turnstile(round_s=NEVER_S), list[int]()
    scope = anyio.CancelScope()

    async def one(number: int) -> None:
        with scope if number == 30 else anyio.CancelScope():
            await turnstile.enter()
            entered.append(number)

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(one, number)
        await anyio.lowlevel.checkpoint()
        scope.cancel()
    assert entered == [number for number in range(40) if number != 30]
