"""Which way a prompt goes out: what the planner found, and what the run and its server allow of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from rollout.errors import RolloutError
from rollout.play.served import ServedModel
from rollout.records import Route
from rollout.request import TokenPrompt
from rollout.tokens.prefix import Extend, Fallback, FallbackReason


class FallbackRefused(RolloutError):
    """A turn would go message-in although token-in is required. Nothing was sent."""

    def __init__(self, fallback: Fallback) -> None:
        detail = f" ({fallback.detail})" if fallback.detail else ""
        super().__init__(f"token-in is required, and this turn cannot: {fallback.reason}{detail}")
        self.reason = fallback.reason


class Outgoing(msgspec.Struct, kw_only=True):
    """A prompt that is ready to be sent."""

    plan: Extend | Fallback
    route: Route
    prompt: TokenPrompt | None = None
    """On token-in."""
    bridge_ids: Sequence[int] = ()
    """On token-in from turn 2 on: what the bridge appended."""
    bridge: str | None = None
    previous: int | None = None
    """The sampled node of the turn before, if any."""


def allowed(plan: Extend | Fallback, model: ServedModel) -> Extend | Fallback:
    """The plan, where the run and its server allow it. A first turn, and one that falls back, have no ids to send."""
    match plan:
        case Fallback(reason=FallbackReason.FIRST_TURN, previous=None):
            return plan
        case Extend(node=node, tail=[_, *_]):
            previous: int | None = node
        case Extend():  # the very prompt that was sent before: nothing was sampled that it goes on from
            previous = None
        case Fallback(previous=previous):
            pass
    if model.config.mode == "mito":
        reason, detail = FallbackReason.DISABLED, ""
    elif model.info.token_route is None:
        reason, detail = FallbackReason.NO_TOKEN_ROUTE, ""
    elif isinstance(plan, Extend) and model.codec is None:
        reason, detail = FallbackReason.BRIDGE_DECLINED, "no local tokenizer and no /tokenize: name one by --tokenizer"
    else:
        return plan
    return Fallback(reason=reason, detail=detail, previous=previous, depth=plan.depth)
