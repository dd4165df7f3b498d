"""Histories as agents make them end with the right branches, and each sampled token is trained on exactly once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.canonical import Match
from rollout.chat.messages import Function, Message, ToolCall, system, user
from rollout.play.route import FallbackRefused
from rollout.play.session import Session
from rollout.records import Route
from rollout.request import MessagePrompt
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.samples import TrainingSample, samples_of_tree, turn_ids
from rollout.tokens.verify import check_trajectory
from tests.rollout.play.test_session import session
from transports.scripted import (
    LAYERS,
    STOP,
    TOP_K,
    Held,
    ScriptedTransport,
    encode_bytes,
    experts_of,
    kept_with,
    render_bytes,
    reply,
)

Conversation = list[Message]


class Talk:
    """A session whose every prompt and completion is kept as the server had it."""

    def __init__(self, *texts: str, **config: Any) -> None:
        entries = [reply(text) for text in texts]
        self.session, self.transport = session(*entries, routed_experts=True, sampling_mask=True, **config)
        self.texts = texts

    async def ask(self, conversation: Sequence[Message], **options: Any) -> Message:
        return await self.session.turn(conversation, **options)

    def seen(self) -> list[tuple[list[int], list[int]]]:
        return seen(self.transport, self.texts)

    def samples(self) -> list[TrainingSample]:
        """The samples, checked against what the server saw."""
        return checked_samples(self.session, self.seen())

    @property
    def reasons(self) -> list[FallbackReason | None]:
        return [turn.fallback for turn in self.session.turns]


def seen(transport: ScriptedTransport, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each request, by the server's own rendering."""
    found = []
    for request, text in zip(transport.requests, texts, strict=False):
        sent = request.prompt
        ids = render_bytes(sent.messages) if isinstance(sent, MessagePrompt) else list(sent.ids)
        found.append((ids, [*encode_bytes(text), STOP]))
    return found


def check_turns(talk: Session, samples: Sequence[TrainingSample]) -> None:
    """Every sampled token lies in one turn's span, and each turn is trained on once, over all samples."""
    trained = Counter[int]()
    for sample in samples:
        whose = turn_ids(sample).tolist()
        assert [turn for turn in whose if turn >= 0] == [
            span.turn for span in sample.turns for _ in range(span.start, span.end)
        ]
        # A masked token was sampled; one that nobody sampled is in no turn, has no logprob, and temperature 1.
        assert all(turn >= 0 for turn, mask in zip(whose, sample.loss_mask, strict=True) if mask)
        rest = zip(whose, sample.logprobs, sample.temperatures, strict=True)
        assert all((logprob, temperature) == (0, 1) for turn, logprob, temperature in rest if turn < 0)
        for span in sample.turns:
            assert sum(sample.loss_mask[span.start : span.end]) == span.trained
            trained[span.turn] += span.trained
    assert trained == Counter({at: turn.completion_tokens for at, turn in enumerate(talk.turns)})


def checked_samples(talk: Session, seen: Sequence[tuple[list[int], list[int]]]) -> list[TrainingSample]:
    """Each completion is trained on in exactly one sample, right behind the prompt that the server had.

    Where the very same answer was sampled twice to one prompt, that is in two.
    """
    samples = samples_of_tree(talk.trajectory, talk.turns)
    check_turns(talk, samples)
    for prompt, completion in seen:
        whole = [*prompt, *completion]
        masks = [
            sample.loss_mask[len(prompt) : len(whole)].tolist()
            for sample in samples
            if sample.token_ids[: len(whole)].tolist() == whole
        ]
        assert masks, "a turn is in no sample"
        times = sum(other == (prompt, completion) for other in seen)
        assert sum(mask == [1] * len(completion) for mask in masks) == times
        assert all(not any(mask) for mask in masks if mask != [1] * len(completion))
    assert sum(sum(sample.loss_mask) for sample in samples) == sum(len(completion) for _, completion in seen)
    check_trajectory(talk.trajectory, sum(len(completion) for _, completion in seen))
    for sample in samples:
        assert len(sample.token_ids) == len(sample.loss_mask) == len(sample.logprobs) == len(sample.weight_versions)
        check_fields(sample)
    return samples


