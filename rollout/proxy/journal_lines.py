"""A session as lines of a journal: what each turn added to it, so that a journal grows as the session does.

A turn's line holds the nodes that the trajectory got since the line before, the turns that sampled them, and what was
answered. Each message is written once, in the line that has it first, and has a number from then on. Turns that are
under way at once may be in the line of either: a line takes all that was committed by then.

    opened     in sessions.jsonl: whose a key is, by the key's hash
    turn       what a turn added
    reward     what `POST /sessions/ID/reward` said
    end        the session ends, with its line in rollouts.jsonl to come
    closed     in sessions.jsonl: that line is there
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.play.session import Session
from rollout.proxy.turns import Turned
from rollout.records import Turn
from rollout.tokens.trajectory import Node, Root


class Opened(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind", tag="opened"):
    """A session, and whose it is."""

    session: str
    key: str
    """The SHA-256 of its key, in hexadecimal digits. The key itself is nowhere."""
    registered: bool = False
    """Whether `POST /sessions` opened it; else its first request did."""
    name: str = ""
    task: Mapping[str, Any] = {}
    task_id: str = ""
    task_index: int = 0
    member: int = 0
    at: float = 0.0
    """Seconds since the epoch."""


class Closed(msgspec.Struct, kw_only=True, tag_field="kind", tag="closed"):
    """A session has ended, and its line is in rollouts.jsonl. Its key is refused."""

    session: str
    why: str = ""
    """"" where its caller ended it."""


class Answered(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request, and the turn that answers it: what dialects need to know the answer when it comes back."""

    id: str
    """Of the answer: every id that the client got is made of it."""
    turn: int
    """The turn's index."""
    created: int
    dialect: str
    digest: bytes
    """Of the request, as `rollout.proxy.turns` knows it."""
    idempotency_key: str | None = None
    model: str = ""
    previous: str | None = None
    """The answer that the conversation goes on from."""
    messages: list[int] = []
    """The conversation behind that one's, by the numbers of the messages."""
    instructions: str | None = None
    sampling: Mapping[str, Any] = {}
    max_tokens: int | None = None
    stream: bool = False
    include_usage: bool = True
    asked: Mapping[str, Any] = {}


class TurnLine(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind", tag="turn"):
    """What was added since the line before."""

    session: str
    at: float = 0.0
    messages: list[Message] = []
    """New ones; their numbers go on from the line before."""
    roots: list[Root] = []
    nodes: list[tuple[int, Node]] = []
    """New nodes, each with the number of its message, -1 for none; without the message itself."""
    shortened: list[tuple[int, Node]] = []
    """Earlier nodes, by their index, that a fork has cut, or that were told their experts since; they keep their
    messages."""
    prompt_ends: list[int] = []
    """Nodes at which a prompt ends."""
    leaves: list[int] = []
    turns: list[Turn] = []
    answer: Answered | None = None


class RewardLine(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind", tag="reward"):
    """What a session was worth, as its caller says."""

    session: str
    reward: float | None = None
    metrics: dict[str, float] = {}
    rewards: dict[str, float] = {}
    """By the name of the agent that asked."""


class EndLine(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind", tag="end"):
    """A session ends. It is written before the session's line in rollouts.jsonl."""

    session: str
    why: str = ""
    """"" where it was ended by its caller."""


Line = TurnLine | RewardLine | EndLine
SessionLine = Opened | Closed


class Tape:
    """How much of one session is in the journal."""

    def __init__(self, session_id: str, messages: Iterable[Message] = (), session: Session | None = None) -> None:
        """`messages` and `session` are what the journal has of it already."""
        self._id = session_id
        self._messages = list(messages)
        self._numbers = {id(message): number for number, message in enumerate(self._messages)}
        self._ends = _ends(session) if session is not None else (0, 0, 0, 0)
        self._filled = len(session.trajectory.filled) if session is not None else 0

    def __repr__(self) -> str:
        return f"<Tape of {self._id}, {self._ends[3]} turns>"

    def line(self, session: Session, turned: Turned) -> TurnLine:
        """What the session has that no line has yet. It counts as written from here on."""
        tree, written = session.trajectory, len(self._messages)
        roots, nodes, leaves, turns = self._ends
        new = tree.nodes[nodes:]
        line = TurnLine(
            session=self._id,
            at=time.time(),
            roots=tree.roots[roots:],
            nodes=[self._bare(node) for node in new],
            leaves=tree.leaves[leaves:],
            turns=session.turns[turns:],
        )
        line.prompt_ends = [parent for leaf in line.leaves if (parent := tree.nodes[leaf].parent) >= 0]
        if any(node.message is None for node in new):  # a fork has put nodes above earlier ones
            changed = {at for at in range(nodes) if tree.nodes[at].parent >= nodes}
        else:
            changed = set()
        changed |= {at for at in tree.filled[self._filled :] if at < nodes}
        line.shortened = [(at, msgspec.structs.replace(tree.nodes[at], message=None)) for at in sorted(changed)]
        self._filled = len(tree.filled)
        line.answer = self._answered(turned)
        line.messages = self._messages[written:]
        self._ends = _ends(session)
        return line

    def _bare(self, node: Node) -> tuple[int, Node]:
        """A node as it is now, with its message by number."""
        number = -1 if node.message is None else self._number(node.message)
        return number, msgspec.structs.replace(node, message=None)

    def _number(self, message: Message) -> int:
        # By the object: what is known by its bytes is one object, and what is equal may still be written differently.
        number = self._numbers.get(id(message))
        if number is None:
            number = self._numbers[id(message)] = len(self._messages)
            self._messages.append(message)
        return number

    def _answered(self, turned: Turned) -> Answered:
        call, previous = turned.call, turned.call.previous
        known = previous.length if previous is not None else 0
        return Answered(
            id=turned.said.id,
            turn=turned.index,
            created=turned.said.created,
            dialect=turned.dialect,
            digest=turned.request_digest,
            idempotency_key=turned.idempotency_key,
            model=call.model,
            previous=previous.id if previous is not None else None,
            messages=[self._number(message) for message in call.messages[known:]],
            instructions=call.instructions,
            sampling=call.sampling,
            max_tokens=call.max_tokens,
            stream=call.stream,
            include_usage=call.include_usage,
            asked=call.asked,
        )


def _ends(session: Session) -> tuple[int, int, int, int]:
    tree = session.trajectory
    return len(tree.roots), len(tree.nodes), len(tree.leaves), len(session.turns)
