"""What an environment answers is read, or refused in words that name it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from rollout.chat.messages import user
from rollout.env import Env, Step
from rollout.play.answers import (
    own_method,
    read_blocks,
    read_max_tokens,
    read_messages,
    read_score,
    read_step,
    read_tools,
)
from rollout.play.faults import EnvironmentFault


class Nonsense:
    """A value whose every use raises."""

    def __bool__(self) -> bool:
        sys.exit(3)

    def __iter__(self) -> Any:
        raise KeyboardInterrupt

    def __len__(self) -> int:
        raise RuntimeError("no length")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (None, "step must return a Step, not NoneType (a `return` is missing?)"),
        (([user("x")], 1.0, True), "step must return a Step, not tuple"),
        ({"done": True}, "not dict"),
        (Step, "not StructMeta"),
        (Step(done=True, reward="1"), "str where a number belongs"),  # type: ignore[arg-type]
        (Step(done=True, reward=float("nan")), "nan where a finite number belongs"),
        (Step(done=True, reward=None), "NoneType where a number belongs"),  # type: ignore[arg-type]
        (Step(done=True, metrics={"why": "good"}), "metric 'why' gave str where a number belongs"),  # type: ignore[dict-item]
        (Step(done=True, metrics=[1.0]), "gave metrics as list"),  # type: ignore[arg-type]
        (Step(messages=["next"]), "a message that cannot be read"),
        (Step(messages=user("next")), "step must give a list of messages, not Message"),  # type: ignore[arg-type]
        (Step(messages=None), "not NoneType"),  # type: ignore[arg-type]
        (Step(conversation="all"), "not str"),
        (Step(done=Nonsense()), "what step gave cannot be read: SystemExit: 3"),  # type: ignore[arg-type]
        (Step(done=np.array([True, False])), "what step gave cannot be read: ValueError"),  # type: ignore[arg-type]
    ],
)
def test_a_step_that_is_none_is_named(step: Any, said: str) -> None:
    """What was given, in place of what belongs there."""
    with pytest.raises(EnvironmentFault) as fault:
        read_step(step)
    assert said in str(fault.value)


def test_numbers_of_numpy_are_numbers() -> None:
    """In rewards, metrics, scores, lengths and flags."""
    answer = read_step(Step(done=np.bool_(True), reward=np.float32(0.5), metrics={"n": np.int64(3)}))  # type: ignore[arg-type, dict-item]
    assert (answer.done, answer.reward, answer.metrics) == (True, 0.5, {"n": 3.0})
    assert read_score(np.float64(0.25)) == 0.25
    env = Env()
    env.max_tokens = np.int32(7)  # type: ignore[assignment]
    assert read_max_tokens(env) == 7


@pytest.mark.parametrize("messages", ["hello", {"role": "user", "content": "hi"}, None, 3, iter([]), {user("x").text}])
def test_messages_come_in_a_list(messages: Any) -> None:
    """One message, a text or a generator is not one."""
    with pytest.raises(EnvironmentFault, match="reset must give a list of messages"):
        read_messages(messages, "reset")


class Raising(Env):
    """Each of its properties raises."""

    @property
    def tools(self) -> Any:
        raise ConnectionError("no tools")

    @property
    def max_tokens(self) -> Any:  # type: ignore[override]
        sys.exit(1)

    @property
    def blocks(self) -> Any:  # type: ignore[override]
        raise KeyboardInterrupt

    @property
    def score(self) -> Any:
        raise LookupError


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda env: read_tools(env, []), "env.tools cannot be read: ConnectionError: no tools"),
        (read_max_tokens, "env.max_tokens cannot be read: SystemExit: 1"),
        (read_blocks, "env.blocks cannot be read: KeyboardInterrupt"),
        (lambda env: own_method(env, "score"), "env.score cannot be read: LookupError"),
    ],
)
def test_a_property_that_raises_is_named(read: Any, said: str) -> None:
    """It is the environment's fault, with what it raised."""
    with pytest.raises(EnvironmentFault) as fault:
        read(Raising())
    assert said in str(fault.value)
    assert fault.value.raised is not None


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("search", "must be a list of tools, not str"),
        ({"name": "x"}, "must be a list of tools, not dict"),
        ([{"name": "x"}, "y"], r"env.tools\[1\] must be a mapping, not str"),
        ([{"name": {1, 2}}], "env.tools cannot be sent: name is of type set"),
        (Nonsense(), "env.tools cannot be read"),
    ],
)
def test_tools_that_are_none_are_named(tools: Any, said: str) -> None:
    """Before they are sent anywhere."""
    env = Env()
    env.tools = tools
    with pytest.raises(EnvironmentFault, match=said):
        read_tools(env, [])


def test_tools_that_stay_the_same_are_read_once() -> None:
    """The same list is given again, so that nothing is made of it a second time; a change is seen, also in place."""
    env = Env()
    env.tools = [{"name": "x"}]
    first = read_tools(env, [])
    assert first == [{"name": "x"}]
    assert read_tools(env, first) is first
    env.tools[0]["name"] = "y"
    assert read_tools(env, first) == [{"name": "y"}]


@pytest.mark.parametrize("wanted", [0, -1, 2.5, "7", True])
def test_a_length_that_is_none_is_named(wanted: Any) -> None:
    """A completion has one token at least."""
    env = Env()
    env.max_tokens = wanted
    with pytest.raises(EnvironmentFault, match=r"env\.max_tokens must be a number from 1 on"):
        read_max_tokens(env)
