"""Routed experts and sampling masks are cut and joined as the ids are that they are of."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import UsageError
from rollout.token_fields import Blob, ExpertType, RoutedExperts, SamplingMask, joined_masks

_KINDS: dict[ExpertType, int] = {"uint8": 2**8 - 1, "uint16": 2**16 - 1, "int32": 2**31 - 1}


def experts(rows: list[list[int]], dtype: ExpertType = "uint8", top_k: int = 1) -> RoutedExperts:
    width = len(rows[0]) if rows else 2 * top_k
    return RoutedExperts(data=Blob(np.array(rows, dtype).tobytes()), layers=width // top_k, top_k=top_k, dtype=dtype)


def numbers(of: RoutedExperts | None) -> list[list[int]]:
    return [] if of is None else np.frombuffer(of.data.data, of.dtype).reshape(-1, of.width).tolist()


def lists(mask: SamplingMask | None) -> list[list[int]]:
    if mask is None:
        return []
    ids, offsets = mask.arrays()
    return [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[int]], ExpertType]:
    dtype = draw(st.sampled_from(sorted(_KINDS)))
    number = st.integers(0, _KINDS[dtype])
    return draw(st.lists(st.lists(number, min_size=4, max_size=4), min_size=1, max_size=6)), dtype


@given(rows(), st.data())
def test_experts_that_are_cut_and_joined_are_the_same(
    given_rows: tuple[list[list[int]], ExpertType], data: st.DataObject
) -> None:
    """Wherever they are cut; a part holds the rows that it says."""
    found, dtype = given_rows
    whole = experts(found, dtype, top_k=2)
    at = data.draw(st.integers(0, len(found)))
    first, then = whole.part(0, at), whole.part(at, len(found))
    assert (numbers(first), numbers(then)) == (found[:at], found[at:])
    assert whole.rows == len(found)
    if first is not None:
        assert first.joined(then) == whole


@given(rows(), rows())
def test_experts_of_two_types_join_in_the_wider(
    one: tuple[list[list[int]], ExpertType], other: tuple[list[list[int]], ExpertType]
) -> None:
    """No number is changed."""
    joined = experts(*one, top_k=2).joined(experts(*other, top_k=2))
    assert numbers(joined) == one[0] + other[0]
    assert joined.rows == len(one[0]) + len(other[0])


def test_experts_of_two_models_do_not_join() -> None:
    """The numbers of one would stand for those of the other."""
    with pytest.raises(ValueError, match="2 x 1 experts, and then 3 x 1"):
        experts([[1, 2]]).joined(experts([[1, 2, 3]]))


_MASKS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=6)


@given(_MASKS, st.data())
def test_masks_that_are_cut_and_joined_are_the_same(kept: list[list[int]], data: st.DataObject) -> None:
    """Wherever they are cut."""
    whole = SamplingMask.of(kept)
    at = data.draw(st.integers(0, len(kept)))
    first, then = whole.part(0, at), whole.part(at, len(kept))
    assert (lists(first), lists(then)) == (kept[:at], kept[at:])
    assert lists(joined_masks([(first, at), (then, len(kept) - at)])) == kept


@given(st.lists(st.tuples(_MASKS, st.booleans()), max_size=4))
def test_a_part_without_a_mask_is_not_known(parts: list[tuple[list[list[int]], bool]]) -> None:
    """Its tokens have an entry without ids; where no part has one, there is no mask."""
    joined = joined_masks([(SamplingMask.of(kept) if known else None, len(kept)) for kept, known in parts])
    if not any(known for _, known in parts):
        assert joined is None
    else:
        assert lists(joined) == [each if known else [] for kept, known in parts for each in kept]


def test_a_blob_in_a_file_is_read_when_it_is_wanted(tmp_path: Path) -> None:
    """Its length is known before, and it is the same as one in memory."""
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")
    blob = Blob(place=(path, 2, 3))
    assert len(blob) == 3
    assert blob == Blob(b"cde")
    assert hash(blob) == hash(Blob(b"cde"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((Path("/nowhere/file"), 0, 1), "cannot read"),
        ((None, 0, 1), "run folder"),
        ((Path(__file__), 10**9, 2), "was cut"),
    ],
)
def test_a_blob_that_is_not_there_says_so(place: tuple[Path | None, int, int], said: str) -> None:
    """In one line that names the file."""
    with pytest.raises(UsageError, match=said):
        Blob(place=place).data  # noqa: B018  # reading is what is tested
