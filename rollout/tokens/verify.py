"""The invariants of a trajectory, checked. See the design: sampled ids are never changed, dropped or masked."""

from __future__ import annotations

import math

import msgspec

from rollout.door import Refused, check_ids, check_logprobs
from rollout.errors import MalformedReply, RolloutError
from rollout.request import Reply, Request, TokenPrompt
from rollout.token_fields import RoutedExperts, SamplingMask
from rollout.tokens.trajectory import Trajectory, ids_array


class InvariantBroken(RolloutError):
    """A trajectory is not what was sampled: a bug of ours, or a server that changed a prompt."""


def check_reply(reply: Reply) -> Reply:
    """Invariant 2: sampled ids, their logprobs and their weight versions have one length, and each is what it says.

    Gives the reply with its prompt's ids as int32. Raises MalformedReply; always checked.
    """
    try:
        reply = _with_values_checked(reply)
    except Refused as refused:
        raise MalformedReply(f"the server's answer cannot be used: {refused}") from refused
    if reply.completion_ids is None:
        return reply
    if reply.logprobs is None or len(reply.logprobs) != len(reply.completion_ids):
        count = "no" if reply.logprobs is None else len(reply.logprobs)
        raise MalformedReply(f"the server answered {len(reply.completion_ids)} ids but {count} logprobs")
    ends = [0, *(span.end for span in reply.weight_versions)]
    gap = any(span.start != end or span.end < end for span, end in zip(reply.weight_versions, ends, strict=False))
    if reply.weight_versions and (gap or ends[-1] != len(reply.completion_ids)):
        spans = ", ".join(f"{span.version}: {span.start}-{span.end}" for span in reply.weight_versions)
        raise MalformedReply(f"weight versions ({spans}) do not cover the {len(reply.completion_ids)} sampled tokens")
    return reply


def _with_values_checked(reply: Reply) -> Reply:
    """Raises Refused."""
    if reply.completion_ids is not None:
        check_ids(reply.completion_ids)
    if reply.logprobs is not None and not reply.without_logprobs:
        check_logprobs(reply.logprobs)
    if reply.prompt_ids is None:
        return reply
    return msgspec.structs.replace(reply, prompt_ids=check_ids(reply.prompt_ids))


def check_fields(reply: Reply, request: Request, width: int | None) -> Reply:
    """Routed experts and sampling masks are of the tokens that were asked for; what nobody asked for is left out.

    `width` is how many experts a position had before; None where it is not known. An answer without sampled ids has
    none that is needed, and neither has one whose prompt nobody knows. Raises MalformedReply.
    """
    ids, experts, mask = reply.completion_ids, reply.routed_experts, reply.sampling_mask
    if experts is None and mask is None:
        return reply
    prompt_ids = reply.prompt_ids
    if prompt_ids is None and isinstance(request.prompt, TokenPrompt):
        prompt_ids = request.prompt.ids
    if not ids or prompt_ids is None or request.routed_experts_from is None:
        experts = None
    if not ids or not request.sampling_mask:
        mask = None
    if experts is not None and ids and prompt_ids is not None and request.routed_experts_from is not None:
        positions, start = len(prompt_ids) + len(ids) - 1, request.routed_experts_from
        if start and experts.rows == positions:  # a server that does not know from where answers them all
            experts = experts.part(start, positions)
        _check_experts(experts, len(prompt_ids), len(ids), start, width)
    if mask is not None and ids:
        _check_mask(mask, ids)
    return msgspec.structs.replace(reply, routed_experts=experts, sampling_mask=mask)


def _check_experts(experts: RoutedExperts | None, prompt: int, sampled: int, start: int, width: int | None) -> None:
    rows, wanted = experts.rows if experts is not None else 0, prompt + sampled - 1 - start
    if rows != wanted:
        raise MalformedReply(
            f"the server answered routed experts of {rows} positions, and {wanted} were asked for: those from {start} "
            f"on of {prompt} prompt and {sampled} sampled tokens, without the last"
        )
    if width is not None and experts is not None and experts.width != width:
        raise MalformedReply(f"the server answered {experts.width} routed experts a position, and before {width}")


def _check_mask(mask: SamplingMask, ids: list[int]) -> None:
    if mask.tokens != len(ids):
        raise MalformedReply(f"the server answered {len(ids)} ids but sampling masks of {mask.tokens}")
    import numpy as np  # here: a run that asks for no masks does not need it

    kept, offsets = (np.frombuffer(blob.data, np.int32) for blob in (mask.ids, mask.offsets))
    found = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept == np.repeat(ids, np.diff(offsets)))])
    without = np.flatnonzero(found[offsets[1:]] == found[offsets[:-1]])
    if len(without):
        raise MalformedReply(f"the server answered a sampling mask without {ids[without[0]]}, which it sampled")


def check_turn(tree: Trajectory, node: int, sent: TokenPrompt | None, reply: Reply, previous: int | None) -> None:
    """Invariants 1 and 4, for the turn just committed at `node`. Raises InvariantBroken.

    `sent` is the prompt on token-in; `previous` the sampled node that it extends.
    """
    received = ids_array(reply.prompt_ids) if reply.prompt_ids is not None else None
    if sent is not None and received is not None and received != sent.ids:
        at = next((i for i, (a, b) in enumerate(zip(sent.ids, received, strict=False)) if a != b), None)
        place = f"at position {at}" if at is not None else f"in length: {len(sent.ids)} and {len(received)}"
        raise InvariantBroken(f"the server's prompt differs from the one that was sent, {place}")
    if previous is not None and sent is not None:
        before = tree.ids(previous)
        if sent.ids[: len(before)] != before:
            raise InvariantBroken("the prompt does not start with the prompt and completion of the turn before")
    prompt_ids = received if received is not None or sent is None else sent.ids
    if prompt_ids is None or reply.completion_ids is None:
        return
    if tree.ids(node) != prompt_ids + ids_array(reply.completion_ids):
        raise InvariantBroken("the branch's ids differ from the prompt and completion of its last turn")


def check_trajectory(tree: Trajectory, sampled_tokens: int) -> None:
    """Invariants 2 and 3, over a whole trajectory. Raises InvariantBroken.

    `sampled_tokens` is how many tokens its turns sampled, by the turns' own count.
    """
    kept = 0
    for node in tree.nodes:
        if node.sampled:
            kept += len(node.ids)
            if len(node.logprobs) != len(node.ids):
                raise InvariantBroken(f"a node has {len(node.ids)} sampled ids and {len(node.logprobs)} logprobs")
            if any(value > 1e-6 for value in node.logprobs if not math.isnan(value)):
                raise InvariantBroken("a logprob is above 0")
        elif len(node.logprobs):
            raise InvariantBroken("a node that was not sampled has logprobs")
    if kept != sampled_tokens:
        raise InvariantBroken(f"{sampled_tokens} tokens were sampled, the tree holds {kept}")
    from rollout.tokens.samples import samples_of_tree  # here, because samples are made from trees, not for checking

    trained = sum(sum(sample.loss_mask) for sample in samples_of_tree(tree))
    if tree.leaves and all(tree.nodes[leaf].ids_known for leaf in tree.leaves) and trained != kept:
        raise InvariantBroken(f"{kept} tokens were sampled, the samples train on {trained}")
