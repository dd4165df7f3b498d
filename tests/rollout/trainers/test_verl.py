"""verl's servers are a transport like the others, and a rollout is cut as verl pads it; without verl, by a double."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.guess_number import GuessNumber
from rollout import Engine, EngineConfig
from rollout.agent import Agent, Model, Outcome, Task
from rollout.chat.messages import Message, user
from rollout.codec.tokenizer import load_tokenizer
from rollout.errors import MalformedReply, PromptTooLong, RequestRefused, TransportError
from rollout.records import Rollout, StopReason
from rollout.request import MessagePrompt, Request, TokenPrompt
from rollout.trainers.verl import LengthLimits, VerlTransport, answered, reply_of, versions_of
from rollout.transport import ServerLoad, Transport, TransportConfig
from tests.transports.contract import HELLO, Subject, TransportContract, request_of
from transports.embedded import MODEL_DIR
from transports.embedded.transport import open as open_embedded

LIMITS = LengthLimits(prompt=128, response=512)


class Output(msgspec.Struct):
    """As verl's TokenOutput."""

    token_ids: Any
    log_probs: Any = None
    stop_reason: str | None = "completed"
    extra_fields: dict[str, Any] = {}


class Client:
    """As verl's client, over the embedded model."""

    def __init__(self, embedded: Transport) -> None:
        self.embedded = embedded
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []
        self.fault: Exception | None = None

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Output:
        self.asked.append((request_id, prompt_ids, dict(sampling_params)))
        if self.fault is not None:
            raise self.fault
        params = dict(sampling_params)
        most, stops = params.pop("max_tokens"), params.pop("stop_token_ids")
        assert params.pop("logprobs") is True
        request = Request(
            prompt=TokenPrompt(prompt_ids),
            request_id=f"{request_id}-{len(self.asked)}",
            session_id=request_id,
            max_tokens=most,
            sampling=params,
            stop_token_ids=stops,
        )
        try:
            reply = await self.embedded.generate(request)
        except RequestRefused as error:
            raise ValueError(str(error)) from error  # as vLLM's own parameters do
        assert reply.completion_ids is not None
        return Output(reply.completion_ids, reply.logprobs, "completed", {"global_steps": 3})


class Measured(VerlTransport):
    """With the load of the model behind it, which verl's client does not say."""

    async def load(self) -> ServerLoad:
        assert isinstance(self._client, Client)
        await self.check()
        return await self._client.embedded.load()


class Verl(Subject):
    """verl's client as a subject of the suite that every transport passes."""

    controls_weights = False
    aborts_by_name = False

    def __init__(self, embedded: Transport) -> None:
        self._embedded = embedded

    async def open(self, **config: Any) -> Transport:
        tokenizer = load_tokenizer(str(MODEL_DIR))
        context = self._embedded.info.max_model_len
        assert context is not None
        limits = LengthLimits(prompt=context, response=context, context=context)
        return Measured(Client(self._embedded), tokenizer, limits, logprobs_mode="raw_logprobs")


@pytest.fixture
async def embedded() -> AsyncIterator[Transport]:
    transport = await open_embedded(TransportConfig())
    yield transport
    await transport.aclose()


@pytest.mark.slow
class TestVerlTransport(TransportContract):
    """The contract of transports."""

    @pytest.fixture
    def subject(self, embedded: Transport) -> Verl:
        return Verl(embedded)


def transport_of(client: Client, limits: LengthLimits = LIMITS) -> VerlTransport:
    return VerlTransport(client, load_tokenizer(str(MODEL_DIR)), limits, logprobs_mode="processed_logprobs")


async def played(client: Client, make: Any, tasks: list[Any], limits: LengthLimits = LIMITS) -> list[Rollout]:
    """Rollouts on verl's servers."""
    config = EngineConfig(max_tokens=24, require_token_in=True, verify=True, tokenizer=str(MODEL_DIR))
    async with Engine(config, make, transport=transport_of(client, limits)) as engine:
        return [rollout async for group in engine.stream(tasks) for rollout in group.rollouts]


