"""Which way a prompt goes out: what the planner found, and what the run and its server allow of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from rollout.chat.messages import Message, images_of
from rollout.codec.types import Context, Declined, Previous
from rollout.door import error_text
from rollout.errors import RolloutError
from rollout.log import get_logger
from rollout.play.images import Images
from rollout.play.served import ServedModel
from rollout.records import Route
from rollout.request import TokenPrompt
from rollout.tokens.prefix import EXPECTED_FALLBACKS, Extend, Fallback, FallbackReason, LastTurn, Planner, Prompt
from rollout.tokens.trajectory import Trajectory

_log = get_logger(__name__)


class FallbackRefused(RolloutError):
    """A turn would go message-in although token-in is required. Nothing was sent."""

    def __init__(self, fallback: Fallback) -> None:
        detail = f" ({fallback.detail})" if fallback.detail else ""
        super().__init__(f"token-in is required, and this turn cannot: {fallback.reason}{detail}")
        self.reason = fallback.reason


class Outgoing(msgspec.Struct, kw_only=True):
    """A prompt that is ready to be sent."""

    plan: Extend | Fallback
    route: Route
    prompt: TokenPrompt | None = None
    """On token-in."""
    bridge_ids: Sequence[int] = ()
    """On token-in from turn 2 on: what the bridge appended."""
    bridge: str | None = None
    previous: int | None = None
    """The sampled node of the turn before, if any."""


def allowed(plan: Extend | Fallback, model: ServedModel) -> Extend | Fallback:
    """The plan, where the run and its server allow it. A first turn, and one that falls back, have no ids to send."""
    match plan:
        case Fallback(reason=FallbackReason.FIRST_TURN, previous=None):
            return plan
        case Extend(node=node, tail=[_, *_]):
            previous: int | None = node
        case Extend():  # the very prompt that was sent before: nothing was sampled that it goes on from
            previous = None
        case Fallback(previous=previous):
            pass
    if model.config.mode == "mito":
        reason, detail = FallbackReason.DISABLED, ""
    elif model.info.token_route is None:
        reason, detail = FallbackReason.NO_TOKEN_ROUTE, ""
    elif isinstance(plan, Extend) and model.codec is None:
        reason, detail = FallbackReason.BRIDGE_DECLINED, "no local tokenizer and no /tokenize: name one by --tokenizer"
    else:
        return plan
    return Fallback(reason=reason, detail=detail, previous=previous, depth=plan.depth)


class Planned(NamedTuple):
    """What one turn asks, as it is planned and committed."""

    prompt: Prompt
    """Its late system messages settled."""
    context: Context
    last: LastTurn | None
    """The turn that it may go on from: see `LastTurns`."""
    folded: int
    """How many of the conversation's late system messages were folded."""


