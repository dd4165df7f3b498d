"""Two lists of ids: what is sent, and what the model reads; the same outside the images' places."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.canonical import digest
from rollout.chat.messages import Message, user
from rollout.errors import MalformedReply
from rollout.request import Expansion, MessagePrompt, Reply, TokenPrompt
from rollout.tokens.experts import known_until, put_experts
from rollout.tokens.images import as_logical, collapsed, expanded, expansions_of, image_name, images_of_sample
from rollout.tokens.samples import samples_of_tree
from rollout.tokens.trajectory import Root, Trajectory, ids_array
from rollout.tokens.verify import check_trajectory
from transports.scripted import experts_of

IMAGE = 300
URL = "data:image/png;base64," + base64.b64encode(b"pixels").decode()

texts = st.lists(st.integers(0, 255), max_size=6)
pictures = st.lists(st.integers(301, 303), max_size=5).map(lambda more: [IMAGE, *more])


def seen(*urls: str, text: str = "look") -> Message:
    parts: tuple[dict[str, Any], ...] = tuple({"type": "image_url", "image_url": {"url": url}} for url in urls)
    return Message("user", ({"type": "text", "text": text}, *parts))


@given(st.lists(st.tuples(texts, pictures), max_size=4), texts)
def test_what_was_put_for_images_is_taken_out_and_put_back(
    parts: list[tuple[list[int], list[int]]], end: list[int]
) -> None:
    """The logical ids have one placeholder an image; with its expansions they are the server's ids again."""
    ids, logical, spans = list[int](), list[int](), list[tuple[int, int]]()
    for text, picture in parts:
        ids, logical = ids + text, [*logical, *text, IMAGE]
        spans.append((len(ids), len(picture)))
        ids = ids + picture
    found, expansions = collapsed(ids + end, spans)
    assert found.tolist() == logical + end
    assert expanded(found, expansions).tolist() == ids + end
    assert [one.length for one in expansions] == [length for _, length in spans]
    assert msgspec.json.decode(msgspec.json.encode(expansions), type=tuple[Expansion, ...]) == expansions


@pytest.mark.parametrize("spans", [((0, 2), (1, 1)), ((3, 2),), ((1, 0),), ((-1, 1),), ((2, 1), (0, 1))])
def test_places_that_cannot_be_are_refused(spans: Any) -> None:
    """They overlap, are empty, or lie outside."""
    with pytest.raises(MalformedReply, match="cannot stand"):
        collapsed([1, 2, 3, 4], spans)


def answered(ids: list[int] | None, spans: Any) -> Reply:
    return Reply(completion_ids=[9], logprobs=[-1.0], prompt_ids=ids, image_spans=spans)


@pytest.mark.parametrize(
    ("ids", "spans", "said"),
    [
        (None, None, "does not say"),
        ([1, IMAGE, 2], None, "does not say"),
        ([1, IMAGE, 2], (), "read 0 images, and 1 were sent"),
        ([1, IMAGE, IMAGE, 3], ((1, 2),), "at position 2"),
        ([1, IMAGE, IMAGE, 2, 2], ((1, 2),), "in length: 3 and 4"),
        ([1, IMAGE, IMAGE, IMAGE, 2], ((1, 2),), "at position 2"),
    ],
)
def test_a_prompt_that_came_back_otherwise_is_refused(ids: Any, spans: Any, said: str) -> None:
    """Outside the images' places the server must have read what was sent."""
    with pytest.raises(MalformedReply, match=said):
        as_logical(answered(ids, spans), TokenPrompt([1, IMAGE, 2], (URL,)), IMAGE)


def test_ids_without_images_are_left_as_they_are() -> None:
    """Most prompts have none."""
    reply = answered([1, 2], None)
    assert as_logical(reply, TokenPrompt([1, 2]), None) is reply
    assert as_logical(reply, MessagePrompt([user("a")]), IMAGE) is reply


@pytest.mark.parametrize(
    ("message", "ids", "token"),
    [
        (seen(URL), [1, IMAGE, IMAGE], None),  # the route takes no images
        (seen(URL, URL), [1, IMAGE, IMAGE], IMAGE),  # one image was left out
        (seen(URL), [IMAGE, IMAGE, IMAGE], IMAGE),  # a text has a placeholder
        (seen(URL), [1, 301, 301], IMAGE),  # another stands for this image
        (Message("user", ({"type": "input_audio", "input_audio": {"data": "x"}},)), [1, IMAGE, IMAGE], IMAGE),
    ],
)
def test_messages_whose_images_are_not_where_they_should_be_are_left(message: Message, ids: Any, token: Any) -> None:
    """Their branch is not extended."""
    reply = answered(ids, ((1, 2),))
    assert as_logical(reply, MessagePrompt([message]), token) is reply


