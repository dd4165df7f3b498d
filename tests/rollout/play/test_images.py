"""Turns with images go token-in: logical ids and the images out, and what the model read into the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from rollout.chat.messages import Message, user
from rollout.codec.types import Bridged, Context, Declined, Previous
from rollout.config import EngineConfig
from rollout.errors import MalformedReply
from rollout.play.served import ContextFull, ServedModel
from rollout.play.session import Ask, Session
from rollout.records import Route
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.tokens.images import image_name
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.samples import samples_of_tree
from tests.rollout.play.test_session import ByteCodec
from tests.rollout.tokens.test_images import IMAGE, URL, seen
from transports.scripted import STOP, ScriptedTransport, encode_bytes, render_bytes, reply

OTHER = URL.replace("base64,", "base64,AAAA")


def render(messages: Sequence[Message]) -> list[int]:
    """`render_bytes`, and behind each message's text one placeholder for each of its images."""
    ids: list[int] = []
    for message in messages:
        whole = render_bytes([message])[: -1 - len("assistant\n")]
        ids += [*whole[:-1], *[IMAGE] * len(message.images or ()), STOP]
    return [*ids, *render_bytes([])]


class SeeingCodec(ByteCodec):
    """Bridges with placeholders."""

    has_tokenizer = True

    async def extend(self, previous: Previous, tail: Any, context: Context) -> Bridged | Declined:
        close = [] if previous.completion_ids[-1:] == [STOP] else [STOP]
        return Bridged([*close, *render(tail)], "bytes")

    async def render(self, messages: Any, context: Context) -> list[int]:
        return render(messages)


class Seeing(ScriptedTransport):
    """A server that reads an image as `size` tokens in its placeholder's place, and says so."""

    size = 4
    tells = True

    async def generate(self, request: Request) -> Reply:
        answered = await super().generate(request)
        prompt = request.prompt
        sent = list(prompt.ids) if isinstance(prompt, TokenPrompt) else render(prompt.messages)
        images = prompt.images if isinstance(prompt, TokenPrompt) else (URL,) * sent.count(IMAGE)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for one in sent:
            if one == IMAGE and len(spans) < len(images):
                spans.append((len(ids), self.size))
                ids += [IMAGE] * self.size
            else:
                ids.append(one)
        told = tuple(spans) if self.tells else None
        return msgspec.structs.replace(answered, prompt_ids=ids, image_spans=told)


def session(*entries: Any, image_token: int | None = IMAGE, **config: Any) -> tuple[Session, Seeing]:
    transport = Seeing(entries)
    info = msgspec.structs.replace(transport.info, image_token=image_token)
    settings = EngineConfig(**{"verify": True, **config})
    return Session(ServedModel(transport=transport, info=info, codec=SeeingCodec(), config=settings), "s"), transport


async def test_a_conversation_with_images_is_extended() -> None:
    """What goes out has one placeholder an image and never what the server made of it; samples have what was read."""
    talk, transport = session(reply("b"), reply("d"), reply("f"))
    history: list[Message] = []
    for message in (seen(URL), user("and?"), seen(OTHER, URL, text="these")):
        history.append(message)
        history.append(await talk.turn(history))
    assert [turn.route for turn in talk.turns] == [Route.MESSAGE_IN, Route.TOKEN_IN, Route.TOKEN_IN]
    assert [turn.fallback for turn in talk.turns] == [FallbackReason.FIRST_TURN, None, None]
    assert [turn.prefix_break for turn in talk.turns] == [None, False, False]

    prompts = [request.prompt for request in transport.requests]
    assert isinstance(prompts[0], MessagePrompt)
    assert isinstance(prompts[2], TokenPrompt)
    logical = [
        *render([seen(URL)]),
        *encode_bytes("b"),
        STOP,
        *render([user("and?")]),
        *encode_bytes("d"),
        STOP,
        *render([seen(OTHER, URL, text="these")]),
    ]
    assert prompts[2].ids.tolist() == logical
    assert prompts[2].images == (URL, OTHER, URL)
    assert prompts[2].length == len(logical) + 3

    (sample,) = samples_of_tree(talk.trajectory, talk.turns)
    read = [i for token in [*logical, *encode_bytes("f"), STOP] for i in ([IMAGE] * 4 if token == IMAGE else [token])]
    assert sample.token_ids.tolist() == read
    assert [one.image for one in sample.images] == [image_name(URL), image_name(OTHER), image_name(URL)]
    for one in sample.images:
        assert sample.token_ids[one.start : one.start + one.length].tolist() == [IMAGE] * 4
    for span, text in zip(sample.turns, ("b", "d", "f"), strict=True):
        assert sample.token_ids[span.start : span.end].tolist() == [*encode_bytes(text), STOP]
    assert [turn.prompt_tokens for turn in talk.turns][-1] == len(read) - 2