@pytest.mark.slow
async def test_every_prompt_goes_out_as_ids(embedded: Transport) -> None:
    """The first turn, too; a rollout's turns have one id at verl's client, so that they go to one server."""
    client = Client(embedded)
    (rollout,) = await played(client, GuessNumber, list(GuessNumber().tasks(1, seed=0)))
    assert rollout.ok, rollout.failure
    assert {turn.route for turn in rollout.turns} == {"token_in"}
    assert len({name for name, _, _ in client.asked}) == 1
    assert [len(ids) for _, ids, _ in client.asked] == [turn.prompt_tokens for turn in rollout.turns]
    assert rollout.turns[0].logprobs_mode == "processed_logprobs"
    assert {span.version for turn in rollout.turns for span in turn.weight_versions} == {"3"}


@pytest.mark.slow
async def test_a_rollout_fits_what_verl_pads_it_to(embedded: Transport) -> None:
    """It ends where its response would be longer, and that is no failure; nothing of it is cut away."""
    limits = LengthLimits(prompt=64, response=60)
    rollouts = await played(Client(embedded), GuessNumber, list(GuessNumber().tasks(8, seed=0)), limits)
    assert all(rollout.ok for rollout in rollouts)
    assert StopReason.CONTEXT_LENGTH in {rollout.stop for rollout in rollouts}
    for rollout in rollouts:
        (row,), (sample,) = answered(rollout, limits), rollout.samples()
        assert len(row.prompt_ids) <= 64
        assert len(row.response_ids) <= 60
        assert [*row.prompt_ids, *row.response_ids] == sample.token_ids.tolist()


@pytest.mark.slow
async def test_a_first_prompt_that_verl_would_cut_is_not_sent(embedded: Transport) -> None:
    """verl cuts its beginning off; here the rollout ends with nothing sampled."""
    client = Client(embedded)
    limits = LengthLimits(prompt=4, response=60)
    (rollout,) = await played(client, GuessNumber, list(GuessNumber().tasks(1, seed=0)), limits)
    assert rollout.stop is StopReason.CONTEXT_LENGTH
    assert client.asked == []
    assert answered(rollout, limits) == []


class Forks(Agent):
    """Asks twice for one question, and goes on from the second answer; what it asks first is a judge's, left out."""

    async def run(self, task: Task, model: Model) -> Outcome:
        await model.agent("judge").chat([user("Judge.")], train=False)
        await model.chat([user("Hello.")])
        second = await model.chat([user("Hello."), user("Who are you?")])
        await model.chat([user("Hello."), user("Who are you?"), second.message, user("Go on.")])
        return Outcome(reward=0.5)


@pytest.mark.slow
async def test_several_branches(embedded: Transport) -> None:
    """verl's one answer is the branch that was sampled last, whole; `all` has each trained token once."""
    (rollout,) = await played(Client(embedded), Forks, [{}])
    assert rollout.ok, rollout.failure
    trained = sum(turn.completion_tokens for turn in rollout.turns if turn.train)
    (last,) = answered(rollout, LIMITS)
    assert sum(last.mask) == sum(turn.completion_tokens for turn in rollout.turns[2:])
    every = answered(rollout, LIMITS, "all")
    assert len(every) == 2
    assert sum(sum(row.mask) for row in every) == trained
    assert all(len(row.response_ids) == len(row.mask) == len(row.logprobs) for row in [last, *every])


@pytest.mark.slow
async def test_what_does_not_fit_is_masked_or_cut(embedded: Transport) -> None:
    """A prompt longer than verl pads to goes on in the response, masked; a response that is longer loses its end."""
    (rollout,) = await played(Client(embedded), GuessNumber, list(GuessNumber().tasks(1, seed=0)))
    (sample,) = rollout.samples()
    first = sample.loss_mask.index(1)
    (row,) = answered(rollout, LengthLimits(prompt=first - 3, response=5))
    assert row.prompt_ids == sample.token_ids[: first - 3].tolist()
    assert row.response_ids == sample.token_ids[first - 3 : first + 2].tolist()
    assert row.mask == [0, 0, 0, 1, 1]
    assert row.logprobs == sample.logprobs[first - 3 : first + 2].tolist()


