"""One turn: the prompt starts with what was sampled, and what goes wrong is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from rollout.chat.messages import Message, system, user
from rollout.codec.protocol import Codec
from rollout.codec.server import ServerCodec
from rollout.codec.types import Bridged, Context, Declined, Previous
from rollout.config import EngineConfig
from rollout.errors import MalformedReply, ServerBusy
from rollout.play.route import FallbackRefused
from rollout.play.served import ContextFull, ServedModel
from rollout.play.session import Ask, Session
from rollout.records import Route
from rollout.request import MessagePrompt, TokenPrompt, WeightSpan
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.samples import samples_of_tree
from rollout.tokens.verify import InvariantBroken
from rollout.transport import ServerInfo
from transports.scripted import STOP, Fault, Scripted, ScriptedTransport, encode_bytes, render_bytes, reply


class ByteCodec(Codec):
    """The scripted transport's own format: what a tokenizer is to a real server."""

    stop_token_ids = [STOP]
    description = "bytes"

    def __init__(self, declines: str = "") -> None:
        self.declines = declines

    async def extend(self, previous: Previous, tail: Any, context: Context) -> Bridged | Declined:
        if self.declines:
            return Declined(self.declines)
        close = [] if previous.completion_ids[-1:] == [STOP] else [STOP]
        return Bridged([*close, *render_bytes(tail)], "bytes")

    async def render(self, messages: Any, context: Context) -> list[int]:
        return render_bytes(messages)

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message:
        return Message("assistant", bytes(i for i in completion_ids if i < 256).decode())


def session(
    *entries: Any, codec: Codec | None = None, info: dict[str, Any] | None = None, **config: Any
) -> tuple[Session, ScriptedTransport]:
    transport = ScriptedTransport(entries, fields=bool(config.get("routed_experts")))
    server = msgspec.structs.replace(transport._info, **(info or {}))
    model = ServedModel(
        transport=transport, info=server, codec=codec or ByteCodec(), config=EngineConfig(**{"verify": True, **config})
    )
    return Session(model, "s"), transport


async def play(talk: Session, *texts: str) -> list[Message]:
    """Plays user turns; returns the conversation."""
    history: list[Message] = []
    for text in texts:
        history.append(user(text))
        history.append(await talk.turn(history))
    return history


async def test_turn_two_goes_token_in() -> None:
    """The second prompt is ids: the first prompt, what was sampled, and the bridge."""
    talk, transport = session(reply("b"), reply("d"))
    await play(talk, "a", "c")
    first, second = (request.prompt for request in transport.requests)
    assert isinstance(first, MessagePrompt)
    assert isinstance(second, TokenPrompt)
    sampled = [*encode_bytes("b"), STOP]
    assert second.ids.tolist() == [*render_bytes([user("a")]), *sampled, *render_bytes([user("c")])]
    assert [turn.route for turn in talk.turns] == [Route.MESSAGE_IN, Route.TOKEN_IN]
    assert [turn.fallback for turn in talk.turns] == [FallbackReason.FIRST_TURN, None]
    assert [turn.prefix_break for turn in talk.turns] == [None, False]


async def test_a_cut_off_turn_is_closed_and_never_trained_on() -> None:
    """After a completion cut by length the bridge adds the stop token, which is not sampled."""
    talk, _ = session(reply("b", finish_reason="length"), reply("d"))
    await play(talk, "a", "c")
    (sample,) = samples_of_tree(talk.trajectory)
    trained = [token for token, mask in zip(sample.token_ids, sample.loss_mask, strict=True) if mask]
    assert trained == [*encode_bytes("b"), *encode_bytes("d"), STOP]


async def test_stop_tokens_and_sampling_go_with_every_request() -> None:
    """The renderer's stop ids and the caller's parameters are in message-in and token-in requests."""
    talk, transport = session(reply("b"), reply("d"), sampling={"top_p": 0.5}, max_tokens=7)
    await play(talk, "a", "c")
    for request in transport.requests:
        assert list(request.stop_token_ids) == [STOP]
        assert request.sampling == {"top_p": 0.5}
        assert request.max_tokens == 7


async def test_a_server_without_prompt_ids_gets_the_first_prompt_as_ids() -> None:
    """Where message-in would not tell the prompt's ids, turn 1 is rendered here and goes token-in."""
    talk, transport = session(reply("b"), reply("d"), info={"reports_prompt_ids": False})
    await play(talk, "a", "c")
    assert all(isinstance(request.prompt, TokenPrompt) for request in transport.requests)
    assert [turn.fallback for turn in talk.turns] == [None, None]


