"""A branch is cut where training begins, and nothing that is trained on is lost or doubled."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rollout.cli.app import app
from rollout.errors import ConfigError
from rollout.store.export import samples_of_run
from rollout.tokens.images import SampleImage
from rollout.tokens.samples import SampleTurn, TrainingSample
from rollout.tokens.trajectory import ids_array
from rollout.trainers.openrlhf import responses
from rollout.trainers.prime_rl import training_samples
from rollout.trainers.rows import known_temperatures, member_of, row_of, rows
from rollout.trainers.skyrl import generator_output
from rollout.trainers.slime import sample_dicts
from tests.rollout.store.test_pictures import URL, played, shown, written


def sample_of(mask: list[int], *, task: str = "t", member: int = 0, finish: str = "stop") -> TrainingSample:
    """A branch whose id at i is i."""
    count = len(mask)
    spans = [SampleTurn(start=0, end=count, turn=0, trained=sum(mask), temperature=1.0, finish_reason=finish)]  # type: ignore[arg-type]
    return TrainingSample(
        token_ids=ids_array(range(count)),
        loss_mask=array("b", mask),
        logprobs=array("d", [-0.1 * trained * at for at, trained in enumerate(mask)]),
        weight_versions=["3" if trained else None for trained in mask],
        temperatures=array("d", [1.0] * count),
        turns=spans,
        task_id=task,
        rollout_id=f"{task}-{member}",
    )


MASKS = st.lists(st.integers(0, 1), min_size=1, max_size=12)


@pytest.mark.slow
@given(rollouts=st.lists(st.lists(MASKS, min_size=1, max_size=4), max_size=5))
def test_rows_hold_every_trained_token_once(rollouts: list[list[list[int]]]) -> None:
    """Prompt and response are the branch; the response begins with what is trained on; a rollout's rows are told."""
    samples = [sample_of(mask, member=at) for at, masks in enumerate(rollouts) for mask in masks]
    found = list(rows(samples))
    assert sum(sum(row.mask) for row in found) == sum(sum(one.loss_mask) for one in samples)
    for row in found:
        assert [*row.prompt_ids, *row.response_ids] == row.sample.token_ids.tolist()
        assert row.mask[0] == 1
        assert len(row.response_ids) == len(row.mask) == len(row.logprobs) == len(row.weight_versions)
        trained = [at for start, end in row.spans for at in range(start, end)]
        assert trained == [at for at, one in enumerate(row.sample.loss_mask) if one]
    for member, masks in enumerate(rollouts):
        mine = [row for row in found if row.member == member]
        assert len(mine) == sum(any(mask) for mask in masks)
        assert [row.branch for row in mine] == list(range(len(mine)))
        assert [row.is_last for row in mine] == [False] * (len(mine) - 1) + [True] * bool(mine)


def test_a_token_without_a_logprob_trains_on_nothing() -> None:
    """A server may report null: as NaN it would be the whole batch's loss, so the token is context."""
    sample = sample_of([0, 1, 1, 0, 1])
    sample.logprobs[1] = sample.logprobs[4] = float("nan")
    (row,) = rows([sample])
    assert (row.prompt_ids, row.response_ids) == ([0, 1], [2, 3, 4])
    assert (row.mask, row.logprobs) == ([1, 0, 0], [-0.2, 0.0, 0.0])
    (response,) = responses([sample])
    assert (response["action_ranges"], response["rollout_log_probs"]) == ([(2, 3)], [0.0, 0.0, -0.2, 0.0, 0.0])
    (ours,) = training_samples([sample])
    assert (ours.mask, ours.logprobs) == ([False, False, True, False, False], [0.0, 0.0, -0.2, 0.0, 0.0])
    sample.logprobs[2] = float("-inf")
    assert list(rows([sample])) == []


def test_a_branch_without_a_reward_is_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """No trainer can weigh what nobody judged: as NaN it would be the baseline of its group."""
    unknown, known = sample_of([0, 1], member=0), sample_of([0, 1], member=1)
    unknown.reward = float("nan")
    assert [row.member for row in rows([unknown, known])] == [1]
    assert "samples_without_reward samples=1" in caplog.text


def test_what_a_row_says_of_its_branch() -> None:
    """Its versions, whether it was cut off, and which rollout it is of."""
    row = row_of(sample_of([0, 1, 0, 1], member=12, finish="length"), 1)
    assert (row.versions, row.truncated, row.member) == (["3"], True, 12)
    assert row.spans == [(1, 2), (3, 4)]
    assert not row_of(sample_of([0, 1]), 1).truncated


def test_ids_that_do_not_say_it_are_refused() -> None:
    """A rollout of another make, and a temperature that is not known, are named."""
    sample = sample_of([0, 1])
    sample.rollout_id = "mine"
    with pytest.raises(ValueError, match="'mine' does not say"):
        member_of(sample)
    assert known_temperatures(sample) == [1.0, 1.0]
    sample.temperatures[1] = float("nan")
    with pytest.raises(ValueError, match="give one by"):
        known_temperatures(sample)


@pytest.mark.parametrize("start", [1, -1])
@pytest.mark.parametrize(
    ("of", "name"),
    [
        (training_samples, "prime-rl"),
        (generator_output, "SkyRL"),
        (sample_dicts, "slime"),
        (responses, "OpenRLHF"),
    ],
)
def test_images_are_refused_where_pixels_cannot_be_handed_on(of: Callable[..., Any], name: str, start: int) -> None:
    """Whether or not anybody knows where they stand, by name; rows of one's own say which image is where."""
    images = [SampleImage(start=start, length=1, image="sha256:00")]
    seeing = msgspec.structs.replace(sample_of([0, 0, 1], member=1), images=images)
    with pytest.raises(ConfigError, match=f"^rollout t-1 has images, whose pixels cannot be handed on to {name}: "):
        list(of([sample_of([0, 1]), seeing]))
    (row,) = rows([seeing])
    assert row.sample.images == images
    unseen = msgspec.structs.replace(seeing, loss_mask=array("b", [0, 0, 0]))  # it is no row
    assert list(of([sample_of([0, 1]), unseen])) == list(of([sample_of([0, 1])]))


@pytest.mark.parametrize("name", ["prime-rl", "skyrl", "slime", "openrlhf"])
async def test_a_run_with_images_is_not_exported_there(name: str, tmp_path: Path) -> None:
    """One line and status 2, and no file, not even a draft; formats that name images are written."""
    run = tmp_path / "run"
    await written(run, played(0, shown(URL)))
    (sample,) = samples_of_run(run)
    assert len(sample.images) == 1
    before = sorted(run.iterdir())
    result = CliRunner().invoke(app, ["export", str(run), "--format", name])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert "rollout r0 has images" in line
    assert sorted(run.iterdir()) == before
    assert CliRunner().invoke(app, ["export", str(run), "--format", "jsonl"]).exit_code == 0
    assert sample.images[0].image in (run / "samples.jsonl").read_text()
