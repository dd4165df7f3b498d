"""The ids that were sampled: how they are kept, cut into training samples, and proved.

    trajectory     a tree of messages, each with its own token delta, and what of it was sampled
    node           one of them, and how it is cut where branches fork
    prefix         the longest known branch that a conversation goes on from, or why there is none
    experts        routed experts on the tree: from where a turn asks, which node has which
    images         placeholders in the tree, and what the model reads in their places
    samples        a branch as arrays: ids, loss mask, logprobs, versions
    sample_fields  a branch's routed experts and sampling masks as arrays
    batch          samples padded to rows, or packed
    advantages     rewards of a group -> advantages
    verify         the invariants, checked while it runs

A conversation of three turns is one branch of six nodes; its concatenation is, id for id, the last prompt and
completion that the server saw.

Others take `Trajectory` from `rollout.tokens.trajectory`, `Planner` from `rollout.tokens.prefix`, and `TrainingSample`
from `rollout.tokens.samples`.
"""
