"""TRL wants so many rollouts of each prompt, however its sampler hands the prompts out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import ConfigError
from rollout.trainers.trl import prompts, task_of
from rollout.trainers.trl.prompts import Sampler, Wanted, wanted

VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=4)


@given(st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=3))
def test_a_prompt_is_its_task(tasks: list[dict[str, Any]]) -> None:
    """What goes through a data set comes back as it was."""
    assert [task_of(row["prompt"]) for row in prompts(tasks)] == tasks


@pytest.mark.parametrize("prompt", ["What is 2 + 2?", "[1]", [{"role": "user", "content": "hi"}], None])
def test_a_prompt_of_another_kind_is_refused_with_the_remedy(prompt: Any) -> None:
    """One line says how the data set is to be made, or what to give instead."""
    with pytest.raises(ConfigError, match=r"trl\.prompts\(tasks\), or give rollout_func a task=") as caught:
        task_of(prompt)
    assert "\n" not in str(caught.value)


def test_a_task_that_json_has_no_form_for_is_refused() -> None:
    """Before anything is trained."""
    with pytest.raises(ConfigError, match="cannot be written"):
        prompts([{"where": object()}])


def jobs(given: list[str], generations: int, rows: int, *, training: bool = True) -> list[Wanted]:
    """Of a trainer's first batch."""
    return wanted(given, generations, once=Sampler().once(given, generations, rows, training=training))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 4), st.booleans())
def test_a_whole_batch_has_its_rows_in_either_form(numbers: list[int], generations: int, once: bool) -> None:
    """Prompts that come once and prompts that come as often as they are wanted give the same rows in the same order,
    also where the data set has equal prompts side by side."""
    names = [str(number) for number in numbers]
    copies = [name for name in names for _ in range(generations)]
    found = jobs(names if once else copies, generations, len(copies))
    assert [job.prompt for job in found for _ in range(job.rollouts)] == copies
    assert all(1 <= job.rollouts <= generations for job in found)


@given(st.integers(1, 8), st.integers(1, 4), st.booleans(), st.integers(1, 64))
def test_a_small_evaluation_goes_by_its_repetitions(count: int, generations: int, once: bool, room: int) -> None:
    """Before any whole batch has told: distinct prompts that follow themselves were repeated, others were not."""
    names = [str(number) for number in range(count)]
    copies = [name for name in names for _ in range(generations)]
    found = jobs(names if once else copies, generations, len(copies) + room, training=False)
    assert [job.prompt for job in found for _ in range(job.rollouts)] == copies


def test_copies_are_played_as_one_group() -> None:
    """A group's rewards and its stragglers are of one task."""
    assert jobs(["a", "a", "b", "b"], 2, 4) == [Wanted("a", 2), Wanted("b", 2)]
    assert jobs(["a", "b"], 2, 4) == [Wanted("a", 2), Wanted("b", 2)]


def test_equal_neighbours_of_a_data_set_are_groups_of_their_own() -> None:
    """Two rows of a data set with one prompt are two groups, as TRL counts them."""
    assert jobs(["a"] * 4, 2, 4) == [Wanted("a", 2), Wanted("a", 2)]
    assert jobs(["a"] * 2, 2, 4) == [Wanted("a", 2), Wanted("a", 2)]


def test_a_process_of_several_may_have_a_part_of_a_group() -> None:
    """A row is wanted for each prompt that it was handed."""
    assert jobs(["a", "b", "b"], 2, 3) == [Wanted("a", 1), Wanted("b", 2)]


def test_what_a_whole_batch_told_holds_for_the_last_one() -> None:
    """An evaluation's last batch has any size: half a batch of repeated prompts is not a whole one of others, and a
    part of a group is not a prompt that comes once."""
    sampler = Sampler()
    assert not sampler.once(["a", "a", "b", "b"], 2, 4, training=False)
    assert not sampler.once(["c", "c"], 2, 4, training=False)
    assert not sampler.once(["c"], 2, 4, training=False)
    assert "repeated" in repr(sampler)
    sampler = Sampler()
    assert sampler.once(["a", "a"], 2, 4, training=True)
    assert sampler.once(["c", "c", "d"], 2, 8, training=False)
