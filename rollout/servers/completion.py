"""A completion in parts: what a server aborted for new weights, and what it sampled after. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from rollout.chat.messages import images_of
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt, WeightSpan
from rollout.token_fields import RoutedExperts, joined_masks

#: A completion that a server aborts more often by itself has failed: whoever aborts it means it.
MAX_RESUMPTIONS = 8

#: Before a completion is asked for again that a server aborted by itself: a growing pause, in seconds.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0


def pause_s(times: int) -> float:
    """Seconds to wait after a server has aborted a completion so often."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (times - 1))


def is_whole(request: Request, reply: Reply) -> bool:
    """Whether nothing is missing of what was asked for, although the server says that it was aborted."""
    return request.max_tokens is not None and len(reply.completion_ids or ()) >= request.max_tokens


def rest_of(request: Request, parts: Sequence[Reply]) -> Request | None:
    """The request for what is missing; None where the ids to go on from are not known.

    `request` is the last one sent, `parts` what was answered so far, the answer to it last.
    """
    last = parts[-1]
    if isinstance(request.prompt, TokenPrompt):
        prompt = request.prompt
    elif last.prompt_ids is not None and (images := _images_of(request.prompt, last)) is not None:
        prompt = TokenPrompt(last.prompt_ids, images, last.images_add)
    else:
        return None
    if last.completion_ids is None:
        return None
    sampled = len(last.completion_ids)
    left = None if request.max_tokens is None else request.max_tokens - sampled
    sampling = dict(request.sampling)
    if isinstance(least := sampling.get("min_tokens"), int):
        sampling["min_tokens"] = max(0, least - sampled)  # a server refuses one above max_tokens
    prompt = prompt.extended(last.completion_ids)
    known = request.routed_experts_from
    if known is not None and last.routed_experts is not None:
        known += last.routed_experts.rows
    return msgspec.structs.replace(
        request, prompt=prompt, max_tokens=left, sampling=sampling, routed_experts_from=known
    )


def _images_of(prompt: MessagePrompt, reply: Reply) -> tuple[str, ...] | None:
    """The images of messages that can go on as ids; None where they cannot."""
    images = images_of(prompt.messages)
    return None if images is None or (images and reply.expansions is None) else images


def joined(parts: Sequence[Reply]) -> Reply:
    """One reply of the parts in their order: prompt and cache are the first one's, the end is the last one's."""
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return first
    experts: RoutedExperts | None = None
    ids: list[int] = []
    logprobs: list[float] = []
    spans: list[WeightSpan] = []
    for part in parts:
        spans += [WeightSpan(s.version, s.start + len(ids), s.end + len(ids)) for s in part.weight_versions]
        ids += part.completion_ids or []
        logprobs += part.logprobs or []
        if part.routed_experts is not None:  # each part was asked from where those before it end
            experts = part.routed_experts if experts is None else experts.joined(part.routed_experts)
    covered = bool(spans) and spans[-1].end == len(ids) and sum(s.end - s.start for s in spans) == len(ids)
    return msgspec.structs.replace(
        first,
        completion_ids=ids,
        logprobs=logprobs,
        finish_reason=last.finish_reason,
        # The server's own reading is of one part only.
        message=None,
        weight_versions=tuple(spans) if covered else (),
        routed_experts=experts,
        sampling_mask=joined_masks([(part.sampling_mask, len(part.completion_ids or ())) for part in parts]),
        request_s=sum(part.request_s for part in parts),
    )


def with_version(reply: Reply, version: str | None) -> Reply:
    """The reply under the version that `Weights.sampled` gives, where the server itself reports none."""
    if reply.weight_versions or version is None or not reply.completion_ids:
        return reply
    return msgspec.structs.replace(reply, weight_versions=(WeightSpan(version, 0, len(reply.completion_ids)),))
