"""A trajectory: the tree of messages that one episode sent and sampled, with the ids the server saw.

A node holds one message and only its own token delta, so memory is linear in tokens. Root to node is
a branch; the concatenation of its deltas is exactly the ids that the server had. Three kinds of node:

    prompt node    message of the caller's; the last one of a prompt holds the prompt's new ids, the
                   generation prompt included, and the ones before it hold none
    sampled node   an assistant message with the ids that the model sampled, and nothing else
    split node     no message: the part that two forks share of what was one delta

A root stands for what changes every token: the tools and the chat-template arguments.
Nothing here awaits, and nothing here decides what to send: see `rollout.tokens.prefix`.

An example. The first turn sends [system, user] and the server says that the prompt is 20 ids long; 7 are sampled. The
second turn adds a user message, whose bridge is 9 ids; 5 are sampled:

    root 0 ── system (0 ids) ── user (20 ids) ── assistant (7, sampled) ── user (9 ids) ── assistant (5, sampled)

Two leaves, one branch of 41 ids: the second assistant continues the first. A message-in turn whose prompt came back
with other ids for the first answer, the same for 23 ids and different from then on, forks it in the middle:

    root 0 ─ system ─ user (20) ─ split (3, sampled) ┬ assistant (4, sampled) ─ user (9) ─ assistant (5, sampled)
                                                     └ assistant (0) ─ user (14) ─ assistant (6, sampled)

Two branches now, and two training samples; the split's ids are trained on in the first alone. What is looked up is a
message prefix: a sequence of messages below a root, whatever their ids. Several nodes can end in the same one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rollout.chat.messages import Message
from rollout.request import Expansion, WeightSpan
from rollout.tokens.node import LOGPROBS, Logprobs, Node, Root, TokenIds, ids_array

__all__ = ["LOGPROBS", "LaidPrompt", "Logprobs", "Node", "Root", "TokenIds", "Trajectory", "ids_array"]


class LaidPrompt(NamedTuple):
    """A whole prompt as it lies in the tree."""

    root: int
    end: int
    """The node that ends it."""
    digests: Sequence[bytes]
    ids: TokenIds
    alone: bool
    """Whether it had ids that were not in the tree, and no other branch has its messages."""
    nodes: int
    """How many nodes there were then."""


class Trajectory:
    """The tree. `add_extension` and `add_prompt` grow it; everything else reads."""

    def __init__(self) -> None:
        self.roots: list[Root] = []
        self.nodes: list[Node] = []
        self.leaves: list[int] = []
        """Sampled nodes, in the order in which their turns were committed."""
        self.filled: list[int] = []
        """Nodes that were told later what the turn that added them had not been told: see `rollout.tokens.experts`."""
        self._children: dict[int, dict[bytes, list[int]]] = {}
        # Message prefixes, by number: a sequence of messages below a root, whatever their ids; -1 - r is the empty one.
        self._prefixes: dict[tuple[int, bytes], int] = {}
        """The prefix that a prefix and a further message's digest make."""
        self._nodes_at: list[list[int]] = []
        self._prefix_of: dict[int, int] = {}

    @classmethod
    def from_parts(cls, roots: Sequence[Root], nodes: Sequence[Node], leaves: Sequence[int]) -> Trajectory:
        """A tree read back from its parts, which it shares."""
        tree = cls()
        tree.roots, tree.nodes, tree.leaves = list(roots), list(nodes), list(leaves)
        for index, node in enumerate(nodes):
            tree._children.setdefault(node.parent, {}).setdefault(node.digest, []).append(index)
            above = [index]  # a split node was added after those below it
            while (parent := nodes[above[-1]].parent) >= 0 and parent not in tree._prefix_of:
                above.append(parent)
            for each in reversed(above):
                tree._add_to_prefix(each)
        return tree

    def __repr__(self) -> str:
        return f"<Trajectory {len(self.nodes)} nodes, {len(self.leaves)} turns, {self.token_count} tokens>"

    @property
    def token_count(self) -> int:
        return sum(len(node.ids) for node in self.nodes)

    def prefix_with(self, prefix: int, digest: bytes) -> int | None:
        """The prefix that is one message longer (-1 - r is root r's empty one); None where nobody sent it."""
        return self._prefixes.get((prefix, digest))

    def nodes_at(self, prefix: int) -> Sequence[int]:
        """The nodes that end in a prefix's last message: several after a retry, or where ids differ. Oldest first."""
        return self._nodes_at[prefix]

    def has_children(self, node: int) -> bool:
        return bool(self._children.get(node))

    def path(self, node: int) -> list[int]:
        """Node indices from the first below the root down to `node`."""
        out = []
        while node >= 0:
            out.append(node)
            node = self.nodes[node].parent
        return out[::-1]

    def root_of(self, node: int) -> int:
        """Index of the root above a node."""
        while node >= 0:
            node = self.nodes[node].parent
        return -1 - node

    def ids(self, node: int) -> TokenIds:
        """Every id from the root to the end of `node`: what the server saw. A new array."""
        out = ids_array()
        for index in self.path(node):
            out.extend(self.nodes[index].ids)
        return out

    def is_split(self, node: int) -> bool:
        """Whether a fork has split a sampled node's ids: the first of them stand in nodes above it."""
        parent = self.nodes[node].parent
        return parent >= 0 and self.nodes[parent].sampled and self.nodes[parent].message is None

    def turn_ids(self, node: int) -> tuple[list[int], list[int]]:
        """The prompt and the completion of the turn that a sampled node ends."""
        start = node
        while self.is_split(start):
            start = self.nodes[start].parent
        whole = self.ids(node).tolist()
        above = self.nodes[start].parent
        length = len(self.ids(above)) if above >= 0 else 0
        return whole[:length], whole[length:]

    def messages(self, node: int) -> list[Message]:
        """The messages from the root to `node`."""
        found = (self.nodes[index].message for index in self.path(node))
        return [message for message in found if message is not None]

    def find_root(self, tools_key: bytes, args_key: bytes) -> int | None:
        for index, root in enumerate(self.roots):
            if root.tools_key == tools_key and root.args_key == args_key:
                return index
        return None

    def add_root(self, root: Root) -> int:
        self.roots.append(root)
        return len(self.roots) - 1

    def add_tail(
        self,
        parent: int,
        messages: Sequence[Message],
        digests: Sequence[bytes],
        ids: TokenIds,
        expansions: tuple[Expansion, ...] = (),
    ) -> int:
        """Lays messages below `parent`, their ids on the last; returns the node that ends the prompt.

        Where the same messages with the same ids are there already (the prompt was sent before), they
        are used, so that no prompt is stored twice.
        """
        return self._lay(parent, messages, digests, ids, known=True, expansions=expansions)

    def add_sampled(
        self,
        parent: int,
        message: Message,
        digest: bytes,
        ids: Sequence[int] | None,
        logprobs: Sequence[float] | None,
        weight_versions: tuple[WeightSpan, ...] = (),
    ) -> int:
        """Adds the assistant message that answers the prompt ending at `parent`; returns its node."""
        known = ids is not None and (parent < 0 or self.nodes[parent].ids_known)
        node = self._add(
            Node(
                parent=parent,
                message=message,
                ids=ids_array(ids or ()),
                sampled=ids is not None,
                logprobs=array(LOGPROBS, logprobs or ()),
                weight_versions=weight_versions,
                ids_known=known,
                digest=digest,
            )
        )
        self.leaves.append(node)
        return node

    def add_prompt(
        self,
        root: int,
        messages: Sequence[Message],
        digests: Sequence[bytes],
        prompt_ids: Sequence[int] | None,
        last: LaidPrompt | None = None,
        expansions: tuple[Expansion, ...] | None = None,
    ) -> LaidPrompt:
        """Lays a whole prompt, as the server reported it, over the tree. `expansions` say that it has placeholders.

        Where the ids differ from what is there, a new branch forks, in the middle of a delta if need be. `last` is
        what this gave for the last turn's prompt: where this one goes on from it, the search begins at its end.
        """
        if prompt_ids is None:
            end = self._lay(-1 - root, messages, digests, ids_array(), known=False)
            return LaidPrompt(root, end, digests, ids_array(), alone=False, nodes=len(self.nodes))
        ids = ids_array(prompt_ids)
        start = self._start(root, digests, ids, last, placed=expansions is not None)
        node, depth, matched, partial = self._deepest_overlap(start, digests, ids, expansions)
        if partial is not None:
            child, shared = partial
            node, matched = self._split(child, shared), matched + shared
        new = expansions and tuple(Expansion(one.at - matched, one.runs) for one in expansions if one.at >= matched)
        end = self._lay(node, messages[depth:], digests[depth:], ids[matched:], known=True, expansions=new)
        alone = matched < len(ids) and len(self._nodes_at[self._prefix_of[end]]) == 1
        return LaidPrompt(root, end, digests, ids, alone, len(self.nodes))

    def _start(
        self, root: int, digests: Sequence[bytes], ids: TokenIds, last: LaidPrompt | None, *, placed: bool
    ) -> tuple[int, int, int]:
        """Where the search for what a prompt shares with the tree begins: (node, messages above, ids above).

        At the end of the last prompt that was laid, where this one goes on from it and nothing but its answer came
        since. That prompt had ids that no branch had, and no other branch has its messages, so none holds as much of
        this one: a conversation that goes on costs what is new, however often it forked before.
        """
        if (
            last is not None
            and last.alone
            and last.root == root
            and len(self.nodes) <= last.nodes + 1
            and self._is_read_as(last.end, placed=placed)
        ):
            depth, length = len(last.digests), len(last.ids)
            if depth < len(digests) and digests[:depth] == last.digests and ids[:length] == last.ids:
                return last.end, depth, length
        return -1 - root, 0, 0

    def _deepest_overlap(
        self,
        start: tuple[int, int, int],
        digests: Sequence[bytes],
        ids: TokenIds,
        expansions: tuple[Expansion, ...] | None,
    ) -> tuple[int, int, int, tuple[int, int] | None]:
        """Where a prompt departs from the tree: (node, messages above, ids above, (child, ids shared with it))."""
        best: tuple[int, int, int, tuple[int, int] | None] = (*start, None)
        stack = [start]
        while stack:
            node, depth, offset = stack.pop()
            for child in self._direct_children(node, digests[depth] if depth < len(digests) else None):
                delta, known = self.nodes[child].ids, self.nodes[child].ids_known
                below = depth + (self.nodes[child].message is not None)
                shared = _common_length(delta, ids, offset) if known else 0
                if shared and not _same_images(self.nodes[child], offset, shared, expansions):
                    shared = 0
                alike = shared or self._is_read_as(child, placed=expansions is not None)
                if known and shared == len(delta) and alike:
                    # A branch that leaves ids over but no message to hold them is no place to go on from.
                    if below < len(digests) or offset + shared == len(ids):
                        best = max(best, (child, below, offset + shared, None), key=_overlap)
                        stack.append((child, below, offset + shared))
                elif shared:
                    best = max(best, (node, depth, offset, (child, shared)), key=_overlap)
        return best

    def _is_read_as(self, node: int, *, placed: bool) -> bool:
        """Whether a node's branch has a placeholder an image as a prompt has (`placed`), or images as they were read.

        Their ids may lie on a message below the image's own, which says nothing itself.
        """
        return not self.nodes[node].multimodal or self.nodes[node].placed == placed

    def _direct_children(self, node: int, digest: bytes | None) -> Iterator[int]:
        below = self._children.get(node, {})
        if digest is not None:
            yield from below.get(digest, ())
        yield from below.get(b"", ())

    def _split(self, child: int, at: int) -> int:
        """Puts the first `at` ids of a node into a split node above it; returns the split node."""
        lower = self.nodes[child]
        self._children[lower.parent][lower.digest].remove(child)
        split = self._add(lower.cut(at))
        lower.parent = split
        self._children.setdefault(split, {}).setdefault(lower.digest, []).append(child)
        return split

    def _lay(
        self,
        parent: int,
        messages: Sequence[Message],
        digests: Sequence[bytes],
        ids: TokenIds,
        *,
        known: bool,
        expansions: tuple[Expansion, ...] | None = None,
    ) -> int:
        node, last = parent, len(messages) - 1
        empty = ids_array()
        for position, (message, digest) in enumerate(zip(messages, digests, strict=True)):
            delta = ids if position == last else empty
            own = expansions or () if position == last else ()
            placed = expansions is not None or not message.is_multimodal
            found = self._same_child(node, digest, delta, known, own, placed)
            if found is None:
                new = Node(parent=node, message=message, ids=delta, ids_known=known, digest=digest)
                new.expansions, new.placed = own, placed
                found = self._add(new)
            node = found
        if node >= 0:
            self.nodes[node].prompt_end = True
        return node

    def _same_child(
        self, parent: int, digest: bytes, delta: TokenIds, known: bool, expansions: tuple[Expansion, ...], placed: bool
    ) -> int | None:
        placed = placed and (parent < 0 or self.nodes[parent].placed)
        for child in reversed(self._children.get(parent, {}).get(digest, ())):
            node = self.nodes[child]
            same = node.ids == delta and node.expansions == expansions and node.placed == placed
            if same and not node.sampled and node.ids_known == known:
                return child
        return None

    def _add(self, node: Node) -> int:
        index = len(self.nodes)
        parent = self.nodes[node.parent] if node.parent >= 0 else None
        own_media = node.message is not None and node.message.is_multimodal
        node.multimodal = own_media or (parent is not None and parent.multimodal)
        node.ids_known = node.ids_known and (parent is None or parent.ids_known)
        node.placed = node.placed and (parent is None or parent.placed)
        self.nodes.append(node)
        self._children.setdefault(node.parent, {}).setdefault(node.digest, []).append(index)
        self._add_to_prefix(index)
        return index

    def _add_to_prefix(self, index: int) -> None:
        node = self.nodes[index]
        prefix = self._prefix_of[node.parent] if node.parent >= 0 else node.parent
        if node.message is not None:
            prefix = self._prefixes.setdefault((prefix, node.digest), len(self._nodes_at))
            if prefix == len(self._nodes_at):
                self._nodes_at.append([])
            self._nodes_at[prefix].append(index)
        self._prefix_of[index] = prefix


def _overlap(found: tuple[int, int, int, tuple[int, int] | None]) -> tuple[int, int]:
    _, depth, offset, partial = found
    return offset + (partial[1] if partial else 0), depth


def _common_length(delta: TokenIds, ids: TokenIds, offset: int) -> int:
    """How many ids of `delta` stand in `ids` from `offset` on."""
    window = ids[offset : offset + len(delta)]
    if window == delta:
        return len(delta)
    return next((i for i, (a, b) in enumerate(zip(delta, window, strict=False)) if a != b), len(window))


def _same_images(node: Node, offset: int, shared: int, expansions: tuple[Expansion, ...] | None) -> bool:
    """Whether the first ids of a node are a prompt's from `offset` on also for what the model reads of them."""
    if expansions is None:
        return not node.expansions
    here = tuple(Expansion(one.at - offset, one.runs) for one in expansions if offset <= one.at < offset + shared)
    return node.placed and here == tuple(one for one in node.expansions if one.at < shared)