def laid(*prompts: tuple[Message, list[int], tuple[Expansion, ...] | None]) -> Trajectory:
    """A tree of several prompts, each answered by one id."""
    tree = Trajectory()
    root = tree.add_root(Root())
    for message, ids, expansions in prompts:
        found = tree.add_prompt(root, [message], [digest(message)], ids, expansions=expansions)
        tree.add_sampled(found.end, Message("assistant", "x"), digest(user("x")), [9], [-1.0])
    return tree


def test_a_sample_has_what_the_model_read_and_which_image_that_was() -> None:
    """Its arrays have one length; the image is named by its bytes."""
    tree = laid((seen(URL), [1, IMAGE, 2], (Expansion(1, ((IMAGE, 3), (301, 1))),)))
    (sample,) = samples_of_tree(tree)
    assert sample.token_ids.tolist() == [1, IMAGE, IMAGE, IMAGE, 301, 2, 9]
    assert list(sample.loss_mask) == [0, 0, 0, 0, 0, 0, 1]
    assert len(sample.logprobs) == len(sample.weight_versions) == len(sample.temperatures) == 7
    (image,) = sample.images
    assert (image.start, image.length) == (1, 4)
    assert image.image == f"sha256:{hashlib.sha256(b'pixels').hexdigest()}"
    check_trajectory(tree, 1)


def test_a_fork_keeps_each_image_with_its_ids() -> None:
    """A prompt that departs behind an image shares it, and one that departs before has its own."""
    message = seen(URL, URL)
    at = (Expansion(1, ((IMAGE, 2),)), Expansion(3, ((IMAGE, 5),)))
    tree = laid((message, [1, IMAGE, 2, IMAGE, 3], at), (message, [1, IMAGE, 4, IMAGE, 3], at))
    first, second = samples_of_tree(tree)
    assert first.token_ids.tolist() == [1, *[IMAGE] * 2, 2, *[IMAGE] * 5, 3, 9]
    assert second.token_ids.tolist() == [1, *[IMAGE] * 2, 4, *[IMAGE] * 5, 3, 9]
    assert [(one.start, one.length) for one in second.images] == [(1, 2), (4, 5)]
    for leaf in tree.leaves:
        assert expansions_of(tree, leaf) == at
        assert expanded(tree.ids(leaf), expansions_of(tree, leaf)) in (first.token_ids, second.token_ids)


def test_experts_are_of_what_the_model_read() -> None:
    """A row for each position of the expanded ids, which a fork cuts where it cuts the logical ones."""
    message = seen(URL, URL)
    at = (Expansion(1, ((IMAGE, 2),)), Expansion(3, ((IMAGE, 5),)))
    tree = laid((message, [1, IMAGE, 2, IMAGE, 3], at))
    read = [1, IMAGE, IMAGE, 2, *[IMAGE] * 5, 3, 9]
    assert put_experts(tree, tree.leaves[0], experts_of(read[:-1]), 0, 0)
    laid_again = tree.add_prompt(0, [message], [digest(message)], [1, IMAGE, 4, IMAGE, 3], expansions=at)
    tree.add_sampled(laid_again.end, Message("assistant", "x"), digest(user("y")), [9], [-1.0])
    first, second = samples_of_tree(tree)
    assert first.routed_experts is not None
    assert second.routed_experts is not None
    assert (first.routed_experts.known, first.routed_experts.tokens) == (len(read) - 1, len(read))
    assert (second.routed_experts.known, second.routed_experts.tokens) == (2, len(read))
    assert (first.routed_experts.to_numpy()[:2] == second.routed_experts.to_numpy()[:2]).all()
    assert known_until(tree, tree.leaves[0]) == len(read) - 1
    assert known_until(tree, tree.leaves[1]) == 2


def test_a_prompt_whose_images_have_no_known_place_cannot_be_extended() -> None:
    """Nor can what is below it; one that has placeholders can."""
    tree = laid((seen(URL), [1, IMAGE, IMAGE], None), (seen(URL), [1, IMAGE], (Expansion(1, ((IMAGE, 2),)),)))
    assert [tree.nodes[leaf].placed for leaf in tree.leaves] == [False, True]


def test_an_image_elsewhere_is_named_by_its_address() -> None:
    """And so is data that is no base64, and what only begins as a run folder's name of one does."""
    assert image_name("https://x.example/a.png") == "https://x.example/a.png"
    assert image_name("data:image/png;base64,***") == "data:image/png;base64,***"
    assert image_name("run-image:../a.png;data:image/png;base64") == "run-image:../a.png;data:image/png;base64"
    assert images_of_sample(laid((user("a"), [1], ())), [0]) == []
    assert expanded(ids_array([1]), ()) == ids_array([1])


def test_an_image_whose_file_is_gone_keeps_its_name() -> None:
    """What a run folder's line says in its place has the digest of its bytes."""
    name = image_name("data:image/png;base64," + base64.b64encode(b"pixels").decode())
    assert image_name(f"run-image:{name.removeprefix('sha256:')}.png;data:image/png;base64") == name