async def test_faults_of_verls_servers(embedded: Transport) -> None:
    """A server that refuses is told from one that fails; images do not go this way at all."""
    client = Client(embedded)
    transport = transport_of(client)
    shown = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    with pytest.raises(RequestRefused, match="text"):
        await transport.generate(request_of(MessagePrompt([Message.of(shown)])))
    client.fault = RuntimeError("the actor died")
    with pytest.raises(TransportError, match="the actor died"):
        await transport.generate(request_of(HELLO))
    client.fault = ValueError("temperature must be non-negative")
    with pytest.raises(RequestRefused, match="non-negative"):
        await transport.generate(request_of(HELLO))
    with pytest.raises(PromptTooLong):
        await transport.generate(msgspec.structs.replace(request_of(TokenPrompt([1] * 129)), session_id="another"))
    transport.release("another")
    transport.release("contract")
    assert "0 trajectories" in repr(transport)


@pytest.mark.parametrize(
    ("said", "ids", "reason"),
    [
        ("completed", [5, 9], "stop"),
        ("completed", [5, 6, 9], "stop"),
        ("completed", [5, 6, 7], "length"),
        ("length", [5], "length"),
        ("stop", [5, 6, 7], "stop"),
        (None, [5, 6, 7], "length"),
        ("aborted", [], "abort"),
        ("abort", [5], "abort"),
    ],
)
def test_why_an_answer_ended(said: str | None, ids: list[int], reason: str) -> None:
    """vLLM's "completed" is either; of three tokens at most, an answer of three that ends no turn was cut off."""
    reply = reply_of(Output(ids, [-0.5] * len(ids), said), most=3, stops=frozenset({9}))
    assert reply.finish_reason == reason
    assert reply.completion_ids == ids


def test_an_answer_without_logprobs_is_refused() -> None:
    """They were asked for; one that was aborted before its first token has none to give."""
    with pytest.raises(MalformedReply, match="without the logprobs"):
        reply_of(Output([5]), most=3, stops=frozenset())
    assert reply_of(Output([], None, "aborted"), most=3, stops=frozenset()).logprobs == []


def test_an_answers_numbers_may_be_an_arrays() -> None:
    """Of any integer and float type; what is no number is the server's fault, in one line."""
    ids, logprobs = np.array([5, 6, 9], np.int32), np.array([-0.5, -1.0, -0.25], np.float32)
    reply = reply_of(Output(ids, logprobs, "completed"), most=3, stops=frozenset({9}))
    assert reply.completion_ids is not None
    assert [type(token) for token in reply.completion_ids] == [int] * 3
    assert (reply.completion_ids, reply.logprobs, reply.finish_reason) == ([5, 6, 9], [-0.5, -1.0, -0.25], "stop")
    for bad in (Output([5], [None], "completed"), Output([5.5], [-0.5], "completed"), Output(["a"], [-0.5], "stop")):
        with pytest.raises(MalformedReply, match="no numbers"):
            reply_of(bad, most=3, stops=frozenset())


@given(first=st.integers(0, 9), more=st.integers(0, 3), count=st.integers(0, 6))
def test_steps_cover_an_answer(first: int, more: int, count: int) -> None:
    """Its tokens are of the first step that verl names, and the last of the last; without a step there are none."""
    spans = versions_of({"min_global_steps": first, "max_global_steps": first + more, "global_steps": 99}, count)
    assert versions_of({"global_steps": None}, count) == ()
    assert versions_of({}, count) == ()
    held = [span.version for span in spans for _ in range(span.start, span.end)]
    assert len(held) == count
    assert set(held[:-1]) <= {str(first)}
    if count > 1:
        assert held[-1] == str(first + more)
    assert all(math.isclose(span.start, 0) or span.start == count - 1 for span in spans)
