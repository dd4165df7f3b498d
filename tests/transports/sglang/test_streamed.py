"""SGLang's route as Dynamo 1.6.1 serves it: bodies and events as they were seen on its wire."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollout.errors import ConnectionFailed, MalformedReply, RequestRefused, ServerBusy
from rollout.request import Request, TokenPrompt
from transports.http.client import Answer
from transports.sglang.streamed import read_stream, stream_body


def request(**fields: Any) -> Request:
    return Request(prompt=TokenPrompt([1, 2]), request_id="r1", session_id="s1", **fields)


def event(ids: list[int], done: int, reason: str | None = None, **changes: Any) -> dict[str, Any]:
    """As the mocker sends it: one id an event, and how many there are by then."""
    meta = {
        "id": "x",
        "finish_reason": None if reason is None else {"type": reason},
        "prompt_tokens": 2,
        "completion_tokens": done,
        "output_token_logprobs": [[-0.5, one, None] for one in ids],
    }
    return {"output_ids": ids, "meta_info": {**meta, **changes}}


def answered(*events: Any, end: bytes = b"data: [DONE]\n\n") -> Answer:
    body = b"".join(b"data: " + msgspec.json.encode(one) + b"\n\n" for one in events)
    return Answer(200, body + end, 0.1)


def test_a_body_is_sglangs_streamed_and_without_a_name() -> None:
    """A completion is cut to the context where it is known; where nothing says how long it may be it is refused."""
    body = stream_body(request(max_tokens=9, sampling={"top_k": 0, "seed": 3}, stop_token_ids=[7]), 8)
    assert msgspec.json.decode(msgspec.json.encode(body)) == {
        "input_ids": [1, 2],
        "sampling_params": {"top_k": -1, "sampling_seed": 3, "max_new_tokens": 6, "stop_token_ids": [7]},
        "return_logprob": True,
        "session_id": "s1",
        "stream": True,
    }
    with pytest.raises(RequestRefused, match="--max-tokens"):
        stream_body(request(), None)


def test_events_are_read_as_one_answer() -> None:
    """Whether an event has one id or more; what is behind the end is passed over."""
    reply = read_stream(
        answered(event([5], 1), event([6, 7], 3), event([], 3, "stop", cached_tokens=1), end=b": x\ndata: [DONE]\n\n{")
    )
    assert (reply.completion_ids, reply.logprobs) == ([5, 6, 7], [-0.5, -0.5, -0.5])
    assert (reply.finish_reason, reply.prompt_tokens, reply.cached_tokens) == ("stop", 2, 1)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (answered(event([5], 1), {"error": {"message": "Internal server error"}}), ServerBusy, "Internal server error"),
        (answered(event([5], 1), end=b""), ConnectionFailed, "ends after 1 tokens"),
        (answered(), ConnectionFailed, "ends after 0 tokens"),
        (answered(event([5], 1), event([6], 3, "stop")), MalformedReply, "3 tokens were sampled, and 2 came"),
        (answered(event([5], 1, "stop", output_token_logprobs=[])), MalformedReply, "1 ids but 0 logprobs"),
        (answered(event([5], 1, "stop", output_token_logprobs=[[-1, 6, None]])), MalformedReply, "other tokens"),
        (answered(event([5], 1, "stop", output_token_logprobs=[[None, 5, None]])), MalformedReply, "cannot be used"),
        (answered(event([-1], 1, "stop")), MalformedReply, "an event is no answer"),
        (answered(end=b"data: {\n\n"), MalformedReply, "an event is no answer"),
    ],
)
def test_what_is_not_whole_is_an_error(answer: Answer, error: type[Exception], said: str) -> None:
    """A worker that went in the middle may be asked again; what does not fit together may not."""
    with pytest.raises(error, match=said):
        read_stream(answer)


def test_no_experts_and_masks_are_asked_for() -> None:
    """The samples of a run that wants them say that they are not known."""
    asked = request(max_tokens=9, routed_experts_from=0, sampling_mask=True)
    assert stream_body(asked, 8).keys() == stream_body(request(max_tokens=9), 8).keys()
