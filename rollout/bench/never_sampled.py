"""How much a trainer would learn that nobody sampled, where each later prompt is taken for what the model said."""

from __future__ import annotations

from difflib import SequenceMatcher
from itertools import pairwise

from rollout.records import Rollout


def never_sampled(rollout: Rollout) -> int:
    """Tokens of assistant messages in later prompts that nobody sampled: 0 where every turn went token-in.

    What a trainer would learn that takes the last prompt and completion as one sample, with all assistant text in it.
    """
    tree, count = rollout.trajectory, 0
    for before, after in pairwise(rollout.turns):
        if not after.prefix_break:
            continue
        prompt, sampled = tree.turn_ids(before.node)
        later, _ = tree.turn_ids(after.node)
        same = next((at for at, (a, b) in enumerate(zip(prompt, later, strict=False)) if a != b), len(prompt))
        rest = later[same:]
        # The message ends with the stop token that the model sampled; one that was cut off is as long as it was.
        ends = before.finish_reason == "stop" and sampled[-1] in rest
        rest = rest[: rest.index(sampled[-1]) + 1 if ends else len(sampled)]
        count += len(rest) - sum(b.size for b in SequenceMatcher(None, sampled, rest, False).get_matching_blocks())
    return count
