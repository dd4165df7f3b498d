"""Images on token-in: what a session sends with ids, and what it makes of the answer. See `rollout.tokens.images`."""

from __future__ import annotations

from collections.abc import Sequence

from rollout.chat.messages import Message, images_of
from rollout.errors import MalformedReply
from rollout.play.served import ServedModel
from rollout.request import Expansion, MessagePrompt, Reply, TokenPrompt
from rollout.tokens.images import as_logical, expansions_of, moved
from rollout.tokens.prefix import Extend, Fallback, FallbackReason
from rollout.tokens.trajectory import Trajectory


class Images:
    """The images of one session's conversations."""

    def __init__(self, tree: Trajectory, model: ServedModel) -> None:
        self._tree, self._model = tree, model

    def __repr__(self) -> str:
        return f"<Images placeholder={self._model.info.image_token}>"

    @property
    def are_sent(self) -> bool:
        """Whether ids go out with images: the server's own /tokenize would make bridges of what it puts for them."""
        codec = self._model.codec
        return self._model.info.image_token is not None and codec is not None and codec.has_tokenizer

    def prompt(self, ids: Sequence[int], node: int) -> TokenPrompt:
        """The ids that end at a node, or before its answer, with the images of its branch."""
        if node < 0 or not self._tree.nodes[node].multimodal:
            return TokenPrompt(ids)
        images = images_of(self._tree.messages(node)) or ()
        return TokenPrompt(ids, images, sum(one.length - 1 for one in expansions_of(self._tree, node)))

    def of(self, messages: Sequence[Message]) -> tuple[str, ...]:
        return images_of(messages) or ()

    def fault(self, prompt: TokenPrompt, plan: Extend) -> Fallback | None:
        """Why ids cannot go out with their images: a server gives each placeholder the next image, whoever wrote it."""
        if not prompt.images and not self._tree.nodes[plan.node].multimodal:
            return None
        if not (detail := self._miscounted(prompt)):
            return None
        return Fallback(reason=FallbackReason.MULTIMODAL, detail=detail, previous=plan.node, depth=plan.depth)

    def _miscounted(self, prompt: TokenPrompt) -> str:
        """What is wrong where a prompt's ids have not one placeholder for each of its images; "" where they have."""
        token = self._model.info.image_token
        placeholders = prompt.ids.count(token) if token is not None else 0
        if token is None or placeholders == len(prompt.images):
            return ""
        why = "the template shows none of some" if placeholders < len(prompt.images) else "the model sampled one, say"
        return f"the ids have {placeholders} placeholders for {len(prompt.images)} images: {why}"

    def are_miscounted(self, prompt: TokenPrompt | MessagePrompt) -> bool:
        """Whether ids with images would have their images in other places."""
        return isinstance(prompt, TokenPrompt) and bool(prompt.images) and bool(self._miscounted(prompt))

    def must_be_read_alike(self, parts: Sequence[Reply], reply: Reply) -> None:
        """Raises MalformedReply where a completion goes on from images that are read otherwise than before."""
        if parts and (parts[0].expansions or ()) != (reply.expansions or ()):
            raise MalformedReply("the server reads an image as other tokens than when it began this completion")

    def settled(self, reply: Reply, prompt: TokenPrompt | MessagePrompt) -> Reply:
        """The reply with logical ids. Raises MalformedReply."""
        return as_logical(reply, prompt, self._model.info.image_token)

    def of_tail(self, above: int, reply: Reply) -> tuple[Expansion, ...]:
        """What a tail's placeholders stood for, nothing for no tail. Raises MalformedReply where what is above it is
        read otherwise now."""
        found = reply.expansions or ()
        if not found:
            return ()
        before = expansions_of(self._tree, above)
        if found[: len(before)] != before:
            raise MalformedReply("the server reads an image of an earlier turn as other tokens than it did then")
        return moved(found[len(before) :], -len(self._tree.ids(above)))
