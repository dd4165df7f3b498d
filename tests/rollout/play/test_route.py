"""What the run and its server allow of a plan."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import user
from rollout.config import EngineConfig
from rollout.play.route import FallbackRefused, allowed
from rollout.play.served import ServedModel
from rollout.tokens.prefix import Extend, Fallback, FallbackReason
from rollout.transport import ServerInfo


def model(*, mode: Any = "tito", token_route: str | None = "/v1/completions", codec: bool = True) -> ServedModel:
    return ServedModel(
        transport=cast(Any, None),
        info=ServerInfo(dialect="vllm", model="m", token_route=token_route),
        codec=cast(Any, object() if codec else None),
        config=EngineConfig(mode=mode),
    )


FIRST = Fallback(reason=FallbackReason.FIRST_TURN)
BROKEN = Fallback(reason=FallbackReason.HISTORY_REWRITTEN, previous=3, depth=2)
AGAIN = Extend(node=4, tail=[], depth=3)
ON = Extend(node=5, tail=[user("x")], depth=3)

MODELS = [model(mode="mito"), model(token_route=None), model(codec=False), model()]


@given(st.sampled_from(MODELS))
def test_a_first_turn_is_one_everywhere(served: ServedModel) -> None:
    """Whatever the run and its server are, there is nothing to go on from."""
    assert allowed(FIRST, served) is FIRST


@pytest.mark.parametrize(
    ("served", "reason"),
    [
        (MODELS[0], FallbackReason.DISABLED),
        (MODELS[1], FallbackReason.NO_TOKEN_ROUTE),
        (MODELS[2], FallbackReason.BRIDGE_DECLINED),
    ],
)
@pytest.mark.parametrize(("plan", "previous"), [(ON, 5), (AGAIN, None)])
def test_what_cannot_extend_falls_back_and_says_why(
    served: ServedModel, reason: FallbackReason, plan: Extend, previous: int | None
) -> None:
    """It keeps the turn that it would have gone on from, which a break is measured against; one sent again has none."""
    found = allowed(plan, served)
    assert isinstance(found, Fallback)
    assert (found.reason, found.previous, found.depth) == (reason, previous, 3)


def test_where_nothing_forbids_it_the_plan_stands() -> None:
    """An extension as it is, and a fallback with its own reason, also without a codec."""
    for plan in (ON, AGAIN, BROKEN):
        assert allowed(plan, model()) is plan
    assert allowed(BROKEN, model(codec=False)) is BROKEN
    assert allowed(BROKEN, model(mode="mito")) == Fallback(reason=FallbackReason.DISABLED, previous=3, depth=2)


def test_a_refused_fallback_names_its_reason() -> None:
    """With its detail, where it has one."""
    text = str(FallbackRefused(Fallback(reason=FallbackReason.BRIDGE_DECLINED, detail="no way")))
    assert text == "token-in is required, and this turn cannot: bridge_declined (no way)"
