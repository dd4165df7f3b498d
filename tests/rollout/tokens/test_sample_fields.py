"""A sample's routed experts and sampling masks are arrays of its tokens, in which nothing is made up."""

from __future__ import annotations

import itertools
from array import array
from base64 import b64decode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.token_fields import SamplingMask
from rollout.tokens.sample_fields import SampleExperts, SampleMask, fields_of
from rollout.tokens.samples import TrainingSample, as_fields
from rollout.tokens.trajectory import Node, ids_array
from tests.rollout.test_token_fields import experts


def test_nothing_reported_is_nothing() -> None:
    """A branch of a run that did not ask has neither."""
    assert fields_of([Node(parent=-1, ids=ids_array([1, 2]))]) == (None, None)


def test_rows_stand_at_the_token_that_they_are_of() -> None:
    """A node's last row is of its last id but one; the node above keeps its last token's only below it."""
    nodes = [
        Node(parent=-1, ids=ids_array([1, 2, 3]), routed_experts=experts([[1], [2]])),
        Node(parent=0, ids=ids_array([]), sampling_mask=None),
        Node(parent=1, ids=ids_array([4, 5]), routed_experts=experts([[4]])),
        Node(parent=2, ids=ids_array([6]), routed_experts=experts([[5]])),
    ]
    found, _ = fields_of(nodes)
    assert found is not None
    assert found.to_numpy().tolist() == [[[1]], [[2]], [[-1]], [[4]], [[5]], [[-1]]]
    assert (found.known, found.tokens) == (4, 6)


@given(st.lists(st.one_of(st.none(), st.lists(st.lists(st.integers(0, 99), max_size=3), max_size=4)), max_size=5))
def test_masks_stand_at_the_token_that_they_are_of(parts: list[list[list[int]] | None]) -> None:
    """An entry without ids for each token that has none."""
    nodes, wanted = list[Node](), list[list[int]]()
    for kept in parts:
        mask = None if kept is None else SamplingMask.of(kept)
        count = 2 if kept is None else len(kept)
        nodes.append(Node(parent=len(nodes) - 1, ids=ids_array([1] * count), sampling_mask=mask))
        wanted += [[], []] if kept is None else kept
    _, found = fields_of(nodes)
    if all(kept is None for kept in parts):
        assert found is None
        return
    assert found is not None
    ids, offsets = found.to_numpy()
    assert (str(ids.dtype), str(offsets.dtype), len(offsets)) == ("int32", "int64", len(wanted) + 1)
    assert [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)] == wanted


@pytest.mark.parametrize(("number", "dtype"), [(255, np.int16), (2**15 - 1, np.int16), (2**15, np.int32)])
def test_the_array_is_as_narrow_as_it_can_be(number: int, dtype: type[np.generic]) -> None:
    """int16, which has a -1, and int32 for numbers beyond it."""
    found = SampleExperts(2, [(0, experts([[number]], "uint8" if number < 256 else "uint16"))]).to_numpy()
    assert found.dtype == dtype
    assert found.tolist() == [[[number]], [[-1]]]


def test_two_models_in_a_branch_are_said() -> None:
    """Their numbers do not mean the same."""
    with pytest.raises(ValueError, match="1 x 1 and of 2 x 1 in a branch"):
        SampleExperts(4, [(0, experts([[1]])), (1, experts([[1, 2]]))])


def test_as_json_they_can_be_read_back() -> None:
    """Type, shape and bytes; ids and offsets. A sample without them has no such names."""
    ids = ids_array([1, 2])
    sample = TrainingSample(token_ids=ids, loss_mask=ids, logprobs=array("d", [0, 0]), weight_versions=[None, None])
    assert as_fields(sample).keys().isdisjoint({"routed_experts", "sampling_mask"})
    sample.routed_experts = SampleExperts(2, [(0, experts([[7]]))])
    sample.sampling_mask = SampleMask(2, [(1, SamplingMask.of([[2, 3]]))])
    fields = as_fields(sample)
    said = fields["routed_experts"]
    read = np.frombuffer(b64decode(said["data"]), said["dtype"]).reshape(said["shape"])
    assert read.tolist() == [[[7]], [[-1]]]
    assert fields["sampling_mask"] == {"ids": [2, 3], "offsets": [0, 0, 2]}