class Router:
    """Decides for each turn of one session, and makes the ids where they are made here."""

    def __init__(self, planner: Planner, tree: Trajectory, images: Images, model: ServedModel, session_id: str) -> None:
        self._planner, self._tree, self._images, self._model = planner, tree, images, model
        self._session_id = session_id
        self._logged: set[FallbackReason] = set()

    def __repr__(self) -> str:
        return f"<Router {self._session_id}, logged {sorted(self._logged)}>"

    async def length(self, planned: Planned) -> int | None:
        """How many tokens a turn's prompt would have; None where that cannot be told. Raises TransportError."""
        match allowed(self._planner.plan(planned.prompt, planned.last), self._model):
            case Extend(node=node, tail=[]):
                return self._images.prompt(self._tree.ids(node), node).length
            case Extend() as plan:
                outgoing = await self._extend(plan, planned)
                if isinstance(outgoing, Outgoing) and outgoing.prompt is not None:
                    return outgoing.prompt.length
        ids, _ = await self.rendered(planned)
        return None if ids is None else len(ids)

    async def prepared(self, planned: Planned) -> Outgoing:
        """Decides the route. Raises FallbackRefused."""
        match allowed(self._planner.plan(planned.prompt, planned.last), self._model):
            case Extend(node=node, tail=[]) as plan:
                prompt = self._images.prompt(self._tree.ids(node), node)
                outgoing = self._images.fault(prompt, plan) or Outgoing(plan=plan, route=Route.TOKEN_IN, prompt=prompt)
            case Extend() as plan:
                outgoing = await self._extend(plan, planned)
            case Fallback() as outgoing:
                pass
        if isinstance(outgoing, Outgoing):
            return outgoing
        self._note(outgoing)
        return await self._fall_back(outgoing, planned)

    async def _extend(self, plan: Extend, planned: Planned) -> Outgoing | Fallback:
        """The prompt with its tail bridged, or why no bridge has it."""
        prompt = planned.prompt
        answered, completion_ids = self.turn_of(plan.node, planned.last)
        assert self._model.codec is not None, "what is `allowed` extends only where there is a codec"
        previous = Previous(
            prompt_ids=answered.ids,
            completion_ids=completion_ids,
            message=self._answered(plan, prompt),
            history=prompt.messages[: max(0, plan.depth - 1)],
        )
        match await self._model.codec.extend(previous, plan.tail, planned.context):
            case Declined(reason=detail):
                reason = FallbackReason.BRIDGE_DECLINED
                return Fallback(reason=reason, detail=detail, previous=plan.node, depth=plan.depth)
            case bridged:
                images = self._images.of(plan.tail) if self._planner.sends_images else ()
                ids = answered.extended([*completion_ids, *bridged.ids], images)
                return self._images.fault(ids, plan) or Outgoing(
                    plan=plan,
                    route=Route.TOKEN_IN,
                    prompt=ids,
                    bridge_ids=bridged.ids,
                    bridge=bridged.bridge,
                    previous=plan.node,
                )

    def turn_of(self, node: int, last: LastTurn | None) -> tuple[TokenPrompt, list[int]]:
        """The prompt and the completion of the turn that a sampled node ends."""
        if last is not None and last.node == node and last.received is not None and not self._tree.is_split(node):
            return last.received, self._tree.nodes[node].ids.tolist()
        prompt_ids, completion_ids = self._tree.turn_ids(node)
        return self._images.prompt(prompt_ids, node), completion_ids

    def _answered(self, plan: Extend, prompt: Prompt) -> Message | None:
        """The assistant's message before the tail. The caller's, where its calls are those that the tail answers."""
        theirs = prompt.messages[plan.depth - 1] if plan.depth else None
        return theirs if theirs is not None and theirs.tool_calls else self._tree.nodes[plan.node].message

    def _note(self, fallback: Fallback) -> None:
        """Logs a fallback once per kind and trajectory. Raises FallbackRefused where token-in is required."""
        if fallback.reason in EXPECTED_FALLBACKS:
            return
        if self._model.config.require_token_in:
            raise FallbackRefused(fallback)
        if fallback.reason not in self._logged:
            self._logged.add(fallback.reason)
            _log.warning("fallback", session=self._session_id, reason=fallback.reason.value, detail=fallback.detail)

    async def _fall_back(self, plan: Fallback, planned: Planned) -> Outgoing:
        if not self._renders_here(plan, planned.prompt):
            return Outgoing(plan=plan, route=Route.MESSAGE_IN, previous=plan.previous)
        ids, fault = await self.rendered(planned)
        first = plan.reason is FallbackReason.FIRST_TURN
        if ids is None and first:
            plan = msgspec.structs.replace(plan, reason=FallbackReason.NOT_RENDERED, detail=fault)
            self._note(plan)
        made = TokenPrompt(ids, self._images.of(planned.prompt.messages)) if ids else None
        if made is not None and self._images.are_miscounted(made):
            return Outgoing(plan=plan, route=Route.MESSAGE_IN, previous=plan.previous)
        route = Route.TOKEN_IN if first and ids is not None else Route.MESSAGE_IN
        return Outgoing(plan=plan, route=route, prompt=made, previous=plan.previous)

    def _renders_here(self, plan: Fallback, prompt: Prompt) -> bool:
        """Whether a prompt of messages is made here and sent as ids.

        Where the server would not tell the first prompt's ids, or the sampling masks that the run wants, and where it
        would take markers that are typed in a text for tokens, which on token-in are text.
        """
        config, info, codec = self._model.config, self._model.info, self._model.codec
        if config.mode != "tito" or info.token_route is None or codec is None:
            return False
        if any(message.is_multimodal for message in prompt.messages):
            # What stands for images is the server's to put in: it has them with ids for the markers' sake only.
            ours = self._images.are_sent and images_of(prompt.messages) is not None
            return ours and codec.has_typed_markers(prompt.messages)
        untold = not info.reports_prompt_ids or (config.sampling_mask and info.masks_by_ids_only)
        return (plan.reason is FallbackReason.FIRST_TURN and untold) or codec.has_typed_markers(prompt.messages)

    async def rendered(self, planned: Planned) -> tuple[list[int] | None, str]:
        """(a prompt's ids as they are made here, or why they cannot be). The server may know better, so it is asked."""
        assert self._model.codec is not None, "only a codec renders"
        try:
            return await self._model.codec.render(planned.prompt.messages, planned.context), ""
        except Exception as error:  # a template's, a renderer's or a tokenizer's: Jinja's errors, RecursionError
            fault = f"{type(error).__name__}: {error_text(error)}"
            if FallbackReason.NOT_RENDERED not in self._logged:
                _log.warning("not_rendered", session=self._session_id, error=fault)
            self._logged.add(FallbackReason.NOT_RENDERED)
            return None, fault
