"""`reasoning-gym:NAME`: the package's items and its scorers, through a rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.utils import SYSTEM_PROMPTS

from envs.adapters.reasoning import ReasoningGym
from tests.live.adapters.kit import MARKS, play, refused, said, same_tasks

pytestmark = MARKS

#: Generators that take no time, of each of the package's kinds.
NAMES = (
    *("simple_equations", "caesar_cipher", "letter_counting", "word_sorting", "base_conversion", "spell_backward"),
    *("leg_counting", "chain_sum", "gcd", "fraction_simplification", "time_intervals", "acre", "number_sequence"),
    *("countdown", "mini_sudoku", "n_queens", "maze", "simple_geometry", "family_relationships", "knights_knaves"),
    *("propositional_logic", "syllogism", "coin_flip", "bf", "color_cube_rotation", "complex_arithmetic"),
)


def test_64_rollouts_of_a_mixture(tmp_path: Path) -> None:
    """Two data sets by weight, each with a setting of its own; the record has what was answered."""
    args = ["-a", "weights=2,1", "-a", "leg_counting.max_animals=4", "-a", "system=direct"]
    result = play("reasoning-gym:leg_counting,chain_sum", *args, cwd=tmp_path)
    assert result["turns"] == 64
    assert "tagged" in result["metrics"]


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_the_packages_own(name: str) -> None:
    """Of the right answer, tagged or bare, of another item's, and of none."""
    env = ReasoningGym(name)
    tasks = same_tasks(lambda: ReasoningGym(name), 4)
    data = reasoning_gym.create_dataset(name, seed=7, size=4)
    other = str(data[3]["answer"])
    for task, item in zip(tasks, data, strict=True):
        assert [message.text for message in env.reset(task)] == [item["question"]]
        for answer in (str(item["answer"]), other, "none"):
            own = data.score_answer(answer.strip(), item)
            assert env.step(said(f"I think so.\n<answer>{answer}</answer>")).reward == own
            assert env.step(said(answer)).reward == own


def test_a_mixture_is_the_packages_own() -> None:
    """The same items as its composite data set gives of the seed, scored by the data set that each is of."""
    settings: dict[str, Any] = {"leg_counting.max_animals": 4}
    env = ReasoningGym("leg_counting,chain_sum", weights="3,1", **settings)
    parts = [DatasetSpec("leg_counting", 3, {"max_animals": 4}), DatasetSpec("chain_sum", 1, {})]
    theirs = reasoning_gym.create_dataset("composite", seed=7, size=32, datasets=parts)
    tasks = list(env.tasks(32, 7))
    assert [task["question"] for task in tasks] == [item["question"] for item in theirs]
    assert {task["source"] for task in tasks} == {"leg_counting", "chain_sum"}
    env.reset(tasks[5])
    assert env.step(said(theirs[5]["answer"])).reward == 1.0


def test_the_packages_prompts_are_named() -> None:
    """A system message by its name there, or of one's own; a tag of one's own, or none."""
    task = next(iter(ReasoningGym("gcd").tasks(1, 0)))
    answer = reasoning_gym.create_dataset("gcd", seed=0, size=1)[0]["answer"]
    assert ReasoningGym("gcd", system="default").reset(task)[0].text == SYSTEM_PROMPTS["default"]
    env = ReasoningGym("gcd", system="Be short.", tag="final")
    assert env.reset(task)[0].text == "Be short."
    assert env.step(said(f"<answer>0</answer><final>{answer}</final>")).reward == 1.0


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        ("leg_countin", {}, "did you mean 'leg_counting'"),
        ("GCD", {}, "did you mean 'gcd'"),
        ("basic_arithmetic", {"allow_parentheses": "maybe"}, "Expected `bool`, got `str`"),
        ("gcd,gcd", {}, "twice"),
        ("gcd,", {}, "has a comma with no data set behind it"),
        ("gcd,lcm", {"weights": "1"}, "must be 2 numbers above 0"),
        ("gcd", {"weights": "much"}, "must be numbers with commas"),
        ("gcd", {"max_number": "5"}, "did you mean 'max_numbers'?; it has: min_numbers"),
        (
            "gcd,lcm",
            {"lcd.max_value": "5"},
            "lcd.max_value is of none of the data sets, did you mean 'lcm'?",
        ),
        ("leg_counting", {"min_animals": "50"}, "AssertionError: max_animals must be >= min_animals"),
        ("leg_counting", {"min_animals": "many"}, "leg_counting: -a min_animals='many': Expected `int`, got `str`"),
    ],
)
def test_mistakes_are_one_line(names: str, given: dict[str, str], words: str) -> None:
    """Each says what the package has."""
    assert words in refused(f"reasoning-gym:{names}", **given)


def test_a_task_of_other_settings_is_said() -> None:
    """An item is made anew where it is played: one that has become another is refused, not scored."""
    task = next(iter(ReasoningGym("gcd").tasks(1, 0)))
    with pytest.raises(Exception, match="has another question now"):
        ReasoningGym("gcd", max_numbers=9, min_numbers=8).reset(task)