def check_fields(sample: TrainingSample) -> None:
    """Of each token the experts that the server would name for it and those before it, but for the last, which nobody
    has computed; and of each sampled token the ids that it was drawn from.
    """
    if sample.routed_experts is None:
        return
    arrays, ids = sample.to_numpy(), sample.token_ids.tolist()
    rows = experts_of(ids[:-1])
    found = arrays["routed_experts"]
    assert found[:-1].tobytes() == np.frombuffer(rows.data.data, np.uint8).astype(np.int16).tobytes()
    assert found.shape == (len(ids), LAYERS, TOP_K)
    assert (found[-1] == -1).all()
    kept, offsets = arrays["sampling_mask_ids"].tolist(), arrays["sampling_mask_offsets"].tolist()
    masks = [kept[start:end] for start, end in itertools.pairwise(offsets)]
    turns = turn_ids(sample)
    assert masks == [kept_with(one) if turn >= 0 else [] for one, turn in zip(ids, turns, strict=True)]


async def test_linear() -> None:
    """One branch, one sample: the last prompt and completion."""
    talk = Talk("b", "d", "f")
    history: Conversation = [user("a")]
    for text in ("c", "e", ""):
        history += [await talk.ask(history), user(text)]
    (sample,) = talk.samples()
    prompt, completion = talk.seen()[-1]
    assert sample.token_ids.tolist() == [*prompt, *completion]
    assert talk.reasons == [FallbackReason.FIRST_TURN, None, None]


async def test_compacted_into_a_summary() -> None:
    """A summary starts a branch of its own, message-in once, and is extended from then on."""
    talk = Talk("b", "d", "f", "h")
    history: Conversation = [system("s"), user("a")]
    history += [await talk.ask(history), user("c")]
    history += [await talk.ask(history)]
    compact: Conversation = [system("s"), user("summary: a b c d. go on")]
    compact += [await talk.ask(compact), user("g")]
    await talk.ask(compact)
    assert talk.reasons == [FallbackReason.FIRST_TURN, None, FallbackReason.HISTORY_REWRITTEN, None]
    assert len(talk.samples()) == 2


async def test_a_retry_of_the_same_turn() -> None:
    """The same prompt again goes out as the same ids; both answers are trained on, the prompt is stored once."""
    talk = Talk("b", "d", "e", "g")
    history: Conversation = [user("a")]
    history += [await talk.ask(history), user("c")]
    await talk.ask(history)
    again = await talk.ask(history)
    await talk.ask([*history, again, user("f")])
    assert talk.seen()[1][0] == talk.seen()[2][0]
    assert talk.reasons == [FallbackReason.FIRST_TURN, None, None, None]
    one, other = talk.samples()
    assert one.token_ids.tolist() == [*talk.seen()[1][0], *talk.seen()[1][1]]
    assert other.token_ids.tolist() == [*talk.seen()[3][0], *talk.seen()[3][1]]
    shared = len(talk.seen()[1][0])
    assert talk.session.trajectory.token_count == len(one.token_ids) + len(other.token_ids) - shared


async def test_two_sub_agents_share_a_prefix_and_alternate() -> None:
    """Each goes on from its own last turn, token-in, and the shared prefix is trained on once."""
    talk = Talk("b", "x1", "y1", "x2", "y2")
    shared: Conversation = [user("a")]
    shared += [await talk.ask(shared)]
    agents: list[Conversation] = [[*shared, user("be x")], [*shared, user("be y")]]
    for _ in range(2):
        for agent in agents:
            agent += [await talk.ask(agent), user("more")]
    assert talk.reasons == [FallbackReason.FIRST_TURN, None, None, None, None]
    assert len(talk.samples()) == 2


async def test_an_edited_earlier_message() -> None:
    """An edit forks below the last common turn; what came before it is extended, not sent again as messages."""
    talk = Talk("b", "d", "f", "h")
    history: Conversation = [user("a")]
    history += [await talk.ask(history), user("c")]
    history += [await talk.ask(history), user("e")]
    await talk.ask(history)
    edited = [*history[:2], user("c, rather")]
    await talk.ask(edited)
    assert talk.reasons == [FallbackReason.FIRST_TURN, None, None, None]
    assert talk.seen()[3][0][: len(talk.seen()[0][0])] == talk.seen()[0][0]
    assert len(talk.samples()) == 2