async def test_message_in_forks_where_the_server_rerenders() -> None:
    """In mode mito a prompt that does not start with the turn before is counted, and the tree forks."""
    other = Scripted(text="d", prompt_ids=[1, 2, 3])
    talk, _ = session(reply("b"), other, mode="mito")
    await play(talk, "a", "c")
    assert [turn.prefix_break for turn in talk.turns] == [None, True]
    assert talk.turns[1].fallback is FallbackReason.DISABLED
    assert len(samples_of_tree(talk.trajectory)) == 2


async def test_a_declined_bridge_falls_back_with_its_reason() -> None:
    """The reason and its detail are in the turn."""
    talk, transport = session(reply("b"), reply("d"), codec=ByteCodec(declines="no way"))
    await play(talk, "a", "c")
    assert isinstance(transport.requests[1].prompt, MessagePrompt)
    assert talk.turns[1].fallback is FallbackReason.BRIDGE_DECLINED
    assert talk.turns[1].fallback_detail == "no way"


async def test_required_token_in_sends_nothing_else() -> None:
    """Where token-in is required, a fallback raises before anything is sent."""
    talk, transport = session(reply("b"), codec=ByteCodec(declines="no way"), require_token_in=True)
    with pytest.raises(FallbackRefused, match=r"bridge_declined.*no way"):
        await play(talk, "a", "c")
    assert len(transport.requests) == 1


async def test_a_server_without_a_token_route_has_its_reason() -> None:
    """Every later turn goes message-in with `no_token_route`."""
    talk, _ = session(reply("b"), reply("d"), info={"token_route": None})
    await play(talk, "a", "c")
    assert talk.turns[1].fallback is FallbackReason.NO_TOKEN_ROUTE


async def test_ids_that_never_came_make_the_next_turn_fall_back() -> None:
    """A server that stops reporting ids costs `ids_missing`, not a wrong prompt."""
    talk, _ = session(reply("b", without=["completion_ids", "logprobs"]), reply("d"))
    await play(talk, "a", "c")
    assert talk.turns[1].fallback is FallbackReason.IDS_MISSING
    assert samples_of_tree(talk.trajectory) != []


@pytest.mark.parametrize(
    "entry",
    [
        reply("b", logprobs=[-0.1]),
        reply("b", without=["logprobs"]),
        reply("b", without=["completion_ids", "logprobs", "message"]),
        reply("b", weight_versions=(WeightSpan("1", 0, 1),)),
        reply("b", weight_versions=(WeightSpan("1", 0, 1), WeightSpan("2", 0, 2))),
    ],
)
async def test_an_answer_that_cannot_be_trusted_commits_nothing(entry: Scripted) -> None:
    """Counts that differ, or nothing to read, are an error of the turn; the tree stays as it was."""
    talk, _ = session(entry)
    with pytest.raises(MalformedReply):
        await talk.turn([user("a")])
    assert not talk.trajectory.nodes
    assert not talk.turns


async def test_a_prompt_echoed_in_other_ids_is_a_break() -> None:
    """A server that changes a token-in prompt breaks the invariant under verify, and is never trusted."""
    talk, _ = session(reply("b"), Scripted(text="d", prompt_ids=[9, 9]))
    with pytest.raises(InvariantBroken, match="differs from the one that was sent"):
        await play(talk, "a", "c")


async def test_an_echo_that_differs_is_counted_where_nothing_is_verified() -> None:
    """Without verify the break is counted, and the tree forks where the server's prompt differs."""
    other = [*render_bytes([user("a")]), *encode_bytes("b"), STOP, 9]
    talk, _ = session(reply("b"), Scripted(text="d", prompt_ids=other), reply("f"), verify=False)
    await play(talk, "a", "c", "e")
    assert [turn.prefix_break for turn in talk.turns] == [None, False, False]
    assert talk.trajectory.ids(talk.turns[1].node).tolist()[: len(other)] == other


async def test_an_echo_that_drops_sampled_ids_is_a_break() -> None:
    """A prompt that no longer starts with what was sampled is a break; what was sampled stays in its own branch."""
    other = [*render_bytes([user("a")]), 9]
    talk, _ = session(reply("b"), Scripted(text="d", prompt_ids=other), verify=False)
    await play(talk, "a", "c")
    assert [turn.prefix_break for turn in talk.turns] == [None, True]
    assert len(samples_of_tree(talk.trajectory)) == 2


