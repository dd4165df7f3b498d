"""Each id of the tree has the experts that its logits came from, whatever forks, however little a server reports."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.chat.canonical import digest
from rollout.chat.messages import Message, user
from rollout.request import Expansion
from rollout.token_fields import RoutedExperts
from rollout.tokens.experts import known_until, put_experts
from rollout.tokens.samples import samples_of_tree
from rollout.tokens.trajectory import Root, Trajectory, ids_array
from tests.rollout.tokens.test_trajectory import answer, prompt
from transports.scripted import experts_of


def positions(of: RoutedExperts, start: int = 0) -> list[bytes]:
    data = of.data.data
    return [data[at : at + of.width] for at in range(0, len(data), of.width)][start:]


def check(tree: Trajectory) -> None:
    """Whatever a node has is what the server would say of its branch."""
    for index, node in enumerate(tree.nodes):
        if node.routed_experts is None:
            continue
        ids = tree.ids(index).tolist()
        of_branch = positions(experts_of(ids[:-1]))
        assert positions(node.routed_experts) == of_branch[len(of_branch) - node.routed_experts.rows :]
        assert node.routed_experts.rows <= len(node.ids)


#: A turn: where it goes on from, how much of that it sends again in other ids, what it adds, and what is reported.
_TURNS = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.integers(0, 6),
        st.lists(st.integers(1, 5), min_size=1, max_size=4),
        st.lists(st.integers(1, 5), min_size=1, max_size=4),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=200)
@given(_TURNS)
def test_what_is_known_is_what_was_reported(turns: list[tuple[int, int, list[int], list[int], bool, bool]]) -> None:
    """Extensions, and prompts in other ids that fork anywhere; of a turn that reports, its whole branch is known."""
    tree = Trajectory()
    root = tree.add_root(Root())
    for number, (which, cut, new, sampled, extends, reports) in enumerate(turns):
        before = len(tree.nodes)
        tail = [user(f"u{number}")]
        if not tree.leaves:
            start, end = 0, prompt(tree, root, tail, new)
        elif extends:
            above = tree.leaves[which % len(tree.leaves)]
            start = known_until(tree, above)
            end = tree.add_tail(above, tail, [digest(tail[0])], ids_array(new))
        else:  # the server renders the history in other ids from somewhere on
            above = tree.leaves[which % len(tree.leaves)]
            ids = tree.ids(above).tolist()
            start, end = (
                0,
                prompt(tree, root, [*tree.messages(above), *tail], [*ids[: max(1, len(ids) - cut)], 9, *new]),
            )
        node = answer(tree, end, f"a{number}", sampled)
        whole = tree.ids(node).tolist()
        assert start <= len(whole) - len(sampled) - 1
        if reports:
            assert put_experts(tree, node, experts_of(whole[:-1], start), start, before)
            assert known_until(tree, node) == len(whole) - 1
        check(tree)
    for sample in samples_of_tree(tree):
        ids = sample.token_ids.tolist()
        if sample.routed_experts is None:
            continue
        found, server = sample.routed_experts.to_numpy(), positions(experts_of(ids))
        assert (found[-1] == -1).all()
        for at in range(len(ids) - 1):
            known = found[at].astype(np.int8).tobytes()
            assert known == server[at] or (found[at] == -1).all()


def test_a_turn_asks_from_what_is_missing() -> None:
    """The last token of the turn before, whose experts nobody has computed yet; all of what was never reported."""
    tree = Trajectory()
    root = tree.add_root(Root())
    first = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "b", [4, 5])
    assert known_until(tree, first) == 0
    assert put_experts(tree, first, experts_of([1, 2, 3, 4]), 0, 0)
    assert known_until(tree, first) == 4
    tail = [user("c")]
    end = tree.add_tail(first, tail, [digest(tail[0])], ids_array([6, 7]))
    second = answer(tree, end, "d", [8])
    assert known_until(tree, second) == 4
    assert tree.filled == []


def test_what_is_told_later_is_filled_in() -> None:
    """The turn that nobody reported is known from the next one on, and what was known stays as it was."""
    tree = Trajectory()
    root = tree.add_root(Root())
    first = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "b", [4, 5])
    tail = [user("c")]
    end = tree.add_tail(first, tail, [digest(tail[0])], ids_array([6, 7]))
    before = len(tree.nodes)
    second = answer(tree, end, "d", [8])
    assert put_experts(tree, second, experts_of([1, 2, 3, 4, 5, 6, 7]), 0, before)
    check(tree)
    assert tree.filled == [0, 1, 2]
    kept = tree.nodes[first].routed_experts
    other = experts_of([9, 9, 9, 9, 9, 9, 9])
    assert put_experts(tree, second, other, 0, len(tree.nodes))
    assert tree.nodes[first].routed_experts is kept


def test_rows_of_another_branch_are_not_taken() -> None:
    """A server that rendered other ids than it was sent, from where nobody knows them."""
    tree = Trajectory()
    root = tree.add_root(Root())
    first = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "b", [4, 5])
    assert not put_experts(tree, first, experts_of([1, 2, 3]), 0, 0)
    assert tree.nodes[first].routed_experts is None


def test_rows_that_begin_in_the_middle_of_a_node_are_those_behind() -> None:
    """What is before them stays unknown."""
    tree = Trajectory()
    root = tree.add_root(Root())
    first = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "b", [4, 5])
    assert put_experts(tree, first, experts_of([1, 2, 3, 4], 2), 2, 0)
    assert [node.routed_experts.rows if node.routed_experts else 0 for node in tree.nodes] == [0, 2]
    (sample,) = samples_of_tree(tree)
    assert sample.routed_experts is not None
    assert (sample.routed_experts.to_numpy() == -1).all((1, 2)).tolist() == [True, True, False, False, True]
    assert sample.routed_experts.known == 2


def test_a_fork_that_is_filled_later_is_found_whole() -> None:
    """The part that two branches share has one row for each of its ids, before and after it is cut."""
    tree = Trajectory()
    root = tree.add_root(Root())
    first = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "b", [4, 5, 6])
    put_experts(tree, first, experts_of([1, 2, 3, 4, 5]), 0, 0)
    before = len(tree.nodes)
    messages = [user("a"), Message("assistant", "b"), user("c")]
    second = answer(tree, prompt(tree, root, messages, [1, 2, 3, 4, 9, 9]), "d", [10])
    put_experts(tree, second, experts_of([1, 2, 3, 4, 9, 9]), 0, before)
    check(tree)
    assert tree.filled == []
    for leaf in (first, second):
        assert known_until(tree, leaf) == len(tree.ids(leaf)) - 1


@given(st.integers(0, 3), st.integers(1, 5), st.integers(2, 7))
def test_an_image_has_the_positions_that_it_is_read_as(before: int, size: int, cut: int) -> None:
    """Rows are of the expanded ids, also where a fork cuts before or behind the image; turns ask from there on."""
    tree = Trajectory()
    root = tree.add_root(Root())
    ids = [*range(1, before + 1), 50, 7, 8]
    messages = [user("a")]
    image = (Expansion(before, ((60, size),)),)
    end = tree.add_prompt(root, messages, [digest(messages[0])], ids, None, image).end
    first = answer(tree, end, "b", [4, 5])
    read = [*ids[:before], *[60] * size, 7, 8, 4, 5]
    assert put_experts(tree, first, experts_of(read[:-1]), 0, 0)
    assert known_until(tree, first) == len(read) - 1
    again = [*[*ids, 4, 5][: min(cut, len(ids) + 1)], 9]
    placeholder = image if 50 in again else ()
    other = [user("a"), Message("assistant", "b"), user("c")]
    end = tree.add_prompt(root, other, [digest(message) for message in other], again, None, placeholder).end
    answer(tree, end, "d", [3])
    for sample in samples_of_tree(tree):
        if sample.token_ids.tolist() != read:
            continue
        assert sample.routed_experts is not None
        found = sample.routed_experts.to_numpy()[:-1].astype(np.int8)
        assert [row.tobytes() for row in found] == positions(experts_of(read[:-1]))
        break
    else:
        raise AssertionError("the first turn has a sample")
