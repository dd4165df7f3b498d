"""Batches hold every sample's tokens, and say where each ends."""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.token_fields import Blob, RoutedExperts, SamplingMask
from rollout.tokens.batch import joined, pack, pad
from rollout.tokens.sample_fields import SampleExperts, SampleMask
from rollout.tokens.samples import SampleTurn, TrainingSample, version_number
from rollout.tokens.trajectory import ids_array


def sample(length: int, advantage: float | None = 0.5) -> TrainingSample:
    return TrainingSample(
        token_ids=ids_array(range(1, length + 1)),
        loss_mask=array("b", [0] + [1] * (length - 1)),
        logprobs=array("d", [-0.25] * length),
        weight_versions=[None, *["7"] * (length - 1)],
        temperatures=array("d", [1.0] + [0.5] * (length - 1)),
        turns=[SampleTurn(start=1, end=length, turn=3, trained=length - 1, temperature=0.5)],
        reward=float(length),
        advantage=advantage,
        rollout_id=f"r{length}",
    )


SAMPLES = st.lists(st.integers(1, 9).map(sample), min_size=1, max_size=12)


@given(samples=SAMPLES, multiple_of=st.integers(1, 8))
def test_padding_keeps_every_token(samples: list[TrainingSample], multiple_of: int) -> None:
    """Each row is its sample and then padding, which no mask marks."""
    batch = pad(samples, pad_id=-7, multiple_of=multiple_of)
    assert batch.token_ids.shape[1] % multiple_of == 0
    for row, one in enumerate(samples):
        length = len(one.token_ids)
        assert batch.token_ids[row, :length].tolist() == one.token_ids.tolist()
        assert set(batch.token_ids[row, length:].tolist()) <= {-7}
        assert batch.attention_mask[row].sum() == length
        assert batch.loss_mask[row].sum() == sum(one.loss_mask)
        assert batch.weight_versions[row, :length].tolist() == [-1, *[7] * (length - 1)]
        assert batch.temperatures[row].tolist() == [
            1.0,
            *[0.5] * (length - 1),
            *[1.0] * (batch.loss_mask.shape[1] - length),
        ]
        assert batch.turn_ids[row, :length].tolist() == [-1, *[3] * (length - 1)]
        assert set(batch.turn_ids[row, length:].tolist()) <= {-1}
    assert batch.rewards.tolist() == [one.reward for one in samples]


@given(samples=SAMPLES, max_tokens=st.integers(9, 30))
def test_packing_loses_nothing_and_overfills_nothing(samples: list[TrainingSample], max_tokens: int) -> None:
    """Every sample stands in one bin, whole, between its boundaries, with positions from 0."""
    found = []
    for bin_ in pack(samples, max_tokens=max_tokens):
        assert len(bin_.token_ids) <= max_tokens
        for start, end in zip(bin_.cu_seqlens, bin_.cu_seqlens[1:], strict=False):
            assert bin_.position_ids[start:end].tolist() == list(range(end - start))
            assert set(bin_.advantages[start:end].tolist()) == {0.5}
            assert bin_.temperatures[start:end].tolist() == [1.0, *[0.5] * (end - start - 1)]
            assert bin_.turn_ids[start:end].tolist() == [-1, *[3] * (end - start - 1)]
            found.append(bin_.token_ids[start:end].tolist())
    assert sorted(found) == sorted(one.token_ids.tolist() for one in samples)


@given(samples=SAMPLES, max_tokens=st.integers(9, 30))
def test_each_sample_goes_into_the_first_bin_with_room(samples: list[TrainingSample], max_tokens: int) -> None:
    """Bins are those of first fit over the samples from the longest to the shortest, found by looking at every bin."""
    bins: list[list[int]] = []
    for length in sorted((len(one.token_ids) for one in samples), reverse=True):
        for members in bins:
            if sum(members) + length <= max_tokens:
                members.append(length)
                break
        else:
            bins.append([length])
    packed = pack(samples, max_tokens=max_tokens)
    assert [np.diff(bin_.cu_seqlens).tolist() for bin_ in packed] == bins


def test_packing_nothing_gives_no_bin() -> None:
    """No sample, no bin."""
    assert list(pack([], max_tokens=8)) == []


def test_a_sample_that_fits_no_bin_is_named() -> None:
    """A sample longer than a bin is an error that names it, not cut."""
    with pytest.raises(ValueError, match="r9 has 9 tokens, a bin 8"):
        pack([sample(9)], max_tokens=8)


def test_arrays_share_the_samples_memory() -> None:
    """`to_numpy` copies no ids, masks or logprobs."""
    one = sample(4)
    arrays = one.to_numpy()
    one.token_ids[2] = 99
    assert arrays["token_ids"][2] == 99
    assert arrays["logprobs"].dtype == np.float64


