"""What adapters share: functions of the user's, the numbers that they give, and names that were meant."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.adapters.common import function, nearest, reward
from rollout.errors import ConfigError

FUNCTIONS = """
def judge(row, text, *more, strict=False):
    return 1


class Scorer:
    def __call__(self, row, text):
        return 1


def short(text):
    return 1


later, bound, thing = Scorer(), Scorer().__call__, 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "adapter_functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["judge", "later", "bound", "Scorer"])
def test_whatever_can_be_called_with_it_is_a_function(folder: Path, name: str) -> None:
    """Further arguments that have defaults, objects, methods; a class is made into an object by its caller."""
    assert callable(function("reward", f"adapter_functions.py:{name}", "row", "text"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adapter_functions.py:short", "takes (text), and is called with (row, text)"),
        ("adapter_functions.py:thing", "has no function 'thing'"),
        ("adapter_functions.py:JUDGE", "did you mean 'judge'?"),
        ("adapter_functions.py", "must be file.py:function"),
        ("", "must be file.py:function"),
    ],
)
def test_a_function_that_cannot_be_called_is_told_before_it_is(folder: Path, spec: str, words: str) -> None:
    """One that takes less would fail every rollout, after the model was asked."""
    with pytest.raises(ConfigError) as raised:
        function("reward", spec, "row", "text")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "given", [0.5, True, 1, np.float32(0.5), np.int64(3), np.bool_(True), np.array(0.5), Decimal("0.5")]
)
def test_a_reward_is_whatever_a_step_may_give(given: Any) -> None:
    """Scalars of numpy among them."""
    assert reward("the judge", given) == float(given)


@pytest.mark.parametrize("given", [None, "0.5", {"reward": 1}, [1.0], float("nan"), float("inf")])
def test_what_is_no_reward_is_refused_by_name(given: Any) -> None:
    """It is the function's fault, and the line says so."""
    with pytest.raises(TypeError, match=r"^the judge gave .* number belongs$"):
        reward("the judge", given)


@pytest.mark.parametrize(
    ("name", "meant"), [("usedcar", "UsedCar-v0-balanced"), ("FrosenLake", "FrozenLake"), ("zzz", None), ("", None)]
)
def test_the_name_that_was_meant(name: str, meant: str | None) -> None:
    """Whatever its case, and though more stands behind it."""
    said = nearest(name, ["FrozenLake", "UsedCar-v0-balanced", "UsedCar-v0-balanced-raw"])
    assert said == (f", did you mean {meant!r}?" if meant else "")
