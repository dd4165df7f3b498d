"""Which ids can this prompt extend? Pure: no await, no token is made here.

`plan` looks up the conversation in the trajectory's tree and answers `Extend` (send the node's ids and
a bridge for the tail) or `Fallback` (send messages, for this reason). It prepares; only
`rollout.play.session` commits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from operator import is_
from typing import Any

import msgspec

from rollout.chat.canonical import Match, digest, value_digest
from rollout.chat.messages import Message
from rollout.request import MessagePrompt, TokenPrompt
from rollout.tokens.trajectory import LaidPrompt, Root, Trajectory


class FallbackReason(StrEnum):
    """Why a prompt went out as messages. Only `first_turn` and `disabled` are not faults."""

    FIRST_TURN = "first_turn"
    """Nothing was sampled yet that it could extend. An agent's conversations each have a first turn: see
    `Planner.several`."""
    NO_MATCH = "no_match"
    """No turn of this trajectory is a prefix of the conversation."""
    HISTORY_REWRITTEN = "history_rewritten"
    TOOLS_CHANGED = "tools_changed"
    TEMPLATE_ARGS_CHANGED = "template_args_changed"
    TAIL_NOT_EXTENDABLE = "tail_not_extendable"
    BRIDGE_DECLINED = "bridge_declined"
    MULTIMODAL = "multimodal"
    IDS_MISSING = "ids_missing"
    NOT_RENDERED = "not_rendered"
    """The first prompt was to be rendered here, and cannot be."""
    NO_TOKEN_ROUTE = "no_token_route"
    DISABLED = "disabled"


#: Reasons that are no fault: nothing to extend yet, or the user asked for message-in.
EXPECTED_FALLBACKS = frozenset({FallbackReason.FIRST_TURN, FallbackReason.DISABLED})


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation that is to be sent, with what its place in the tree needs."""

    messages: Sequence[Message]
    digests: Sequence[bytes]
    """One per message."""
    root: Root