async def test_images_may_come_later_and_a_prompt_may_be_sent_again() -> None:
    """A conversation without an image is extended by one; a retry sends the same ids with the same images."""
    talk, transport = session(reply("b"), reply("d"), reply("e"))
    history: list[Message] = [user("a")]
    history += [await talk.turn(history), seen(URL)]
    await talk.turn(history)
    await talk.turn(history)
    second, third = (request.prompt for request in transport.requests[1:])
    assert isinstance(second, TokenPrompt)
    assert isinstance(third, TokenPrompt)
    assert (second.ids, second.images) == (third.ids, third.images)
    assert second.images == (URL,)
    assert len(samples_of_tree(talk.trajectory)) == 2


async def test_a_completion_goes_on_with_its_images() -> None:
    """One that was aborted is resumed from its ids, whether it was asked for by messages or by ids."""
    aborted = {"finish_reason": "abort"}
    talk, transport = session(reply("b", **aborted), reply("c"), reply("d", **aborted), reply("e"))
    talk._model.sleep = _at_once
    history: list[Message] = [seen(URL)]
    history += [await talk.turn(history), user("and?")]
    await talk.turn(history)
    resumed = [transport.requests[at].prompt for at in (1, 3)]
    assert all(isinstance(prompt, TokenPrompt) and prompt.images == (URL,) for prompt in resumed)
    (sample,) = samples_of_tree(talk.trajectory)
    assert sample.token_ids.tolist().count(IMAGE) == 4


async def _at_once(seconds: float) -> None: ...


async def test_a_completion_that_sampled_a_placeholder_is_asked_for_anew() -> None:
    """Sent on, the server would give that one the next image."""
    talk, transport = session(reply(completion_ids=[IMAGE], finish_reason="abort"), reply("c"))
    talk._model.sleep = _at_once
    await talk.turn([seen(URL)])
    assert [isinstance(request.prompt, MessagePrompt) for request in transport.requests] == [True, True]
    (sample,) = samples_of_tree(talk.trajectory)
    assert sample.token_ids.tolist().count(IMAGE) == 4


async def test_a_completion_whose_image_is_read_otherwise_fails_its_turn() -> None:
    """Its parts were sampled behind different prompts."""
    talk, transport = session(reply("b", finish_reason="abort"), reply("c"))

    async def read_anew(seconds: float) -> None:
        transport.size = 9

    talk._model.sleep = read_anew
    with pytest.raises(MalformedReply, match="than when it began this completion"):
        await talk.turn([seen(URL)])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"image_token": None}, "takes no images"),
        ({"tells": False}, "does not say where"),
    ],
)
async def test_a_server_that_cannot_gets_messages(fault: dict[str, Any], said: str) -> None:
    """Every turn of the branch, each with its reason."""
    talk, transport = session(reply("b"), reply("d"), image_token=fault.get("image_token", IMAGE))
    transport.tells = fault.get("tells", True)
    history: list[Message] = [seen(URL)]
    history += [await talk.turn(history), user("and?")]
    await talk.turn(history)
    assert all(isinstance(request.prompt, MessagePrompt) for request in transport.requests)
    assert talk.turns[1].fallback is FallbackReason.MULTIMODAL
    assert said in talk.turns[1].fallback_detail


async def test_a_first_prompt_with_images_is_the_servers() -> None:
    """Also where it does not tell the ids: what stands for an image is the server's to say."""
    talk, transport = session(reply("b"))
    talk._model.info = msgspec.structs.replace(talk._model.info, reports_prompt_ids=False)
    await talk.turn([seen(URL)])
    assert isinstance(transport.requests[0].prompt, MessagePrompt)


async def test_a_server_that_takes_none_may_come_later() -> None:
    """From then on nothing is sent with ids that not all servers take."""
    talk, transport = session(reply("b"), reply("d"))
    history: list[Message] = [seen(URL)]
    history += [await talk.turn(history), user("and?")]
    talk._model.info = msgspec.structs.replace(talk._model.info, image_token=None)
    await talk.turn(history)
    assert isinstance(transport.requests[1].prompt, MessagePrompt)


async def test_audio_goes_as_messages() -> None:
    """Only images go with ids."""
    talk, _ = session(reply("b"), reply("d"))
    history: list[Message] = [user("a")]
    history += [await talk.turn(history), Message("user", ({"type": "input_audio", "input_audio": {"data": "x"}},))]
    await talk.turn(history)
    assert talk.turns[1].fallback is FallbackReason.MULTIMODAL
    assert talk.turns[1].fallback_detail == "only images go with ids"


async def test_a_placeholder_that_the_model_sampled_is_never_sent_as_one() -> None:
    """The server would give it the next image: the turn goes out as messages."""
    talk, transport = session(reply(completion_ids=[IMAGE, STOP]), reply("d"))
    history: list[Message] = [seen(URL)]
    history += [await talk.turn(history), user("and?")]
    await talk.turn(history)
    assert isinstance(transport.requests[1].prompt, MessagePrompt)
    assert talk.turns[1].fallback is FallbackReason.MULTIMODAL
    assert "2 placeholders for 1 images" in talk.turns[1].fallback_detail


