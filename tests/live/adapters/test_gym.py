"""`gymnasium:ID`: every toy_text environment, and another by two functions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from envs.adapters.gym import _TOYS, Gymnasium, drawn
from tests.live.adapters.kit import MARKS, play, refused, said, same_tasks

pytestmark = MARKS

TOYS = sorted(name for name, spec in gymnasium.registry.items() if "toy_text" in str(spec.entry_point))

CART = """
def describe(env, observation, info):
    return f"The pole leans by {observation[2]:.3f}: left or right?"


def act(env, text):
    if "left" not in text and "right" not in text:
        raise ValueError("left or right?")
    return int("right" in text)
"""


def test_64_rollouts_of_the_frozen_lake(tmp_path: Path) -> None:
    """The tiny model names no action: each episode ends after three answers, and all are counted."""
    result = play("gymnasium:FrozenLake-v1", "-a", "map_name=8x8", "-a", "is_slippery=false", cwd=tmp_path)
    assert result["stops"] == {"done": 64}
    assert "steps" in result["metrics"]


def test_the_package_has_no_other_toys() -> None:
    """Each has its rules and its words."""
    assert len(TOYS) >= 6
    assert {str(gymnasium.spec(name).entry_point).rpartition(":")[2] for name in TOYS} == set(_TOYS)


@pytest.mark.parametrize("name", TOYS)
def test_rewards_are_the_environments_own(name: str) -> None:
    """The same actions from the same seed give the same rewards, and the same end."""
    (task, *_) = same_tasks(lambda: Gymnasium(name))
    env, own = Gymnasium(name), gymnasium.make(name)
    words = _TOYS[str(own.spec.entry_point).rpartition(":")[2]].actions
    own.reset(seed=task["seed"])
    assert own.action_space.n == len(words)
    assert words[0] in env.reset(task)[0].text
    chance = random.Random(0)
    for _ in range(200):
        action = chance.randrange(len(words))
        step = env.step(said(f"I thought of {words[0]}. My action is {words[action].upper()}."))
        _, reward, terminated, truncated, _ = own.step(action)
        assert step.reward == reward
        assert step.done == (terminated or truncated)
        if step.done:
            break
        assert "\x1b" not in step.messages[0].text
    env.close()


def test_a_drawing_says_where_one_is() -> None:
    """Colours become characters, and words where letters are coloured."""
    assert drawn("\n\x1b[41mS\x1b[0mFF\n|\x1b[34;1mR\x1b[0m|\x1b[34m\x1b[43m \x1b[0m\x1b[0m|") == "\n@FF\n|R|@|"
    text = Gymnasium("Taxi-v4").reset({"seed": 3})[0].text
    assert "The taxi is in row 0, column 2. The passenger waits at R; their destination is Y." in text
    assert "|R: |@: :G|" in text


def test_answers_without_an_action_end_it() -> None:
    """They are told what an answer is, change nothing, and end the episode when there are too many in a row."""
    env = Gymnasium("CliffWalking-v1", invalid=2)
    env.reset({"seed": 1})
    step = env.step(said("hmm"))
    assert (step.done, step.messages[0].text) == (False, "Please answer with one of: up, right, down, left.")
    assert not env.step(said("up")).done
    assert not env.step(said("hmm")).done
    assert env.step(said("hmm")).done


def test_two_functions_play_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward of so many steps of CartPole; what the function raises as ValueError is told."""
    (tmp_path / "cart.py").write_text(CART)
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"describe": "cart.py:describe", "act": "cart.py:act"}
    env = Gymnasium("CartPole-v1", **given)
    assert env.reset({"seed": 1})[0].text.startswith("The pole leans by")
    assert env.step(said("forward")).messages[0].text == "left or right?"
    steps = [env.step(said(way)) for way in ("left", "right", "left")]
    assert [step.reward for step in steps] == [1.0] * 3
    assert steps[-1].metrics == {"steps": 3.0, "invalid": 1.0, "truncated": 0.0}


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("FrozenLake-v9", {}, "FrozenLake-v9"),
        ("FrosenLake-v1", {}, "FrozenLake"),
        ("CartPole-v1", {}, "-a describe=file.py:name"),
        ("frozenlake-v1", {}, "did you mean 'FrozenLake-v1'"),
        ("FrozenLake-v1", {"slippery": "false"}, "has no setting 'slippery', did you mean 'is_slippery'?; it has:"),
        ("FrozenLake-v1", {"is_slippery": "maybe"}, "-a is_slippery='maybe': Expected `bool`, got `str`"),
        ("FrozenLake-v1", {"map_name": "9x9"}, "refuses map_name='9x9': it knows no '9x9'"),
        ("FrozenLake-v1", {"desc": "SF"}, "Expected `array | null`, got `str`, written as JSON"),
        ("FrozenLake-v1", {"render_mode": "human"}, "has no setting 'render_mode'"),
        ("Blackjack-v1", {"natural": "maybe"}, "-a natural='maybe': Expected `bool`"),
        ("CartPole-v1", {"describe": "json:loads", "act": "math:hypot"}, "is called with (env, observation, info)"),
        (
            "CartPole-v1",
            {"describe": "builtins:print", "act": "builtins:print"},
            "describe gave NoneType, not the text",
        ),
        ("Taxi-v4", {"invalid": "0"}, "must be 1 or more"),
    ],
)
def test_mistakes_are_one_line(name: str, given: dict[str, str], words: str) -> None:
    """Each says what to do."""
    assert words in refused(f"gymnasium:{name}", **given)
