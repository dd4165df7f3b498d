"""Settings that are another package's own: what its constructor says of them is checked before it is called."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from envs.adapters.settings import checked, refusal
from rollout.errors import ConfigError


class Lake:
    """As packages write them: some annotated, some by a default only, and one wrongly."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        name: str = "4x4",
        natural=False,
        size: int = 4,
        prices: tuple[int, int] = (1, 0),
        map: list[str] | None = None,
        bound: int = 0.2,  # type: ignore[assignment]
        style: Literal["plain", "round"] = "plain",
    ) -> None: ...


class Open(Lake):
    """Hands on what it does not know."""

    def __init__(self, own: bool = True, **more: Any) -> None: ...


@dataclasses.dataclass
class Config:
    words: list[str] = dataclasses.field(default_factory=list)
    seed: int | None = None


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        (Lake, "nam", "8x8", "lake has no setting 'nam', did you mean 'name'?; it has: name, natural, size,"),
        (Lake, "name", 8, "lake: -a name=8: Expected `str`, got `int`"),
        (Lake, "natural", "maybe", "Expected `bool`, got `str`"),
        (Lake, "size", 4.5, "Expected `int`, got `float`"),
        (Lake, "map", "SF", "Expected `array | null`, got `str`, written as JSON"),
        (Lake, "style", "square", "Invalid enum value 'square'"),
        (Lake, "self", 1, "has no setting 'self'"),
        (Open, "own", None, "Expected `bool`, got `null`"),
        (Config, "words", "+", "Expected `array`, got `str`"),
        (Config, "seed", 1, "has no setting 'seed'; it has: words"),
    ],
)
def test_what_does_not_fit_is_one_line(kind: Any, name: str, value: Any, words: str) -> None:
    """A name that is not there, a value of another type, and what is not the user's to set."""
    with pytest.raises(ConfigError) as raised:
        checked("lake", {name: value}, kind, but=("seed",))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_fits_is_as_it_is_wanted() -> None:
    """A list becomes a tuple; an annotation that its own default contradicts is not believed; names may be open."""
    assert checked("lake", {"prices": [2, 1], "bound": "x", "size": 5}, Lake) == {
        "prices": (2, 1),
        "bound": "x",
        "size": 5,
    }
    assert checked("lake", {"anything": 1}, Open) == {"anything": 1}


def test_what_a_constructor_raises_names_its_settings() -> None:
    """A bare KeyError says nothing to a user."""
    assert str(refusal("lake", {"name": "9x9"}, KeyError("9x9"))) == "lake refuses name='9x9': it knows no '9x9'"
    assert str(refusal("lake", {}, ValueError("a\nb"))) == "lake cannot be made: ValueError: a b"
