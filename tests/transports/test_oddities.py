"""What a server answers oddly costs its turn at most: over real HTTP, in both dialects, and never a wrong token."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from rollout.chat.messages import user
from rollout.config import EngineConfig
from rollout.errors import MalformedReply, RequestRefused, ServerBusy, TransportError
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.samples import samples_of_tree
from rollout.transport import ServerInfo, TransportConfig
from tests.local_server import serving
from tests.rollout.play.test_session import ByteCodec
from transports.dynamo import DynamoTransport
from transports.openai import client_of
from transports.scripted import STOP, encode_bytes, render_bytes
from transports.vllm.transport import VllmTransport

PROMPT = render_bytes([user("a")])
SAMPLED = [*encode_bytes("b"), STOP]
LOGPROBS = {"content": [{"logprob": -0.5}] * len(SAMPLED)}


def vllm(**choice: Any) -> dict[str, Any]:
    """A message-in answer of vLLM."""
    message = {"role": "assistant", "content": "b"}
    fields = {"token_ids": SAMPLED, "logprobs": LOGPROBS, "finish_reason": "stop", "message": message, **choice}
    return {"prompt_token_ids": PROMPT, "choices": [fields]}


def dynamo(engine: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    """A message-in answer of Dynamo with a vLLM worker."""
    data = {"prompt_token_ids": PROMPT, "completion_token_ids": SAMPLED, "completion_logprobs": [-0.5] * len(SAMPLED)}
    fields = {"finish_reason": "stop", "message": {"role": "assistant", "content": "b"}, **choice}
    return {"choices": [fields], "nvext": {"engine_data": data if engine is None else engine}}


def logprobs_of(last: float | None) -> dict[str, Any]:
    """vLLM's answer with a last logprob of this kind."""
    return vllm(logprobs={"content": [{"logprob": -0.5}, {"logprob": last}]})


def engine_of(logprobs: list[float | None]) -> dict[str, Any]:
    """Dynamo's answer with these logprobs."""
    return dynamo({"completion_token_ids": SAMPLED, "completion_logprobs": logprobs})