async def test_an_edited_answer_is_not_the_models() -> None:
    """A rewritten assistant message matches no turn: message-in, and its text is never trained on."""
    talk = Talk("b", "d")
    history: Conversation = [user("a")]
    await talk.ask(history)
    await talk.ask([*history, Message("assistant", "B!"), user("c")])
    assert talk.reasons == [FallbackReason.FIRST_TURN, FallbackReason.HISTORY_REWRITTEN]
    assert len(talk.samples()) == 2


async def test_few_shot_answers_are_never_trained_on() -> None:
    """Assistant messages of the first prompt are context; only what was sampled is trained on."""
    talk = Talk("b", "d")
    history: Conversation = [user("1+1"), Message("assistant", "2"), user("2+2"), Message("assistant", "4"), user("a")]
    history += [await talk.ask(history), user("c")]
    await talk.ask(history)
    (sample,) = talk.samples()
    assert sum(sample.loss_mask) == len("b") + len("d") + 2
    assert talk.reasons == [FallbackReason.FIRST_TURN, None]


async def test_a_window_that_drops_its_oldest_messages() -> None:
    """Each shift of the window starts a branch, and no answer is trained on twice though prompts hold it again."""
    talk = Talk("b", "d", "f", "h")
    history: Conversation = [system("s")]
    for text in ("a", "c", "e", "g"):
        history.append(user(text))
        window = [history[0], *history[1:][-3:]]
        history.append(await talk.ask(window))
    assert talk.reasons[:2] == [FallbackReason.FIRST_TURN, None]
    assert set(talk.reasons[2:]) == {FallbackReason.HISTORY_REWRITTEN}
    assert len(talk.samples()) == 3


async def test_the_same_prompt_twice_at_once() -> None:
    """Two answers to one prompt, asked for at the same time, are two branches under one stored prompt."""
    texts = ("b", "x", "y")
    held = [Held(reply("x")), Held(reply("y"))]
    talk, transport = session(reply("b"), *held)
    history: Conversation = [user("a")]
    history += [await talk.turn(history), user("c")]
    async with anyio.create_task_group() as group:
        group.start_soon(talk.turn, history)
        group.start_soon(talk.turn, history)
        await transport.wait_for(3)
        for entry in reversed(held):
            entry.release()
    assert len({request.request_id for request in transport.requests}) == 3
    assert [turn.route for turn in talk.turns[1:]] == [Route.TOKEN_IN] * 2
    one, other = checked_samples(talk, seen(transport, texts))
    prompt = seen(transport, texts)[1][0]
    assert talk.trajectory.token_count == len(one.token_ids) + len(other.token_ids) - len(prompt)


async def test_the_same_first_prompt_twice_at_once() -> None:
    """Message-in twice at the same time: one stored prompt, two answers."""
    held = [Held(reply("x")), Held(reply("y"))]
    talk, transport = session(*held)
    async with anyio.create_task_group() as group:
        group.start_soon(talk.turn, [user("a")])
        group.start_soon(talk.turn, [user("a")])
        await transport.wait_for(2)
        for entry in held:
            entry.release()
    assert len(checked_samples(talk, seen(transport, ("x", "y")))) == 2
    assert talk.trajectory.token_count == len(render_bytes([user("a")])) + 2 * 2


@pytest.mark.parametrize(("match", "extends"), [("strict", False), ("loose_tool_call", True), ("role_content", True)])
async def test_rewritten_calls_extend_where_the_match_is_loose(match: Match, extends: bool) -> None:
    """An agent that gives its calls new ids and sorted arguments goes on token-in under a looser match."""
    sampled = Message("assistant", "b", tool_calls=(_call("call00000", '{"b":1,"a":2}'),))
    talk = Talk("b", "d", match=match)
    _answers_with(talk, sampled)
    await talk.ask([user("a")])
    theirs = Message("assistant", "b", tool_calls=(_call("toolu_9", '{"a":2}'),))
    await talk.ask([user("a"), theirs, Message("tool", "3", tool_call_id="toolu_9")])
    assert (talk.reasons[1] is None) == extends
    talk.samples()


