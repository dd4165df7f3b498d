"""A node of a trajectory: one message with its own ids, and all that is kept of each of them.

`rollout.tokens.trajectory` has the tree, and says which kinds of nodes there are.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from rollout.chat.messages import Message
from rollout.request import IDS, Expansion, WeightSpan
from rollout.token_fields import RoutedExperts, SamplingMask

#: Logprobs are stored as doubles: 8 bytes a token, beside 4 for an id.
LOGPROBS = "d"


if TYPE_CHECKING:
    TokenIds = array[int]
    Logprobs = array[float]
else:
    # Python 3.11's arrays take no parameters, and a reader of stored records must tell the two apart.
    class TokenIds(array):
        """int32 ids."""

        __slots__ = ()

    class Logprobs(array):
        """float64 natural logs."""

        __slots__ = ()


def ids_array(ids: Sequence[int] = ()) -> TokenIds:
    """Token ids in their stored form."""
    return ids if isinstance(ids, array) else array(IDS, ids)


class Root(msgspec.Struct, kw_only=True):
    """What changes every token of a prompt."""

    tools: Sequence[Mapping[str, Any]] = ()
    template_args: Mapping[str, Any] = {}
    tools_key: bytes = b""
    args_key: bytes = b""


class Node(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One message with its own ids; or, without a message, ids that two forks share."""

    parent: int
    """Index of the parent node; -1 - r for the first node below root r."""
    message: Message | None = None
    ids: TokenIds = msgspec.field(default_factory=ids_array)
    """This node's own delta, int32."""
    sampled: bool = False
    """Whether every id of the delta was sampled by the model; none was where this is False."""
    logprobs: Logprobs = msgspec.field(default_factory=lambda: array(LOGPROBS))
    """Natural-log probabilities, float64, one per id on a sampled node, none elsewhere."""
    weight_versions: tuple[WeightSpan, ...] = ()
    """Spans over this node's ids."""
    ids_known: bool = True
    """False where the server did not report the ids: the branch can then not be extended."""
    prompt_end: bool = False
    """Whether a prompt that was sent ends here: the concatenation includes the generation prompt."""
    multimodal: bool = False
    """Whether this message or one above it has a part that is not text."""
    routed_experts: RoutedExperts | None = None
    """Of the last so many ids, each with the experts of the token before it, which its logits came from: see
    `rollout.tokens.experts`."""
    sampling_mask: SamplingMask | None = None
    """On a sampled node: one entry an id."""
    expansions: tuple[Expansion, ...] = ()
    """What the model reads for the images of this delta, each of which is one placeholder in it."""
    placed: bool = True
    """False where the ids, or those above, are not known to have one placeholder an image: they cannot be extended."""
    digest: bytes = b""

    @property
    def length(self) -> int:
        """Tokens that the model reads of it: more than `ids` where those have placeholders."""
        return len(self.ids) + sum(one.length - 1 for one in self.expansions)

    def cut(self, at: int) -> Node:
        """Leaves this node the ids from `at` on; returns a node without a message that has those before."""
        upper = Node(
            parent=self.parent,
            ids=self.ids[:at],
            sampled=self.sampled,
            logprobs=self.logprobs[:at],
            weight_versions=_clip(self.weight_versions, 0, at),
            multimodal=self.multimodal,
            expansions=tuple(one for one in self.expansions if one.at < at),
            placed=self.placed,
        )
        self.ids, self.logprobs = self.ids[at:], self.logprobs[at:]
        self.expansions = tuple(Expansion(one.at - at, one.runs) for one in self.expansions if one.at >= at)
        self.weight_versions = _clip(self.weight_versions, at, at + len(self.ids))
        if self.routed_experts is not None:
            upper_rows = max(0, self.routed_experts.rows - self.length)
            upper.routed_experts = self.routed_experts.part(0, upper_rows)
            self.routed_experts = self.routed_experts.part(upper_rows, self.routed_experts.rows)
        if self.sampling_mask is not None:
            upper.sampling_mask = self.sampling_mask.part(0, at)
            self.sampling_mask = self.sampling_mask.part(at, at + len(self.ids))
        return upper


def _clip(spans: Sequence[WeightSpan], start: int, end: int) -> tuple[WeightSpan, ...]:
    """The spans that lie in [start, end), counted from `start`."""
    clipped = (WeightSpan(s.version, max(s.start, start) - start, min(s.end, end) - start) for s in spans)
    return tuple(span for span in clipped if span.start < span.end)
