"""The fidelity kit finds what is wrong, and finds nothing where nothing is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from benchmarks import fidelity
from benchmarks.fidelity import Cell, unexplained
from benchmarks.kit.completions import kinds
from benchmarks.kit.families import make_family
from benchmarks.kit.play import Outcome, Player
from benchmarks.kit.shapes import SHAPES
from rollout.codec.template import StandInBridge
from rollout.codec.types import Bridged
from rollout.tokens import samples

SHAPE = {shape.name: shape for shape in SHAPES}


async def play(family: str, shape: str, kind: str = "canonical") -> Outcome:
    player = Player(make_family(family))
    made = next(found for found in kinds(player.stop_ids) if found.name == kind)
    outcome = await player.play(SHAPE[shape], made, seed=0)
    assert outcome is not None
    return outcome


@pytest.mark.parametrize("family", ["qwen3", "glm-4.5", "template:chatml-tools", "template:stop-is-next-role"])
@pytest.mark.parametrize("shape", ["user", "parallel calls", "special text, tool"])
async def test_families_extend(family: str, shape: str) -> None:
    """Both later turns go token-in, and nothing is wrong with them."""
    outcome = await play(family, shape)
    assert (outcome.extended, outcome.broken, outcome.fallbacks.total()) == (2, [], 0)


@pytest.mark.parametrize("kind", ["other ids", "invalid UTF-8", "cut in text", "stop 2", "stop 1 alone", "empty"])
async def test_odd_completions_extend(kind: str) -> None:
    """What was sampled decides nothing: it is kept as it is, and the prompt goes on behind it."""
    outcome = await play("template:chatml-tools", "user", kind)
    assert (outcome.extended, outcome.broken) == (2, [])


async def test_provoked_fallbacks_are_told_from_others() -> None:
    """Tools that appear mid-way cost one fallback, and the turn after it extends again."""
    outcome = await play("template:chatml-tools", "tools added")
    assert (outcome.extended, outcome.provoked, outcome.fallbacks.total()) == (1, 1, 0)


async def test_a_template_that_numbers_its_turns_falls_back() -> None:
    """Where nothing that follows a turn is fixed, every later turn goes message-in."""
    outcome = await play("template:numbered", "user")
    assert outcome.extended == 0
    assert outcome.fallbacks.total() == 2
    assert not outcome.broken


async def test_a_wrong_bridge_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge that leaves out one id is broken in the kit's eyes."""
    original = StandInBridge.extend

    def shorter(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        return Bridged(found.ids[1:], found.bridge) if isinstance(found, Bridged) else found

    monkeypatch.setattr(StandInBridge, "extend", shorter)
    outcome = await play("template:chatml-tools", "user")
    assert any("renders on with" in what for what in outcome.broken)


async def test_a_wrong_sample_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that leaves out a sampled token is broken in the kit's eyes."""
    original = samples.samples_of_tree

    def masked(tree: Any) -> Any:
        found = original(tree)
        found[0].loss_mask[found[0].loss_mask.index(1)] = 0
        return found

    monkeypatch.setattr("benchmarks.kit.play.samples_of_tree", masked)
    outcome = await play("template:chatml-tools", "user")
    assert any("trained on in 0 samples" in what for what in outcome.broken)


def test_only_what_is_explained_passes() -> None:
    """Anything broken fails the kit, and any fallback that the list of expected ones does not explain."""
    fell_back = Cell(fallbacks=Counter({"canonical: bridge_declined": 1}))
    assert unexplained({"template:numbered": {"user": fell_back}}) == []
    assert len(unexplained({"qwen3": {"user": fell_back}})) == 1
    assert len(unexplained({"template:numbered": {"user": Cell(broken=Counter({"x": 1}))}})) == 1


def test_the_kit_knows_every_family_of_the_installed_release() -> None:
    """Nothing is left out of the matrix."""
    from renderers import base

    base._populate_registry()
    assert set(base.RENDERER_REGISTRY) - {"default"} <= set(fidelity.family_names())


@pytest.mark.parametrize("family", ["qwen3", "qwen3.5", "glm-4.5", "minimax-m2", "template:strict-alternation"])
async def test_values_of_calls_come_back(family: str) -> None:
    """Indentation, words that are also booleans, nothing, numbers beyond 64 bits and nested lists, three times over."""
    outcome = await play(family, "values")
    assert (outcome.read, outcome.broken) == (3, [])


async def test_a_wrong_reading_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that a reader changes is broken in the kit's eyes."""

    def stripped(reader: Any, sampled: Any) -> Any:
        message = reader.read(sampled)
        calls = tuple(
            msgspec.structs.replace(
                call, function=msgspec.structs.replace(call.function, arguments='{"text": "if x:"}')
            )
            for call in message.tool_calls
        )
        return msgspec.structs.replace(message, tool_calls=calls)

    monkeypatch.setattr("rollout.codec.local.read", stripped)
    outcome = await play("template:chatml-tools", "values")
    assert any("is read as" in what for what in outcome.broken)