async def turn(dialect: str, *bodies: Any) -> Session:
    """Plays one turn for each body, which a real server answers in order."""
    queue = [body if isinstance(body, bytes) else msgspec.json.encode(body) for body in bodies]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = queue.pop(0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    with serving(app) as url:
        settings = TransportConfig(base_url=url, retries=0)
        kind: type[VllmTransport | DynamoTransport] = VllmTransport if dialect == "vllm" else DynamoTransport
        # What the probe would have found: these servers answer one thing only.
        info = ServerInfo(dialect=dialect, model="m", token_route="/v1/completions", reports_prompt_ids=True)
        carrier = kind(client_of(settings), info)
        model = ServedModel(transport=carrier, info=info, codec=ByteCodec(), config=EngineConfig())
        session = Session(model, "s")
        try:
            history: list[Any] = [user("a")]
            for _ in bodies:
                history += [await session.turn(history), user("c")]
        finally:
            await carrier.aclose()
        return session


@pytest.mark.parametrize(
    ("dialect", "body", "error", "said"),
    [
        ("vllm", vllm(logprobs={"content": LOGPROBS["content"][1:]}), MalformedReply, "2 ids but 1 logprobs"),
        ("dynamo", dynamo({"completion_token_ids": SAMPLED, "completion_logprobs": [-1]}), MalformedReply, "2 ids but"),
        ("vllm", vllm(logprobs=None), MalformedReply, "no logprobs"),
        ("dynamo", dynamo({"completion_token_ids": SAMPLED}), MalformedReply, "no logprobs"),
        ("dynamo", dynamo(token_ids=[1, 2]), MalformedReply, "disagree"),
        ("vllm", {"choices": []}, MalformedReply, "no choices"),
        ("dynamo", {"choices": []}, MalformedReply, "no choices"),
        ("vllm", {"error": {"message": "engine is gone"}}, ServerBusy, "engine is gone"),
        ("dynamo", {"error": {"message": "no such field", "code": 400}}, RequestRefused, "no such field"),
        ("vllm", {"object": "error", "error": "overloaded", "code": 503}, ServerBusy, "overloaded"),
        ("vllm", b"<html>bad gateway</html>", MalformedReply, "cannot be read"),
        ("dynamo", b'{"choices": [{"finish', MalformedReply, "cannot be read"),
        ("vllm", vllm(weight_versions=[{"version": 1, "start": 0, "end": 1}]), MalformedReply, "do not cover"),
        ("vllm", vllm(weight_versions=[{"version": 1, "start": 1, "end": 2}]), MalformedReply, "do not cover"),
        ("vllm", logprobs_of(-9999.0), MalformedReply, "logprob 1 is -9999.0, which stands for one that is missing"),
        ("vllm", logprobs_of(None), MalformedReply, "logprob 1 is null"),
        ("vllm", logprobs_of(0.5), MalformedReply, "logprob 1 is 0.5: a probability above 1"),
        ("dynamo", engine_of([-0.5, -9999.0]), MalformedReply, "logprob 1 is -9999.0, which stands for one"),
        ("dynamo", engine_of([-0.5, None]), MalformedReply, "logprob 1 is null"),
        ("vllm", vllm(token_ids=[98, -1]), MalformedReply, "cannot be read.*>= 0"),
        ("vllm", vllm(token_ids=[98, 2**31]), MalformedReply, "cannot be read"),
        ("vllm", {**vllm(), "prompt_token_ids": [2**70]}, MalformedReply, "cannot be read"),
        ("dynamo", dynamo({"completion_token_ids": [98, -1]}), MalformedReply, "cannot be read.*>= 0"),
        ("vllm", b'{"choices": "\xff"}', MalformedReply, "cannot be read"),
        ("vllm", b'{"x": "\\ud800", "choices": []}', MalformedReply, "cannot be read"),
        ("vllm", b'{"choices": [{"finish_reason": "\xed\xa0\x80"}]}', MalformedReply, "cannot be read"),
        ("dynamo", b'{"x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", MalformedReply, "cannot be read"),
        ("vllm", b'{"error": "\xff"}', MalformedReply, "cannot be read|no choices"),
    ],
)
async def test_an_answer_that_cannot_be_trusted_fails_its_turn(
    dialect: str, body: Any, error: type[TransportError], said: str
) -> None:
    """Counts that differ, gaps, errors in disguise and half bodies are errors of the turn that name what is wrong."""
    with pytest.raises(error, match=said):
        await turn(dialect, body)


@pytest.mark.parametrize(
    ("dialect", "body"),
    [("vllm", vllm(token_ids=None)), ("dynamo", dynamo({})), ("dynamo", {**dynamo(), "nvext": None})],
)
async def test_missing_ids_are_not_made_up(dialect: str, body: Any) -> None:
    """Without ids (`engine_data` there but empty, too) the turn is played, is no sample, and is not extended."""
    whole = vllm() if dialect == "vllm" else dynamo()
    session = await turn(dialect, body, whole)
    assert session.turns[1].fallback is FallbackReason.IDS_MISSING
    assert sum(sum(sample.loss_mask) for sample in samples_of_tree(session.trajectory)) == len(SAMPLED)


@pytest.mark.parametrize("dialect", ["vllm", "dynamo"])
async def test_null_content_is_read_from_the_ids(dialect: str) -> None:
    """Where the server's own reading is null, the ids are read here."""
    body = (vllm if dialect == "vllm" else dynamo)(message={"role": "assistant", "content": None})
    session = await turn(dialect, body)
    assert session.trajectory.messages(session.turns[0].node)[-1].text == "b"


async def test_a_mockers_null_logprobs_are_not_numbers() -> None:
    """Ids whose logprobs nothing computes keep their count, each as NaN."""
    body = dynamo({}, logprobs=None)
    body["nvext"] = {"completion_token_ids": SAMPLED, "prompt_token_ids": PROMPT}
    session = await turn("dynamo", body)
    (sample,) = samples_of_tree(session.trajectory)
    assert [math.isnan(x) for x, mask in zip(sample.logprobs, sample.loss_mask, strict=True) if mask] == [True, True]


async def test_an_echo_that_differs_is_a_break() -> None:
    """A token-in prompt echoed in other ids forks the tree at the difference and is counted; both are kept as seen."""
    other = [*PROMPT[:-1], 7, 7]
    choice = {"token_ids": SAMPLED, "prompt_token_ids": other, "logprobs": {"token_logprobs": [-1.0, -1.0]}}
    session = await turn("vllm", vllm(), {"choices": [{**choice, "finish_reason": "stop"}]})
    assert [found.prefix_break for found in session.turns] == [None, True]
    first, second = samples_of_tree(session.trajectory)
    assert first.token_ids.tolist() == [*PROMPT, *SAMPLED]
    assert second.token_ids.tolist() == [*other, *SAMPLED]