async def test_an_image_that_is_read_otherwise_now_is_a_failed_turn() -> None:
    """A branch has one expansion an image: nothing is committed of an answer that read another."""
    talk, transport = session(reply("b"), reply("d"))
    history: list[Message] = [seen(URL)]
    history += [await talk.turn(history), user("and?")]
    transport.size = 5
    with pytest.raises(MalformedReply, match="as other tokens than it did then"):
        await talk.turn(history)
    assert len(talk.turns) == 1


async def test_what_images_add_counts_against_the_context() -> None:
    """A prompt fits by what the model reads, as far as that is known."""
    talk, _ = session(reply("b"), reply("d"))
    history: list[Message] = [seen(URL)]
    history += [await talk.turn(history), user("and?")]
    count = await talk.count(Ask(messages=history))
    assert count is not None
    info = msgspec.structs.replace(talk._model.info, max_model_len=count)
    talk._model.info = info
    with pytest.raises(ContextFull):
        await talk.turn(history)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("shown_last", [False, True])
async def test_what_a_server_made_of_an_image_is_never_sent(again: bool, shown_last: bool) -> None:
    """Two conversations begin with one image, and the server does not tell the second's: that goes on as messages."""
    talk, transport = session(*map(reply, "bcdefg"))
    first: list[Message] = [seen(URL)] if shown_last else [seen(URL), user("what is this?")]
    await talk.turn(first)
    second = [*first[:1], user("what colour is it?")]
    transport.tells = False
    answer = await talk.turn(second)
    transport.tells = True
    for _ in range(2):
        await talk.turn(second if again else [*second, answer, user("and?")])
    for prompt in (request.prompt for request in transport.requests):
        assert isinstance(prompt, MessagePrompt) or prompt.ids.tolist().count(IMAGE) == len(prompt.images)
    for sample in samples_of_tree(talk.trajectory, talk.turns):
        assert sample.token_ids.tolist().count(IMAGE) == 4
        assert [one.image for one in sample.images] == [image_name(URL)]


async def test_a_prompt_is_placed_where_the_same_messages_once_were_not() -> None:
    """One answer without places costs that turn, not the rollout; and it is no break of the prefix."""
    talk, transport = session(*map(reply, "bcdef"))
    transport.tells = False
    history: list[Message] = [seen(URL), user("what is this?")]
    for number in range(4):
        history += [await talk.turn(history), user(f"and {number}?")]
        transport.tells = True
    assert [turn.route for turn in talk.turns] == [Route.MESSAGE_IN, Route.MESSAGE_IN, Route.TOKEN_IN, Route.TOKEN_IN]
    assert [turn.prefix_break for turn in talk.turns] == [None, None, False, False]


async def test_a_prompt_that_is_sent_again_is_read_as_it_was() -> None:
    """Else its turn fails: a branch has one expansion an image."""
    talk, transport = session(reply("b"), reply("d"), reply("e"))
    history: list[Message] = [user("a")]
    history += [await talk.turn(history), seen(URL)]
    await talk.turn(history)
    transport.size = 9
    with pytest.raises(MalformedReply, match="as other tokens than it did then"):
        await talk.turn(history)


@pytest.mark.parametrize(("wanted", "sent"), [(None, None), (16, 16), (100_000, None)])
async def test_what_an_image_adds_is_the_servers_to_cut_by(wanted: int | None, sent: int | None) -> None:
    """Its data is longer than the context, and what is read for it nobody knows: no room is made up for the answer."""
    talk, transport = session(reply("b"), max_tokens=wanted)
    talk._model.info = msgspec.structs.replace(talk._model.info, max_model_len=500)
    await talk.turn([seen("data:image/png;base64," + "AAAA" * 5_000)])
    assert transport.requests[0].max_tokens == sent


class Marked(SeeingCodec):
    """A marker is typed in what it renders."""

    shown = 1

    def has_typed_markers(self, messages: Sequence[Message]) -> bool:
        return True

    async def render(self, messages: Any, context: Context) -> list[int]:
        return [i for token in render(messages) for i in ([IMAGE] * self.shown if token == IMAGE else [token])]


@pytest.mark.parametrize("shown", [0, 1])
async def test_markers_that_are_typed_beside_an_image_stay_text(shown: int) -> None:
    """On the first turn, too: the prompt is made here and goes out with the image, if its template shows it."""
    talk, transport = session(reply("b"))
    talk._model.codec = Marked()
    Marked.shown = shown
    await talk.turn([seen(URL, text="<|im_end|>")])
    (prompt,) = (request.prompt for request in transport.requests)
    assert isinstance(prompt, TokenPrompt if shown else MessagePrompt)
    if isinstance(prompt, TokenPrompt):
        assert prompt.images == (URL,)
        (sample,) = samples_of_tree(talk.trajectory, talk.turns)
        assert sample.token_ids.tolist().count(IMAGE) == 4
