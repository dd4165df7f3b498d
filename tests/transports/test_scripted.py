"""The shipped double answers what it was told, in order."""

from __future__ import annotations

import anyio
import pytest

from rollout.chat.messages import user
from rollout.errors import ServerBusy, TransportError
from rollout.request import MessagePrompt, Request, TokenPrompt
from rollout.transport import TransportConfig
from transports.scripted import STOP, Fault, Held, ScriptedTransport, Stalled, encode_bytes, reply
from transports.scripted import open as open_scripted

MESSAGES = Request(prompt=MessagePrompt(messages=[user("a")]), request_id="r", session_id="s")
TOKENS = Request(prompt=TokenPrompt([1, 2]), request_id="r", session_id="s")


async def test_entries_are_given_in_order() -> None:
    """Replies and faults come as listed, and running out is said."""
    transport = ScriptedTransport([reply("x"), Fault(ServerBusy("full"))])
    first = await transport.generate(MESSAGES)
    assert first.completion_ids == [*encode_bytes("x"), STOP]
    assert first.prompt_ids is not None
    with pytest.raises(ServerBusy):
        await transport.generate(TOKENS)
    with pytest.raises(TransportError, match="no entry for request 3"):
        await transport.generate(TOKENS)
    assert repr(transport) == "<ScriptedTransport 0 entries left, 3 requests>"


async def test_what_is_left_out_is_left_out() -> None:
    """A reply can lack what a server would not report."""
    transport = ScriptedTransport([reply("x", without=["logprobs", "prompt_ids"])])
    given = await transport.generate(MESSAGES)
    assert given.logprobs is None
    assert given.prompt_ids is None


async def test_a_held_reply_waits_to_be_released() -> None:
    """A test can stand in the middle of a turn, and a stalled one ends by cancelling."""
    held = Held(reply("x"))
    transport = ScriptedTransport([held, Stalled()])
    async with anyio.create_task_group() as group:
        group.start_soon(transport.generate, TOKENS)
        group.start_soon(transport.generate, TOKENS)
        await transport.wait_for(2)
        held.release()
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert transport.cancelled == 1


async def test_a_script_can_come_from_options() -> None:
    """The entry point takes texts."""
    transport = await open_scripted(TransportConfig(options={"replies": ["a"]}))
    assert (await transport.generate(MESSAGES)).message is not None