def test_a_missing_advantage_is_nan() -> None:
    """What was not computed cannot be mistaken for 0."""
    assert np.isnan(joined([sample(2, advantage=None)]).advantages).all()


def test_a_version_that_is_no_number_is_named() -> None:
    """Arrays hold versions as numbers; another name is an error that says so."""
    assert version_number("12") == 12
    assert version_number(None) == -1
    assert version_number("default") == 0
    with pytest.raises(ValueError, match="'main' is not a number"):
        version_number("main")


def test_nothing_to_pad_is_an_error() -> None:
    """Padding nothing is the caller's mistake."""
    with pytest.raises(ValueError, match="no samples"):
        pad([])


def test_a_sample_without_temperatures_has_none_that_is_known() -> None:
    """One that a program makes by itself, as before there were any: NaN, never a guess."""
    made = TrainingSample(
        token_ids=ids_array([1, 2]),
        loss_mask=array("b", [0, 1]),
        logprobs=array("d", [0, -1]),
        weight_versions=[None] * 2,
    )
    assert np.isnan(made.to_numpy()["temperatures"]).all()


def with_fields(length: int, *, experts: bool, mask: bool) -> TrainingSample:
    """Each token's expert is its id, and it was drawn from that id and the one before."""
    one = sample(length)
    if experts and length > 1:
        rows = np.arange(1, length, dtype=np.uint8).tobytes()
        one.routed_experts = SampleExperts(length, [(0, RoutedExperts(data=Blob(rows), layers=1, top_k=1))])
    if mask:
        one.sampling_mask = SampleMask(length, [(1, SamplingMask.of([[at, at + 1] for at in range(1, length)]))])
    return one


FIELD_SAMPLES = st.lists(
    st.builds(with_fields, st.integers(1, 9), experts=st.booleans(), mask=st.booleans()), min_size=1, max_size=8
)


@given(samples=FIELD_SAMPLES, multiple_of=st.integers(1, 8))
def test_padded_fields_stand_at_their_tokens(samples: list[TrainingSample], multiple_of: int) -> None:
    """-1 and no ids on padding, and on samples without any; None where no sample has them."""
    batch = pad(samples, multiple_of=multiple_of)
    assert (batch.routed_experts is None) == all(one.routed_experts is None for one in samples)
    assert (batch.sampling_mask_ids is None) == all(one.sampling_mask is None for one in samples)
    for row, one in enumerate(samples):
        length = len(one.token_ids)
        if batch.routed_experts is not None:
            assert batch.routed_experts.shape == (*batch.token_ids.shape, 1, 1)
            known = list(range(1, length)) if one.routed_experts is not None else [-1] * (length - 1)
            assert batch.routed_experts[row, :, 0, 0].tolist() == known + [-1] * (batch.token_ids.shape[1] - length + 1)
        if batch.sampling_mask_ids is not None and batch.sampling_mask_offsets is not None:
            assert_masked(batch.sampling_mask_ids, batch.sampling_mask_offsets[row], one)


def assert_masked(ids: np.ndarray, offsets: np.ndarray, one: TrainingSample) -> None:
    found = [ids[start:end].tolist() for start, end in pairwise(offsets)]
    length = len(one.token_ids)
    wanted = [[], *([at, at + 1] for at in range(1, length))] if one.sampling_mask is not None else [[]] * length
    assert found == wanted + [[]] * (len(offsets) - 1 - length)


@given(samples=FIELD_SAMPLES)
def test_packed_fields_stand_at_their_tokens(samples: list[TrainingSample]) -> None:
    """As the tokens do, sample by sample."""
    batch = joined(samples)
    for one, start, end in zip(samples, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
        if batch.routed_experts is not None:
            known = list(range(1, end - start)) if one.routed_experts is not None else [-1] * (end - start - 1)
            assert batch.routed_experts[start:end, 0, 0].tolist() == [*known, -1]
        if batch.sampling_mask_ids is not None and batch.sampling_mask_offsets is not None:
            assert_masked(batch.sampling_mask_ids, batch.sampling_mask_offsets[start : end + 1], one)


def test_samples_of_two_models_make_no_batch() -> None:
    """The numbers of one would stand for those of the other."""
    one, other = with_fields(3, experts=True, mask=False), with_fields(3, experts=False, mask=False)
    other.routed_experts = SampleExperts(3, [(0, RoutedExperts(data=Blob(b"1234"), layers=2, top_k=1))])
    with pytest.raises(ValueError, match="routed experts of shape"):
        joined([one, other])