async def test_a_failed_turn_can_be_tried_again() -> None:
    """After a transport error the same conversation goes out again, token-in as before."""
    talk, _ = session(reply("b"), Fault(ServerBusy("full")), reply("d"))
    history = await play(talk, "a")
    history.append(user("c"))
    with pytest.raises(ServerBusy):
        await talk.turn(history)
    await talk.turn(history)
    assert talk.turns[-1].route is Route.TOKEN_IN


async def test_the_same_prompt_again_extends_the_prompt() -> None:
    """A second answer to one prompt goes token-in with no bridge, and both answers are samples."""
    talk, transport = session(reply("b"), reply("e"))
    await talk.turn([user("a")])
    await talk.turn([user("a")])
    assert isinstance(transport.requests[1].prompt, TokenPrompt)
    assert transport.requests[1].prompt.ids.tolist() == render_bytes([user("a")])
    assert len(samples_of_tree(talk.trajectory)) == 2


async def test_a_turn_may_have_a_length_of_its_own() -> None:
    """A minimum that the run asked for is cut with it; one that never made sense goes out as it is, to be refused."""
    talk, transport = session(*[reply("b")] * 3, max_tokens=7, sampling={"min_tokens": 7})
    await talk.turn([user("a")])
    await talk.turn([user("a")], max_tokens=3)
    assert [(sent.max_tokens, sent.sampling["min_tokens"]) for sent in transport.requests] == [(7, 7), (3, 3)]
    talk, transport = session(reply("b"), max_tokens=7, sampling={"min_tokens": 9})
    await talk.turn([user("a")])
    assert transport.requests[0].sampling["min_tokens"] == 9


@pytest.mark.parametrize("local", [True, False])
async def test_a_turn_that_does_not_fit_is_not_sent(local: bool) -> None:
    """`max_tokens` is cut to what fits, and where nothing fits nothing is sent."""
    length = len(render_bytes([user("a")]))
    info = {"max_model_len": length + 5, "reports_prompt_ids": not local}
    talk, transport = session(reply("bc"), info=info, max_tokens=100)
    history = await play(talk, "a")
    assert transport.requests[0].max_tokens == 5
    with pytest.raises(ContextFull, match=str(length + 5)):
        await talk.turn([*history, user("long enough")])
    assert len(transport.requests) == 1


async def test_a_long_message_in_conversation_is_not_rendered_here_to_be_measured() -> None:
    """What the server said of the last prompt bounds the next: only one near the limit is rendered for its length."""
    rendered: list[int] = []

    class Counting(ByteCodec):
        async def render(self, messages: Any, context: Context) -> list[int]:
            rendered.append(len(messages))
            return await super().render(messages, context)

    turns = 30
    texts = [f"u{number}" for number in range(turns)]
    whole = [message for text in texts for message in (user(text), Message("assistant", "b"))]
    limit = 2 * len(render_bytes(whole)) + 400
    options: dict[str, Any] = {"codec": Counting(), "mode": "mito", "max_tokens": 8}
    talk, transport = session(*[reply("b")] * turns, info={"max_model_len": limit}, **options)
    await play(talk, *texts)
    assert rendered == []
    assert {request.max_tokens for request in transport.requests} == {8}
    # Another conversation of that length is measured by nobody yet.
    talk, _ = session(reply("b"), info={"max_model_len": limit}, **options)
    await talk.turn([*whole, user("last")])
    assert rendered == [len(whole) + 1]


async def test_the_server_bridge_learns_stop_tokens_and_extends() -> None:
    """Without a tokenizer the server's own /tokenize makes the bridge, once a turn has ended by its stop token."""
    transport = ScriptedTransport([reply("b"), reply("d")])
    model = ServedModel(
        transport=transport, info=transport._info, codec=ServerCodec(transport), config=EngineConfig(verify=True)
    )
    talk = Session(model, "s")
    await play(talk, "a", "c")
    assert talk.turns[1].route is Route.TOKEN_IN
    assert talk.turns[1].bridge == "server"
    prompt = transport.requests[1].prompt
    assert isinstance(prompt, TokenPrompt)
    assert prompt.ids.tolist() == [*render_bytes([user("a")]), *encode_bytes("b"), STOP, *render_bytes([user("c")])]


