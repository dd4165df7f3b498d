"""Prompts are encoded once and extended: whatever was encoded before, the bytes are those of the whole prompt."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message, user
from rollout.errors import ConfigError, ServerError, TransportError
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.transport import ServerInfo, Traffic, opened
from transports.scripted import ScriptedTransport

TURNS = st.lists(st.tuples(st.lists(st.integers(0, 2**31 - 1), max_size=4), st.booleans()), max_size=6)


def on_wire(prompt: TokenPrompt | MessagePrompt) -> bytes:
    return msgspec.json.encode({"prompt": prompt.json()})


@given(st.lists(st.integers(0, 2**31 - 1), max_size=4), TURNS)
def test_an_extended_prompt_is_encoded_as_a_whole_one(first: list[int], turns: list[tuple[list[int], bool]]) -> None:
    """However many extensions, empty ones too, and whichever of them were sent; those before stay as they were."""
    ids, prompt, made = list(first), TokenPrompt(first), []
    for new, sent in turns:
        made.append((list(ids), prompt))
        if sent:
            prompt.json()
        ids, prompt = [*ids, *new], prompt.extended(new)
    for expected, one in [*made, (ids, prompt)]:
        assert one.ids.tolist() == expected
        assert on_wire(one) == msgspec.json.encode({"prompt": expected})


def test_what_was_encoded_is_not_encoded_again() -> None:
    """The next prompt's bytes start with this one's."""
    prompt = TokenPrompt(range(1_000))
    known = bytes(memoryview(prompt.json()))
    later = prompt.extended([7])
    assert later._before == (known, 1_000)
    assert bytes(memoryview(later.json())) == known[:-1] + b",7]"


@pytest.mark.slow
@given(st.lists(st.text(max_size=5), min_size=1, max_size=6), st.integers(0, 6), st.booleans(), st.booleans())
def test_messages_are_encoded_once(texts: list[str], known: int, sent: bool, other: bool) -> None:
    """An earlier prompt helps where this one starts with its very messages, and changes nothing where not."""
    messages: list[Message] = [user(text) for text in texts]
    earlier = MessagePrompt([user("other")] if other else messages[:known])
    if sent:
        earlier.json()
    prompt = MessagePrompt(messages, before=earlier)
    assert on_wire(prompt) == msgspec.json.encode({"prompt": [message.as_openai() for message in messages]})


class Earlier:
    """A transport from before `open` was the constructor: it connects later, and knows less."""

    def __init__(self, error: ServerError | None = None) -> None:
        self.error = error
        self.closed = False

    async def connect(self) -> ServerInfo:
        if self.error is not None:
            raise self.error
        return ServerInfo(dialect="earlier", model="m")

    async def generate(self, request: Request) -> Reply:
        return Reply(completion_ids=[1], logprobs=[-1.0])

    async def aclose(self) -> None:
        self.closed = True


async def test_a_transport_of_another_make_is_bridged() -> None:
    """What it has is called, and what it lacks is answered as a server answers that cannot do it."""
    transport = await opened(Earlier())
    assert transport.info.model == "m"
    request = Request(prompt=TokenPrompt([1]), request_id="r", session_id="s")
    assert (await transport.generate(request)).completion_ids == [1]
    await transport.check()
    transport.release("s")
    assert transport.traffic == Traffic()
    with pytest.raises(ConfigError, match="earlier: this server's weights cannot be changed"):
        await transport.pause()
    with pytest.raises(ConfigError, match="how busy"):
        await transport.load()
    with pytest.raises(TransportError, match="--tokenizer"):
        await transport.detokenize([1])


async def test_what_cannot_be_connected_is_closed_again() -> None:
    """An error at opening leaves nothing open."""
    earlier = Earlier(ServerError("nobody is there"))
    with pytest.raises(ServerError, match="nobody is there"):
        await opened(earlier)
    assert earlier.closed


async def test_an_open_transport_is_left_as_it_is() -> None:
    """An awaitable is awaited, and nothing is connected twice."""
    transport = ScriptedTransport([])

    async def later() -> ScriptedTransport:
        return transport

    assert await opened(later()) is transport
    assert await opened(transport) is transport
