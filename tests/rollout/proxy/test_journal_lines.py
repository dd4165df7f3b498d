"""A session's lines: what is read back of them is the session."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.chat.canonical import digest
from rollout.chat.messages import Message
from rollout.config import EngineConfig
from rollout.dialects.types import Call, Said
from rollout.play.served import ServedModel
from rollout.play.session import Ask, Session
from rollout.proxy.journal_lines import Line, Tape
from rollout.proxy.restore import Restored
from rollout.proxy.turns import Turned
from rollout.records import Route, Turn
from rollout.request import WeightSpan
from rollout.store.folder import decode_array, encode_array
from rollout.token_fields import SamplingMask
from rollout.tokens.experts import put_experts
from rollout.tokens.samples import TrainingSample, samples_of_tree
from rollout.tokens.trajectory import Root
from transports.scripted import ScriptedTransport, experts_of, kept_with

_WORDS = [Message(role, text) for role in ("user", "assistant", "tool") for text in ("a", "b")]

#: (conversation, its ids, the completion's ids, whether a line is written now, whether the server told its experts)
_TURNS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(_WORDS), min_size=1, max_size=4),
        st.lists(st.integers(0, 1), min_size=1, max_size=8),
        st.lists(st.integers(0, 1), min_size=1, max_size=4),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


def _session() -> Session:
    transport = ScriptedTransport([])
    return Session(ServedModel(transport=transport, info=transport._info, codec=None, config=EngineConfig()), "s")


def _play(
    session: Session, messages: list[Message], prompt: list[int], completion: list[int], told: bool = False
) -> Turned:
    """One turn, as a server that reports any ids at all makes it."""
    tree = session.trajectory
    before = len(tree.nodes)
    root = 0 if tree.roots else tree.add_root(Root(tools=[{"name": "run"}], tools_key=b"t", args_key=b"a"))
    end = tree.add_prompt(root, messages, [digest(message) for message in messages], prompt).end
    message = Message("assistant", f"said {len(session.turns)}")
    versions = (WeightSpan("7", 0, len(completion)),)
    node = tree.add_sampled(end, message, digest(message), completion, [-0.5] * len(completion), versions)
    if told:
        tree.nodes[node].sampling_mask = SamplingMask.of(map(kept_with, completion))
        put_experts(tree, node, experts_of([*prompt, *completion][:-1]), 0, before)
    turn = Turn(route=Route.MESSAGE_IN, node=node, prompt_tokens=len(prompt), completion_tokens=len(completion))
    session.turns.append(turn)
    index = len(session.turns) - 1
    said = Said(message=message, id=f"id{index}", created=1)
    call = Call(model="m", messages=messages)
    ask = Ask(messages=messages)
    return Turned(call=call, dialect="chat", ask=ask, said=said, turn=turn, index=index, request_digest=b"d")


def _arrays(samples: list[TrainingSample]) -> list[Any]:
    return [(each.token_ids, each.loss_mask, each.logprobs, each.weight_versions) for each in samples]


@settings(max_examples=60)
@given(_TURNS)
def test_a_session_is_what_its_lines_say(turns: list[tuple[list[Message], list[int], list[int], bool, bool]]) -> None:
    """Whatever forks or is told later, however many turns a line takes: nodes, leaves, turns, samples are the same."""
    session, restored = _session(), Restored()
    tape = Tape("s")
    for at, (messages, prompt, completion, written, told) in enumerate(turns):
        turned = _play(session, messages, prompt, completion, told)
        if written or at == len(turns) - 1:
            line = msgspec.json.encode(tape.line(session, turned), enc_hook=encode_array)
            restored.add(msgspec.json.decode(line, type=Line, dec_hook=decode_array))
    tree, read = session.trajectory, restored.trajectory()
    assert (read.nodes, read.leaves, restored.turns) == (tree.nodes, tree.leaves, session.turns)
    assert [(root.tools, root.tools_key) for root in read.roots] == [
        (root.tools, root.tools_key) for root in tree.roots
    ]
    samples = [samples_of_tree(each, session.turns) for each in (read, tree)]
    assert _arrays(samples[0]) == _arrays(samples[1])


def test_a_message_is_written_once() -> None:
    """A conversation that comes again with every turn has only its new messages in the next line."""
    session, tape = _session(), Tape("s")
    conversation = [Message("user", "x" * 1000)]
    lines = []
    for at in range(4):
        turned = _play(session, conversation, [*range(at + 2)], [at])
        lines.append(tape.line(session, turned))
        conversation = [*conversation, turned.said.message, Message("user", f"more {at}")]
    assert [len(line.messages) for line in lines] == [2, 2, 2, 2]
    assert sum(len(msgspec.json.encode(line, enc_hook=encode_array)) for line in lines) < 5_000
