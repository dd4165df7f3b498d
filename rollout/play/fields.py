"""Routed experts and sampling masks of one trajectory: what each turn asks for, and where its answer goes.

A server that reports none is no fault: the samples say which positions are known. One that reports others than were
asked for is a turn's fault, as one is that reports more logprobs than ids.
"""

from __future__ import annotations

from rollout.config import EngineConfig
from rollout.request import Reply, Request
from rollout.tokens.experts import known_until, put_experts
from rollout.tokens.prefix import Extend, Fallback
from rollout.tokens.trajectory import Trajectory
from rollout.tokens.verify import check_fields


class TokenFields:
    """What one trajectory's turns ask for and get."""

    def __init__(self, tree: Trajectory, config: EngineConfig) -> None:
        self._tree = tree
        self._experts = config.routed_experts
        found = (node.routed_experts for node in tree.nodes if node.routed_experts is not None)
        first = next(found, None) if self._experts else None
        self._width = first.width if first is not None else None
        """How many experts a position has; None until one is known."""

    def __repr__(self) -> str:
        return f"<TokenFields {self._width or 'no'} experts a position>"

    def experts_from(self, plan: Extend | Fallback) -> int | None:
        """The position from which a turn asks for experts; None where the run wants none.

        All of them where the prompt goes out as messages: nobody knows yet which ids the server will make of it.
        """
        if not self._experts:
            return None
        return known_until(self._tree, plan.node) if isinstance(plan, Extend) else 0

    def checked(self, reply: Reply, request: Request) -> Reply:
        """An answer with what was asked for, and nothing else. Raises MalformedReply."""
        reply = check_fields(reply, request, self._width)
        if self._width is None and reply.routed_experts is not None:
            self._width = reply.routed_experts.width
        return reply

    def commit(self, node: int, reply: Reply, request: Request, before: int) -> None:
        """Puts what a turn brought on the tree. `before` is how many nodes there were before it."""
        self._tree.nodes[node].sampling_mask = reply.sampling_mask
        start = request.routed_experts_from
        if reply.routed_experts is not None and start is not None and self._tree.nodes[node].ids_known:
            put_experts(self._tree, node, reply.routed_experts, start, before)
