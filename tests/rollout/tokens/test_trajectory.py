"""The tree holds exactly what the server saw, each token once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.canonical import digest
from rollout.chat.messages import Message, user
from rollout.tokens.samples import samples_of_tree
from rollout.tokens.trajectory import LaidPrompt, Root, TokenIds, Trajectory, ids_array
from rollout.tokens.verify import check_trajectory


def assistant(text: str) -> Message:
    return Message("assistant", text)


def answer(tree: Trajectory, end: int, text: str, ids: list[int]) -> int:
    message = assistant(text)
    return tree.add_sampled(end, message, digest(message), ids, [-0.5] * len(ids))


def prompt(tree: Trajectory, root: int, messages: list[Message], ids: list[int] | None) -> int:
    return tree.add_prompt(root, messages, [digest(message) for message in messages], ids).end


def test_an_extension_stores_only_what_is_new() -> None:
    """Turn 2 adds the bridge's ids and the sampled ones, and the branch is all of them in order."""
    tree = Trajectory()
    root = tree.add_root(Root())
    first = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "b", [4, 5])
    tail = [user("c")]
    end = tree.add_tail(first, tail, [digest(tail[0])], ids_array([6, 7]))
    second = answer(tree, end, "d", [8])
    assert tree.ids(second).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tree.token_count == 8
    assert tree.turn_ids(second) == ([1, 2, 3, 4, 5, 6, 7], [8])


def test_a_prompt_that_was_sent_twice_is_stored_once() -> None:
    """Two answers to one prompt share its ids."""
    tree = Trajectory()
    root = tree.add_root(Root())
    one = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "b", [4])
    other = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "c", [5])
    assert tree.nodes[one].parent == tree.nodes[other].parent
    assert tree.token_count == 5


def test_other_ids_fork_in_the_middle_of_a_turn() -> None:
    """A re-rendered history shares what is equal and forks where it differs; nothing sampled is lost."""
    tree = Trajectory()
    root = tree.add_root(Root())
    first = answer(tree, prompt(tree, root, [user("a")], [1, 2, 3]), "b", [4, 5, 6])
    messages = [user("a"), assistant("b"), user("c")]
    end = prompt(tree, root, messages, [1, 2, 3, 4, 9, 9, 7, 8])
    second = answer(tree, end, "d", [10])
    assert tree.ids(first).tolist() == [1, 2, 3, 4, 5, 6]
    assert tree.ids(second).tolist() == [1, 2, 3, 4, 9, 9, 7, 8, 10]
    assert tree.turn_ids(first) == ([1, 2, 3], [4, 5, 6])
    assert tree.token_count == 11
    assert [message.text for message in tree.messages(second)][-2:] == ["c", "d"]
    masks = [sample.loss_mask.tolist() for sample in samples_of_tree(tree)]
    assert masks == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 1]]


def test_message_in_memory_is_linear() -> None:
    """A server that re-renders each answer in other ids costs each token a bounded number of times."""
    tree = Trajectory()
    root = tree.add_root(Root())
    history: list[Message] = []
    ids: list[int] = []
    for turn in range(100):
        history = [*history, user(f"u{turn}")]
        ids = [*ids, *range(1000 + turn * 10, 1010 + turn * 10)]
        end = prompt(tree, root, history, [*ids, 1, 2])
        answer(tree, end, f"a{turn}", [5, 6, 7])
        history = [*history, assistant(f"a{turn}")]
        ids = [*ids, 5, 8]  # re-rendered: another generation prompt, another tokenization
    assert tree.token_count < 2 * (len(ids) + 100 * 5)
    check_trajectory(tree, 300)


def test_a_conversation_that_breaks_on_every_turn_costs_what_is_new() -> None:
    """Each prompt's place is found in as many steps at turn 100 as at turn 3."""

    class Counting(Trajectory):
        steps = 0

        def _direct_children(self, node: int, digest: bytes | None) -> Iterator[int]:
            self.steps += 1
            return super()._direct_children(node, digest)

    tree = Counting()
    root = tree.add_root(Root())
    history: list[Message] = []
    ids: list[int] = []
    steps: list[int] = []
    last: LaidPrompt | None = None
    for turn in range(100):
        history, ids, before = [*history, user(f"u{turn}")], [*ids, 100 + turn, 1], tree.steps
        last = tree.add_prompt(root, history, [digest(message) for message in history], ids, last)
        steps.append(tree.steps - before)
        answer(tree, last.end, f"a{turn}", [5, 6, 7])
        history, ids = [*history, assistant(f"a{turn}")], [*ids, 5, 8]  # the server writes it in other ids
    assert len(set(steps[2:])) == 1, steps


TURNS = st.lists(
    st.tuples(
        st.integers(0, 5),  # which earlier conversation to go on from
        st.integers(0, 2),  # another user's text
        st.lists(st.integers(0, 2), max_size=4),  # ids that the server changes at the end of the history
        st.lists(st.integers(0, 2), min_size=1, max_size=4),  # new prompt ids
        st.lists(st.integers(0, 2), min_size=1, max_size=3),  # sampled ids
        st.booleans(),  # token-in
    ),
    max_size=12,
)


class Searched(Trajectory):
    """A tree that looks for each prompt's place from the root."""

    def _start(
        self, root: int, digests: Sequence[bytes], ids: TokenIds, last: LaidPrompt | None, *, placed: bool
    ) -> tuple[int, int, int]:
        return -1 - root, 0, 0


@given(TURNS)
def test_every_branch_is_what_was_sent_and_sampled(
    turns: list[tuple[int, int, list[int], list[int], list[int], bool]],
) -> None:
    """Whatever forks, each turn's branch stays its prompt and completion, and each sampled token trains once."""
    tree, searched = Trajectory(), Searched()
    root = tree.add_root(Root())
    searched.add_root(Root())
    ends: list[tuple[int | None, list[Message], list[int]]] = [(None, [], [])]
    expected: dict[int, list[int]] = {}
    last: LaidPrompt | None = None
    for number, (pick, text, changed, new, sampled, token_in) in enumerate(turns):
        node, history, ids = ends[pick % len(ends)]
        tail = [user(str(text))]
        if token_in and node is not None:
            sent = [*ids, *new]
            end = tree.add_tail(node, tail, [digest(tail[0])], ids_array(new))
            searched.add_tail(node, tail, [digest(tail[0])], ids_array(new))
        else:
            sent = [*ids[: max(0, len(ids) - len(changed))], *changed, *new]
            keys = [digest(message) for message in [*history, *tail]]
            last = tree.add_prompt(root, [*history, *tail], keys, sent, last)
            end = last.end
            prompt(searched, root, [*history, *tail], sent)
        leaf = answer(tree, end, str(number % 3), sampled)
        answer(searched, end, str(number % 3), sampled)
        assert tree.nodes == searched.nodes, "a search that begins at the last prompt finds what a whole one does"
        expected[leaf] = [*sent, *sampled]
        ends.append((leaf, [*history, *tail, assistant(str(number % 3))], expected[leaf]))
        assert {at: tree.ids(at).tolist() for at in expected} == expected
    check_trajectory(tree, sum(len(turn[4]) for turn in turns))
    for sample in samples_of_tree(tree):
        assert len(sample.token_ids) == len(sample.loss_mask) == len(sample.logprobs) == len(sample.weight_versions)