class Extend(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt is the ids up to `node`, and a bridge for the messages of `tail`."""

    node: int
    tail: Sequence[Message]
    """Empty where the very prompt was sent before: its ids go out again."""
    depth: int
    """How many messages the node's branch covers."""


class Fallback(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt goes out as messages."""

    reason: FallbackReason
    detail: str = ""
    previous: int | None = None
    """The sampled node whose messages this prompt starts with, if any: what a break is measured against."""
    depth: int = 0
    """How many messages that node's branch covers."""


class LastTurn(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's last turn left for the next one, which mostly goes on from it, so that what is old is free.

    Whoever commits a turn makes it, and hands it to whatever can do with it: to the planner, to the tree, to the next
    request. A turn that goes on from another one is planned all the same, only from further above.
    """

    root: int
    messages: Sequence[Message]
    """The conversation, with the answer."""
    digests: Sequence[bytes]
    prefixes: Sequence[int]
    """The prefix of the tree that ends in each of those messages."""
    node: int
    """The answer's."""
    received: TokenPrompt | None
    """The prompt as the server had it; None where nobody knows."""
    laid: LaidPrompt | None
    """The last prompt that was laid whole, of this turn or an earlier one."""
    sent: MessagePrompt | None
    """The last prompt that went out as messages, of this turn or an earlier one."""
    sent_tokens: int
    """How many tokens the server said that it has; 0 where it did not."""
    folded: int = 0
    """Late system messages of the conversation that were folded: see `rollout.play.late_system`."""


class LastTurns:
    """The last turns of a session's conversations, the latest first: several may be under way at once.

    Bounded: what goes on from a conversation that is forgotten here is planned all the same, only from further above.
    """

    SIZE = 8

    def __init__(self) -> None:
        self._turns: list[LastTurn] = []

    def __repr__(self) -> str:
        return f"<LastTurns of {len(self._turns)} conversations>"

    def of(self, messages: Sequence[object]) -> LastTurn | None:
        """The turn that a conversation goes on from, told by the very message that it ended with; else the latest."""
        for turn in self._turns:
            at = len(turn.messages) - 1
            if at < len(messages) and messages[at] is turn.messages[at]:
                return turn
        return self._turns[0] if self._turns else None

    def add(self, turn: LastTurn, before: LastTurn | None) -> None:
        """A turn was committed; `before` is the one that it was planned from."""
        if before is not None and len(before.messages) < len(turn.messages) and _goes_on(turn, before):
            self._turns = [other for other in self._turns if other is not before]
        self._turns = [turn, *self._turns[: self.SIZE - 1]]


def _goes_on(turn: LastTurn, before: LastTurn) -> bool:
    return turn.digests[len(before.digests) - 1] == before.digests[-1]


class Planner:
    """Looks up conversations in one trajectory."""

    def __init__(self, trajectory: Trajectory, match: Match = "strict") -> None:
        self._tree = trajectory
        self._match = match
        self.several = False
        """Whether one trajectory has several conversations, as an agent's has: sub-agents, side calls. One in which no
        assistant has spoken is then a new one. An environment has one, and such a one has lost its history."""
        self.sends_images = False
        """Whether the server takes ids with images, and bridges are made here."""
        self.canonicalized = 0
        """Messages whose canonical form was computed: grows with the new messages only."""

    def prompt(
        self,
        messages: Sequence[object],
        tools: Sequence[Mapping[str, Any]],
        template_args: Mapping[str, Any],
        last: LastTurn | None = None,
    ) -> Prompt:
        """Reads a conversation, in any form. Messages that are the same objects as last time are not read again.

        Raises MessageError.
        """
        known = _shared(messages, last.messages) if last is not None else 0
        conversation, digests = list[Message](), list[bytes]()
        if last is not None:
            conversation, digests = list(last.messages[:known]), list(last.digests[:known])
        conversation += map(Message.of, messages[known:])
        digests += map(self._digest, conversation[known:])
        return Prompt(messages=conversation, digests=digests, root=self._root(tools, template_args))

    def plan(self, prompt: Prompt, last: LastTurn | None = None) -> Extend | Fallback:
        """What this prompt can extend. The longest prefix wins, over all branches."""
        tree = self._tree
        root = tree.find_root(prompt.root.tools_key, prompt.root.args_key)
        nothing = None, 0, None, 0
        node, depth, prompt_node, matched = nothing if root is None else self._longest(root, prompt, last)
        if prompt_node is not None:
            node, depth = prompt_node, len(prompt.messages)
        if node is None:
            return self._no_node(prompt, root, matched)
        tail = prompt.messages[depth:]
        if (fault := self._media_fault(node, tail)) is not None:
            return Fallback(reason=FallbackReason.MULTIMODAL, detail=fault, previous=node, depth=depth)
        if not tree.nodes[node].ids_known:
            return Fallback(reason=FallbackReason.IDS_MISSING, previous=node, depth=depth)
        if prompt_node is None and (fault := tail_fault(tail)):
            rewritten = any(m.role == "assistant" for m in tail) and tree.has_children(node)
            reason = FallbackReason.HISTORY_REWRITTEN if rewritten else FallbackReason.TAIL_NOT_EXTENDABLE
            return Fallback(reason=reason, detail=fault, previous=node, depth=depth)
        return Extend(node=node, tail=tail, depth=depth)

    def _media_fault(self, node: int, tail: Sequence[Message]) -> str | None:
        """Why a branch with images or audio goes out as messages; None where it need not."""
        above = self._tree.nodes[node]
        media = [message for message in tail if message.is_multimodal]
        if not above.multimodal and not media:
            return None
        if not self.sends_images:
            return "this server's route of ids takes no images, or no tokenizer is here"
        if not above.placed:
            return "the server does not say where the images stand in the prompt, or they are no images"
        return "only images go with ids" if any(message.images is None for message in media) else None

    def prefixes(self, root: int, digests: Sequence[bytes], last: LastTurn | None) -> list[int]:
        """The prefixes of a conversation that are in the tree: one per message that was sent or said before."""
        goes_on = last is not None and last.root == root and digests[: len(last.digests)] == last.digests
        prefixes = list(last.prefixes) if goes_on and last is not None else []
        prefix = prefixes[-1] if prefixes else -1 - root
        for message in digests[len(prefixes) :]:
            longer = self._tree.prefix_with(prefix, message)
            if longer is None:
                break
            prefixes.append(prefix := longer)
        return prefixes

    def _digest(self, message: Message) -> bytes:
        self.canonicalized += 1
        return digest(message, self._match)

    def _root(self, tools: Sequence[Mapping[str, Any]], template_args: Mapping[str, Any]) -> Root:
        # The same objects as last time are still compared by value: a caller may have changed them in place.
        return Root(
            tools=tools,
            template_args=template_args,
            tools_key=value_digest(tools),
            args_key=value_digest(template_args),
        )

    def _no_node(self, prompt: Prompt, root: int | None, matched: int) -> Fallback:
        """Why no turn is a prefix of this prompt."""
        if any(m.is_multimodal and not (self.sends_images and m.images) for m in prompt.messages):
            return Fallback(reason=FallbackReason.MULTIMODAL)
        if not self._tree.leaves:
            return Fallback(reason=FallbackReason.FIRST_TURN)
        if self.several and not any(message.role == "assistant" for message in prompt.messages):
            return Fallback(reason=FallbackReason.FIRST_TURN)
        if root is not None:
            return Fallback(reason=FallbackReason.HISTORY_REWRITTEN if matched else FallbackReason.NO_MATCH)
        same_tools = any(other.tools_key == prompt.root.tools_key for other in self._tree.roots)
        return Fallback(reason=FallbackReason.TEMPLATE_ARGS_CHANGED if same_tools else FallbackReason.TOOLS_CHANGED)

    def _longest(self, root: int, prompt: Prompt, last: LastTurn | None) -> tuple[int | None, int, int | None, int]:
        """(deepest sampled node, its depth, node where this very prompt ends if sent before, messages matched)."""
        tree, prefixes = self._tree, self.prefixes(root, prompt.digests, last)
        prompt_node = None
        if len(prefixes) == len(prompt.digests) and prefixes:
            ends = (
                n for n in reversed(tree.nodes_at(prefixes[-1])) if tree.nodes[n].prompt_end and tree.nodes[n].ids_known
            )
            prompt_node = next(ends, None)
        for depth in range(len(prefixes), 0, -1):
            nodes = tree.nodes_at(prefixes[depth - 1])
            sampled = next((node for node in reversed(nodes) if tree.nodes[node].sampled), None)
            # A message-in reply without ids still says which turn came before.
            unknown = next((node for node in nodes if node in tree.leaves[-1:]), None)
            if (best := sampled if sampled is not None else unknown) is not None:
                return best, depth, prompt_node, len(prefixes)
        return None, 0, prompt_node, len(prefixes)


def _shared(messages: Sequence[object], last: Sequence[Message]) -> int:
    """How many leading messages are the very objects of the last conversation."""
    if len(messages) >= len(last) and all(map(is_, last, messages)):
        return len(last)
    return next((i for i, (a, b) in enumerate(zip(last, messages, strict=False)) if a is not b), len(messages))


def tail_fault(tail: Sequence[Message]) -> str:
    """Why a tail cannot be bridged; "" where it can.

    A tail is one or more tool messages and then at most one user message, or user messages; system and developer
    messages may stand among or behind them.
    """
    if not tail:
        return "no new message after the assistant's"
    roles = [message.role for message in tail]
    tools = next((i for i, role in enumerate(roles) if role != "tool"), len(roles))
    rest = roles[tools:]
    if any(role not in ("user", "system", "developer") for role in rest):
        return f"a tail of roles {', '.join(roles)}"
    return "several user messages after tool messages" if tools and rest.count("user") > 1 else ""
