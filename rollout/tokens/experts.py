"""Routed experts on the tree: where a turn's are to be asked from, and which node has which.

A server reports a row for each position but the last. A node keeps, for each of its ids, the row of the position before
it: the experts that the id's logits came from. So every turn brings exactly the rows of the ids that it added, no later
turn adds to what an earlier one has, and a fork cuts rows where it cuts ids. A branch's first id has none.

An example. Turn 1 has a prompt of 3 ids and samples 2, so 4 rows (0 to 3) come back; turn 2 goes on with 2 ids of the
user's and samples 1, and asks from position 4:

    position       0   1   2  |  3   4  |  5   6  |  7
    id             s   u   g  |  a   b  |  c   d  |  e         s: its row would be of position -1
    row of the id  -   0   1  |  2   3  |  4   5  |  6

Positions are of what the model reads: an image has as many as it is read as, though one id stands for it in the tree.
Where a server reported nothing for a turn, its ids have no rows. The next turn on that branch asks from the first that
is missing, and what comes is filled in. What is known stays as it was: it is what the token was sampled with.
"""

from __future__ import annotations

from rollout.token_fields import RoutedExperts
from rollout.tokens.trajectory import Trajectory


def known_until(tree: Trajectory, node: int) -> int:
    """The position from which the experts of what goes on behind `node` are to be asked for."""
    offset = 0
    for index in tree.path(node):
        count = tree.nodes[index].length
        if count and _lacking(tree, index, offset):
            break
        offset += count
    return max(0, offset - 1)


def put_experts(tree: Trajectory, node: int, experts: RoutedExperts, start: int, before: int) -> bool:
    """Gives the ids up to a turn's sampled node their rows, where they have none: positions from `start` on.

    `before` is how many nodes there were before the turn. Tells whether the rows were those of this branch: they must
    end at the last position but one.
    """
    path = tree.path(node)
    if start + experts.rows != sum(tree.nodes[index].length for index in path) - 1:
        return False
    offset = 0
    for index in path:
        each = tree.nodes[index]
        count, lacking = each.length, _lacking(tree, index, offset)
        first = max(offset, 1) - 1  # the position of its first row
        new = experts.part(max(0, first - start), first + lacking - start) if lacking else None
        known = each.routed_experts
        if new is not None and (known is None or known.width == new.width):
            each.routed_experts = new.joined(known)
            if index < before:
                tree.filled.append(index)
        offset += count
    return True


def _lacking(tree: Trajectory, index: int, offset: int) -> int:
    """How many of a node's ids have no row and should; `offset` ids are above it."""
    node = tree.nodes[index]
    known = node.routed_experts.rows if node.routed_experts is not None else 0
    return node.length - known - (offset == 0 and node.length > 0)
