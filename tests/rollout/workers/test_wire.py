"""What an engine and its processes say to each other loses nothing."""

from __future__ import annotations

import contextlib
import math
from array import array
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout import EngineConfig
from rollout.chat.messages import Message
from rollout.observe.stats import Played
from rollout.records import Job, Rollout, Route, StopReason, Turn
from rollout.request import IDS, Sampling, WeightSpan
from rollout.store.folder import encode_rollout
from rollout.token_fields import SamplingMask
from rollout.tokens.trajectory import LOGPROBS, Node
from rollout.workers import wire
from transports.scripted import experts_of, kept_with

#: What JSON can hold, integers of any size included.
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**90), 2**90)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
_IDS = st.lists(st.integers(0, 2**31 - 1), max_size=20)
_TURNS = st.builds(
    Turn,
    route=st.sampled_from(Route),
    sampling=st.none() | st.builds(Sampling, temperature=st.none() | st.floats(0, 2), top_k=st.integers(0, 9)),
    logprobs_mode=st.sampled_from([None, "raw_logprobs", "processed_logprobs"]),
    reward=st.floats(-1, 1),
    metrics=st.dictionaries(st.text(max_size=3), st.floats(-1, 1), max_size=2),
)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    """A rollout whose conversation is partly on the tree."""
    nodes, messages = [], list[Message]()
    for at in range(draw(st.integers(0, 4))):
        ids = draw(_IDS)
        logprobs = [draw(st.floats(max_value=0.0, allow_nan=False, allow_infinity=False)) for _ in ids]
        message = Message("assistant", draw(st.text(max_size=8)) or None)
        spans = (WeightSpan("7", 0, len(ids)),) if ids else ()
        nodes.append(
            Node(
                parent=at - 1,
                message=draw(st.sampled_from([message, None])),
                ids=array(IDS, ids),
                sampled=True,
                logprobs=array(LOGPROBS, logprobs),
                weight_versions=spans,
                digest=bytes(16),
                routed_experts=draw(st.sampled_from([None, experts_of(ids)])),
                sampling_mask=draw(st.sampled_from([None, SamplingMask.of(map(kept_with, ids))])),
            )
        )
        messages.append(nodes[-1].message or message)
    messages += [Message("user", draw(st.text(max_size=8)), extra=draw(st.dictionaries(st.text(), _JSON, max_size=2)))]
    return Rollout(
        id="0-a-0",
        task_id="0-a",
        task_index=0,
        member=0,
        task={"n": 1},
        messages=messages,
        nodes=nodes,
        leaves=list(range(len(nodes))),
        stop=StopReason.DONE,
        metrics={"a": 0.5},
        turns=[draw(_TURNS)],
        step_reward=0.5,
        score=draw(st.none() | st.just(1.0)),
    )


@given(rollouts())
def test_a_rollout_comes_back_as_it_was(rollout: Rollout) -> None:
    """Ids, logprobs, versions, messages, task: the line on disk is the same, byte for byte."""
    before = encode_rollout(rollout)
    frame = wire.encode(wire.ended(3, rollout, Played(turns=4)))
    event = wire.decode_event(frame)
    assert isinstance(event, wire.Ended)
    assert (event.number, event.played.turns) == (3, 4)
    assert encode_rollout(wire.restored(event, {"n": 1})) == before


@given(st.dictionaries(st.text(), _JSON, max_size=3))
def test_any_task_is_played_as_it_is(task: dict[str, Any]) -> None:
    """Whatever JSON can hold is what a process's environment gets, integers beyond 64 bits too."""
    job = Job(task_index=0, task_id="0", task=task, member=0)
    command = wire.decode_command(wire.encode(wire.Play(1, job, False)))
    assert isinstance(command, wire.Play)
    assert msgspec.json.encode(command.job) == msgspec.json.encode(job)


def test_a_logprob_that_is_no_number_stays_none() -> None:
    """NaN, which a server may give, crosses as it is."""
    rollout = Rollout(id="a", task_id="a", task_index=0, member=0)
    rollout.nodes = [Node(parent=-1, ids=array(IDS, [1]), sampled=True, logprobs=array(LOGPROBS, [math.nan]))]
    event = wire.decode_event(wire.encode(wire.ended(1, rollout, Played())))
    assert isinstance(event, wire.Ended)
    assert math.isnan(event.rollout.nodes[0].logprobs[0])


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(base_url="http://a", concurrency="auto", sampling={"temperature": 0.5, "stop": ["a"]}),
        EngineConfig(base_url=["http://a", "http://b"], headers={"x": "y"}, template_args={"enable_thinking": False}),
    ],
)
def test_a_configuration_comes_as_it_was(config: EngineConfig) -> None:
    """One server or several, numbers or auto: a process is told the very settings."""
    command = wire.decode_command(wire.encode(wire.Setup(config, b"env")))
    assert isinstance(command, wire.Setup)
    assert command.config == config


@pytest.mark.parametrize("task", [{"n": object()}, {"n": {1, 2}, "m": lambda: 1}])
def test_a_task_that_is_no_data_is_refused(task: Any) -> None:
    """What another process could not read is an error where it is sent."""
    job = Job(task_index=0, task_id="0", task=task, member=0)
    with pytest.raises((NotImplementedError, TypeError)):
        wire.encode(wire.Play(1, job, False))


@given(st.data())
def test_garbage_is_refused_in_one_way(data: st.DataObject) -> None:
    """Whatever bytes come, and whichever of a message's were changed: a message, or msgspec's error."""
    frame = bytearray(wire.encode(wire.Logged("info", "event", {"text": "a", "number": 1})))
    for at in data.draw(st.lists(st.integers(0, len(frame) - 1), max_size=4)):
        frame[at] = data.draw(st.integers(0, 255))
    for garbage in (bytes(frame), data.draw(st.binary())):
        for decode in (wire.decode_event, wire.decode_command):
            with contextlib.suppress(msgspec.MsgspecError):
                decode(garbage)
