"""What several streams have in common: what nobody took is kept, within bounds, for whoever takes it."""

from __future__ import annotations

from typing import Any

import pytest

from rollout import EngineConfig, Group
from rollout.errors import ConfigError
from rollout.schedule.streams import MOST_UNTAKEN, Streams, check_env
from rollout.servers.weights import Weights
from tests.log_kit import capture_logs


def group(index: int) -> Group:
    return Group(task_id=str(index), task_index=index, task={}, rollouts=[])


def test_untaken_is_bounded_and_emptied_by_who_takes_it() -> None:
    """The oldest are dropped beyond the bound, counted and said; taking leaves it empty."""
    streams = Streams(EngineConfig(), Weights())
    kept = streams.untaken
    with capture_logs() as logs:
        streams.keep_untaken([group(n) for n in range(MOST_UNTAKEN)])
        streams.keep_untaken([group(n) for n in range(MOST_UNTAKEN, MOST_UNTAKEN + 3)])
    assert [one.task_index for one in kept] == list(range(3, MOST_UNTAKEN + 3))
    assert streams.stats.lost_groups == 3
    assert [(line["event"], line["groups"]) for line in logs] == [("untaken_dropped", 3)]
    assert len(streams.take_untaken()) == MOST_UNTAKEN
    assert streams.untaken == kept == []


class Unlookable(type):
    """A metaclass whose classes cannot be looked at."""

    def __getattribute__(cls, name: str) -> Any:
        if name == "step":
            raise RuntimeError("no step")
        return super().__getattribute__(name)


class Hidden(metaclass=Unlookable):
    pass


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (5, "env must be a class of environments, or a function that makes one, not 5"),
        (Hidden, "env cannot be read: RuntimeError: no step"),
    ],
)
def test_what_makes_no_environments_is_refused(env: Any, said: str) -> None:
    """Where it is given, before anything is played with it."""
    with pytest.raises(ConfigError) as refused:
        check_env(env)
    assert str(refused.value) == said
