"""Lines of a journal -> the session that they are of, as it was: its trajectory, its turns, and what dialects know.

What a session remembers of its answers is not in the journal. Each answer is written once more, to nobody: writing it
is what has a dialect remember it.
"""

from __future__ import annotations

from rollout.chat.messages import Message
from rollout.dialects.answers import Answer, seal
from rollout.dialects.memory import Memory
from rollout.dialects.types import Call
from rollout.proxy.app import PATHS
from rollout.proxy.journal_lines import Answered, EndLine, Line, RewardLine, TurnLine
from rollout.proxy.turns import Turns, said_of
from rollout.records import Turn
from rollout.tokens.trajectory import Node, Root, Trajectory

_DIALECTS = {dialect.name: dialect for dialect in PATHS.values()}


class Restored:
    """One session, as far as its lines were read."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        """By their numbers."""
        self.turns: list[Turn] = []
        self.reward = RewardLine(session="")
        self.end: EndLine | None = None
        """Where it was to end, and the process ended first."""
        self.last_at = 0.0
        """When its last turn was answered, in seconds since the epoch."""
        self._roots: list[Root] = []
        self._nodes: list[Node] = []
        self._leaves: list[int] = []
        self._answers: list[Answered] = []

    def __repr__(self) -> str:
        return f"<Restored {len(self.turns)} turns>"

    def add(self, line: Line) -> None:
        """Takes the next line."""
        match line:
            case TurnLine():
                self._add_turn(line)
            case RewardLine():
                self.reward = line
            case EndLine():
                self.end = line

    def _add_turn(self, line: TurnLine) -> None:
        self.messages += line.messages
        self._roots += line.roots
        for number, node in line.nodes:
            node.message = self.messages[number] if number >= 0 else None
            self._nodes.append(node)
        for at, node in line.shortened:
            node.message = self._nodes[at].message
            self._nodes[at] = node
        for at in line.prompt_ends:
            self._nodes[at].prompt_end = True
        self._leaves += line.leaves
        self.turns += line.turns
        self.last_at = line.at
        if line.answer is not None:
            self._answers.append(line.answer)

    def trajectory(self) -> Trajectory:
        """The tree."""
        return Trajectory.from_parts(self._roots, self._nodes, self._leaves)

    def remember(self, memory: Memory, turns: Turns) -> None:
        """Has a session know its answers when they come back, and its requests when they are sent again."""
        known: dict[str, Answer] = {}
        for answered in self._answers:
            turn = self.turns[answered.turn]
            message = self._nodes[turn.node].message
            before = known.get(answered.previous) if answered.previous is not None else None
            if message is None or (before is None) != (answered.previous is None):
                continue  # of a line that is not there
            call = self._call(answered, before, memory)
            said = said_of(message, turn, answered.id, answered.created, answered.sampling)
            _DIALECTS[answered.dialect].body(said, call, memory)
            if (answer := memory.answer(seal(said.id, message.reasoning_content or ""))) is not None:
                known[said.id] = answer
            turns.restore(call, said, answered.digest, answered.idempotency_key)
        self._answers = []

    def _call(self, answered: Answered, before: Answer | None, memory: Memory) -> Call:
        call = Call(
            model=answered.model,
            messages=[],
            sampling=answered.sampling,
            max_tokens=answered.max_tokens,
            stream=answered.stream,
            include_usage=answered.include_usage,
            instructions=answered.instructions,
            asked=answered.asked,
        )
        if before is not None:
            call.messages, call.mark, call.previous = before.conversation(), before.mark, before
        memory.read([memory.known([self.messages[number] for number in answered.messages])], call, join=False)
        return call