@pytest.mark.parametrize("said", [-1, 2**31, 2**70])
async def test_a_count_that_cannot_be_is_no_count(said: int) -> None:
    """A server's own count of cached tokens is a number to look at: nonsense costs no turn and no sum."""
    talk, _ = session(reply("b", cached_tokens=said), reply("d", cached_tokens=5))
    await play(talk, "a", "c")
    assert [turn.cached_tokens for turn in talk.turns] == [None, 5]


async def test_changed_tools_start_a_new_root() -> None:
    """Tools that appear mid-way go message-in with `tools_changed`, and are extended from then on."""
    talk, _ = session(reply("b"), reply("d"), reply("f"))
    tools = [{"type": "function", "function": {"name": "add"}}]
    history = await play(talk, "a")
    for text in ("c", "e"):
        history.append(user(text))
        history.append(await talk.turn(history, tools=tools))
    assert [turn.fallback for turn in talk.turns] == [
        FallbackReason.FIRST_TURN,
        FallbackReason.TOOLS_CHANGED,
        None,
    ]


def test_server_info_is_what_the_session_needs() -> None:
    """A transport that says nothing of itself can still be used message-in."""
    assert ServerInfo(dialect="x", model="m").token_route is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"logprobs": [-9999.0, -1.0]}, "logprob 0 is -9999.0, which stands for one that is missing"),
        ({"logprobs": [-1.0, math.nan]}, "logprob 1 is nan"),
        ({"logprobs": [math.nan, math.nan]}, "logprob 0 is nan"),
        ({"logprobs": [-math.inf, -1.0]}, "logprob 0 is -inf"),
        ({"logprobs": [-1.0, 0.1]}, "logprob 1 is 0.1: a probability above 1"),
        ({"logprobs": [-1.0, None]}, "logprob 1 is null"),
        ({"completion_ids": [1, -1]}, "id 1 is -1, which is no token's"),
        ({"completion_ids": [1, 2**31]}, "id 1 is 2147483648, which is no token's"),
        ({"completion_ids": [1, None]}, "id 1 is None, which is no token's"),
        ({"prompt_ids": [-7]}, "id 0 is -7, which is no token's"),
        ({"prompt_ids": [2**70]}, "id 0 is 1180591620717411303424"),
    ],
)
async def test_what_is_no_token_or_no_logprob_fails_its_turn(fields: dict[str, Any], said: str) -> None:
    """Whatever transport carried it, such an answer is an error that names it, and nothing of it is kept."""
    talk, _ = session(reply("b", **fields))
    with pytest.raises(MalformedReply, match=said):
        await talk.turn([user("a")])
    assert not talk.trajectory.nodes


async def test_a_logprob_that_rounding_put_above_zero_is_one() -> None:
    """0, a little more, and very unlikely tokens are taken."""
    talk, _ = session(reply("bcd", logprobs=[0.0, 1e-7, -5_000.0, -5_000.0]))
    await talk.turn([user("a")])
    assert talk.trajectory.nodes[-1].logprobs.tolist() == [0.0, 1e-7, -5_000.0, -5_000.0]


@pytest.mark.parametrize("name", ["naïve\n", "👋", "x" * 10_000, "\ud83d", "", "a b\tc"])
async def test_ids_of_any_session_can_be_sent_in_headers(name: str) -> None:
    """A task's id may be any text: what is sent of it is short, visible ASCII."""
    transport = ScriptedTransport([reply("b"), reply("d")])
    model = ServedModel(transport=transport, info=transport._info, codec=ByteCodec(), config=EngineConfig())
    await play(Session(model, name), "a", "c")
    for request in transport.requests:
        for sent in (request.session_id, request.request_id):
            assert sent.isascii()
            assert sent.isprintable()
            assert len(sent) < 200
    assert len({request.request_id for request in transport.requests}) == 2


@pytest.mark.parametrize("late_system", ["fold", "keep"])
async def test_what_is_counted_is_what_would_be_sent(late_system: str) -> None:
    """Late system messages are settled as the turn itself settles them, on the first turn and behind a sampled one."""
    talk, transport = session(reply("b"), reply("d"), late_system=late_system)
    asked = [user("a"), system("Be brief.")]
    for _ in range(2):
        count = await talk.count(Ask(messages=asked))
        asked = [*asked, await talk.turn(asked), user("c"), system("Briefer.")]
        assert count == talk.turns[-1].prompt_tokens
    assert sum(turn.folded for turn in talk.turns) == (2 if late_system == "fold" else 0)
    assert len(transport.requests) == 2