@pytest.mark.parametrize(("match", "extends"), [("strict", False), ("loose_tool_call", False), ("role_content", True)])
async def test_dropped_reasoning_extends_where_only_content_counts(match: Match, extends: bool) -> None:
    """An agent that drops reasoning from its history keeps the sampled ids under `role_content`."""
    talk = Talk("b", "d", match=match)
    _answers_with(talk, Message("assistant", "b", reasoning_content="hm"))
    await talk.ask([user("a")])
    await talk.ask([user("a"), Message("assistant", "b"), user("c")])
    assert (talk.reasons[1] is None) == extends
    talk.samples()


def _call(call_id: str, arguments: str) -> ToolCall:
    return ToolCall(id=call_id, function=Function("add", arguments))


def _answers_with(talk: Talk, message: Message) -> None:
    """Has the codec read every answer as this message, as a parser of tool calls would."""

    async def parse(*args: Any) -> Message:
        return message

    codec: Any = talk.session._model.codec
    codec.parse = parse


MOVES = st.lists(st.tuples(st.sampled_from(["go on", "retry", "back", "compact"]), st.integers(0, 9)), max_size=12)


@given(moves=MOVES)
async def test_any_history_trains_every_token_once(moves: list[tuple[str, int]]) -> None:
    """Whatever an agent does with its history, every sampled token is trained on once, behind what the server had."""
    talk = Talk(*(f"answer {i % 3}" for i in range(len(moves) + 1)))
    history: Conversation = [user("start")]
    history.append(await talk.ask(history))
    for move, number in moves:
        if move == "retry":
            history = history[:-1]
        elif move == "back":
            history = [*history[: 2 * (number % (len(history) // 2)) + 2], user(f"again {number % 3}")]
        elif move == "compact":
            history = [user(f"summary {number % 3}")]
        else:
            history = [*history, user(f"more {number % 3}")]
        history.append(await talk.ask(history))
    talk.samples()


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


def shows(part: dict[str, Any]) -> Message:
    return Message.of({"role": "user", "content": [{"type": "text", "text": "look"}, part]})


@pytest.mark.parametrize("part", [IMAGE, AUDIO])
async def test_an_image_makes_its_branch_message_in(part: dict[str, Any]) -> None:
    """From the message with the part on, every turn of the branch goes message-in, and the prompts' ids are kept."""
    talk = Talk("b", "d", "f", "x")
    history: Conversation = [user("a")]
    history += [await talk.ask(history)]
    for message in (shows(part), user("e")):
        history = [*history, message]
        history += [await talk.ask(history)]
    await talk.ask([*history[:2], user("without it")])
    multimodal = FallbackReason.MULTIMODAL
    assert talk.reasons == [FallbackReason.FIRST_TURN, multimodal, multimodal, None]
    first, other = talk.samples()
    prompt, completion = talk.seen()[2]
    assert [*prompt, *completion] in (first.token_ids.tolist(), other.token_ids.tolist())


@pytest.mark.parametrize("reports", [True, False])
async def test_an_image_in_the_first_prompt_is_named(reports: bool) -> None:
    """A first prompt with an image is never rendered here, and says so; a server that expands it tells the ids."""
    talk = Talk("b", "d", info={"reports_prompt_ids": reports})
    history: Conversation = [shows(IMAGE)]
    history += [await talk.ask(history), user("c")]
    await talk.ask(history)
    assert talk.reasons == [FallbackReason.MULTIMODAL] * 2
    assert all(isinstance(request.prompt, MessagePrompt) for request in talk.transport.requests)
    talk.samples()


async def test_required_token_in_refuses_an_image_at_once() -> None:
    """Where token-in is required, a prompt with an image fails before anything is sent."""
    talk = Talk("b", require_token_in=True)
    with pytest.raises(FallbackRefused, match="multimodal"):
        await talk.ask([shows(IMAGE)])
    assert not talk.transport.requests
