"""One turn: plan the prompt, call the transport, commit what came back.

1. `Planner.plan` says which ids the conversation extends, or why none.
2. The codec bridges the new messages, or declines.
3. The prompt goes out: ids (token-in), or messages (message-in) with a reason.
4. The answer's ids and logprobs are checked, and the assistant's message is read from the ids.
5. The tree takes both. Nothing is committed of a turn that failed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollout.chat.canonical import digest
from rollout.chat.messages import Message
from rollout.codec.readers import number_calls
from rollout.codec.types import Context, make_context
from rollout.door import header
from rollout.errors import CompletionAborted, MalformedReply, RolloutError
from rollout.log import get_logger
from rollout.loop.deadlines import Clock
from rollout.memo import Memo
from rollout.play.fields import TokenFields
from rollout.play.images import Images
from rollout.play.late_system import LateSystems
from rollout.play.route import Outgoing, Planned, Router
from rollout.play.served import ServedModel, sampling_within
from rollout.records import Route, Turn
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.servers.completion import MAX_RESUMPTIONS, is_whole, joined, pause_s, rest_of
from rollout.tokens.prefix import (
    Extend,
    Fallback,
    LastTurn,
    LastTurns,
    Planner,
    Prompt,
)
from rollout.tokens.trajectory import Trajectory, ids_array
from rollout.tokens.verify import check_reply, check_turn
from rollout.transport import ServerInfo

#: Sets of tools and template arguments whose context is kept: a session's agents have one each.
_CONTEXTS = 16

_log = get_logger(__name__)


class SessionClosed(RolloutError):
    """The rollout has ended: nothing is asked of its model any more."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What one turn asks of the model."""

    messages: Sequence[object]
    """The whole conversation, in any form that `Message.of` reads."""
    tools: Sequence[Mapping[str, Any]] = ()
    template_args: Mapping[str, Any] | None = None
    """None takes the run's."""
    max_tokens: int | None = None
    """This completion's own, in place of the run's."""
    sampling: Mapping[str, Any] = {}
    """These parameters win over the run's."""
    agent: str = ""
    """Who asks; "" is the rollout's own agent."""
    train: bool = True
    """Whether what is sampled is trained on."""


class Session:
    """One trajectory's conversations with the model. Any number of turns may be under way at once."""

    def __init__(
        self,
        model: ServedModel,
        session_id: str,
        group_id: str = "",
        group_size: int = 1,
        *,
        trajectory: Trajectory | None = None,
        turns: Sequence[Turn] = (),
    ) -> None:
        """`group_id` keeps the group's sessions, `group_size` of them, on one server where there are several.

        `trajectory` and `turns` are those of a session that another process began.
        """
        self.trajectory = Trajectory() if trajectory is None else trajectory
        self.turns: list[Turn] = list(turns)
        self.turnstile = model.turnstile
        self._model = model
        self._id = header(session_id)
        """As it is sent in headers: task ids may be any text."""
        self._group_id, self._group_size = group_id, group_size
        self._images = Images(self.trajectory, model)
        self._planner = Planner(self.trajectory, model.config.match)
        self._router = Router(self._planner, self.trajectory, self._images, model, self._id)
        self._contexts = Memo[bytes, Context](_CONTEXTS)
        self._lasts = LastTurns()
        self._fields = TokenFields(self.trajectory, model.config)
        self._late_systems = LateSystems(model.config.late_system, model.codec)
        self._numbers = itertools.count(1)
        """Request ids differ even where two turns of one session are under way at once."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<Session {self._id} {len(self.turns)} turns, {self.trajectory.token_count} tokens>"

    def has_several(self) -> None:
        """Tells that one trajectory will have several conversations: see `Planner.several`."""
        self._planner.several = True

    @property
    def server(self) -> ServerInfo:
        """What the server says of itself."""
        return self._model.info

    @property
    def clock(self) -> Clock:
        """Stands still while nothing may be sent."""
        return self._model.weights.clock

    @property
    def conversation(self) -> list[Message]:
        """That of its agent's own last turn; of a named one's, where the agent asked for none itself."""
        turns = [turn for turn in self.turns if not turn.agent] or self.turns
        return self.trajectory.messages(turns[-1].node) if turns else []

    def close(self) -> None:
        """The trajectory has ended, however it did: its server has room for another. What is under way is not kept."""
        self._closed = True
        self._model.transport.release(self._id)

    async def turn(
        self,
        messages: Sequence[object],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_args: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> Message:
        """Has the model answer a conversation; returns the assistant's message. Raises as `ask` does."""
        asked = Ask(messages=messages, tools=tools, template_args=template_args, max_tokens=max_tokens)
        return (await self.ask(asked))[0]

    async def ask(self, ask: Ask) -> tuple[Message, int]:
        """Has the model answer a conversation; returns the assistant's message, and its turn's index in `turns`.

        Raises ContextFull, FallbackRefused, SessionClosed, MessageError, TransportError (MalformedReply included), or
        InvariantBroken under `verify`.
        """
        if (spans := self._model.spans) is None:
            return await self._ask(ask)
        with spans.turn(self._id, ask.agent) as tell:
            message, index = await self._ask(ask)
            tell(self.turns[index])
        return message, index

    async def _ask(self, ask: Ask) -> tuple[Message, int]:
        await self.turnstile.enter()
        started = time.perf_counter()
        planned = await self._planned(ask)
        outgoing = await self._router.prepared(planned)
        request = await self._request(planned, outgoing, ask)
        rendered = time.perf_counter()
        reply = await self._generate(request)
        await self.turnstile.enter()
        answered = time.perf_counter()
        message = await self._read(reply, outgoing, request, planned)
        if self._closed:
            raise SessionClosed("the rollout has ended: what it asked for last is not kept")
        turn = self._commit(planned, outgoing, request, reply, message)
        turn.agent, turn.train = ask.agent, ask.train
        turn.sampling, turn.logprobs_mode = self._model.sampling_of(request.sampling), self._model.info.logprobs_mode
        if ask.sampling and ask.train and turn.sampling is not None:
            self._model.warn_of(turn.sampling)
        turn.request_s = reply.request_s or answered - rendered
        turn.queue_s = max(0.0, answered - rendered - turn.request_s)
        turn.render_s = time.perf_counter() - answered + rendered - started
        self.turns.append(turn)
        return message, len(self.turns) - 1

    async def count(self, ask: Ask) -> int | None:
        """How many tokens this turn's prompt would have; None where neither a tokenizer nor the server can tell.

        What goes on from a sampled turn is counted by the ids that would go out. Raises MessageError, TransportError.
        """
        if self._model.codec is None:
            return None
        return await self._router.length(await self._planned(ask))

    async def _planned(self, ask: Ask) -> Planned:
        """The conversation as it is to be sent. Raises MessageError."""
        args = self._model.config.template_args if ask.template_args is None else ask.template_args
        last = self._lasts.of(ask.messages)
        self._planner.sends_images = self._images.are_sent  # a server that takes none may have come to the others
        prompt = self._planner.prompt(ask.messages, ask.tools, args, last)
        context = self._make_context(prompt)
        settled, folded = await self._late_systems.settled(prompt.messages, context)
        if settled is not prompt.messages:
            last = self._lasts.of(settled)
            prompt = self._planner.prompt(settled, ask.tools, args, last)
        return Planned(prompt, context, last, folded)

    async def _generate(self, request: Request) -> Reply:
        """The whole completion: one that was aborted goes on from its sampled tokens, or is asked for anew.

        At once where we had it aborted, for new weights. After growing pauses where the server did so by itself.
        """
        weights, parts, asked, aborted = self._model.weights, list[Reply](), request, 0
        while True:
            ours = weights.aborts
            reply = await self._model.generate(asked)
            reply = self._images.settled(self._fields.checked(check_reply(reply), asked), asked.prompt)
            self._images.must_be_read_alike(parts, reply)
            parts.append(reply)
            if reply.finish_reason != "abort":
                return joined(parts)
            if is_whole(asked, reply):
                return msgspec.structs.replace(joined(parts), finish_reason="length")
            if ours == weights.aborts and not weights.held:
                aborted += 1
                if aborted > MAX_RESUMPTIONS:
                    raise CompletionAborted(f"the server ended this completion {aborted} times before it was whole")
                await (self._model.sleep or weights.clock.sleep)(pause_s(aborted))
            rest = rest_of(asked, parts) if self._model.info.token_route is not None else None
            if rest is not None and self._images.are_miscounted(rest.prompt):
                rest = None  # the model sampled a placeholder, which the server would give the next image
            if rest is None:
                parts.clear()
            asked = msgspec.structs.replace(rest or request, request_id=f"{self._id}-{next(self._numbers)}")

    def _make_context(self, prompt: Prompt) -> Context:
        key = prompt.root.tools_key + prompt.root.args_key
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = make_context(prompt.root.tools, prompt.root.template_args)
        return context

    async def _request(self, planned: Planned, outgoing: Outgoing, ask: Ask) -> Request:
        """The request, with `max_tokens` cut to what fits. Raises ContextFull."""
        config, context, last = self._model.config, planned.context, planned.last
        body: TokenPrompt | MessagePrompt | None = outgoing.prompt
        if body is None:
            args = context.template_args
            before = last.sent if last is not None else None
            body = MessagePrompt(planned.prompt.messages, context.tools, args, before=before)

        async def render() -> Sequence[int] | None:
            return (await self._router.rendered(planned))[0]

        most = ask.max_tokens or config.max_tokens
        sampling = {**config.sampling, **ask.sampling} if ask.sampling else config.sampling
        room = await self._model.room(body, most, last, render)
        return Request(
            prompt=body,
            request_id=f"{self._id}-{next(self._numbers)}",
            session_id=self._id,
            group_id=self._group_id,
            group_size=self._group_size,
            max_tokens=room,
            sampling=sampling_within(sampling, config.max_tokens, room),
            stop_token_ids=self._model.stop_token_ids,
            priority=config.priority,
            cache_salt=config.cache_salt,
            echo_prompt=config.verify,
            routed_experts_from=self._fields.experts_from(outgoing.plan),
            sampling_mask=config.sampling_mask,
        )

    async def _read(self, reply: Reply, outgoing: Outgoing, request: Request, planned: Planned) -> Message:
        codec, context = self._model.codec, planned.context
        message = None
        if codec is not None and reply.completion_ids is not None:
            if reply.finish_reason == "stop" and reply.completion_ids:
                await codec.saw_stop(reply.completion_ids, request.sampling, context)
            prompt_ids = outgoing.prompt.ids if outgoing.prompt is not None else reply.prompt_ids or []
            message = await codec.parse(prompt_ids, reply.completion_ids, context)
        message = message or reply.message
        if message is None:
            raise MalformedReply("the server answered neither ids that can be read here nor a message")
        if message.tool_calls:
            message = number_calls(message, sum(len(earlier.tool_calls) for earlier in planned.prompt.messages))
        return message

    def _commit(self, planned: Planned, outgoing: Outgoing, request: Request, reply: Reply, message: Message) -> Turn:
        """Puts the turn into the tree. The first change to it: nothing before can leave it half made."""
        prompt, _, last, folded = planned
        tree, plan, sent = self.trajectory, outgoing.plan, outgoing.prompt
        before = len(tree.nodes)
        received = self._received(sent, reply, prompt.messages)
        broken = self._is_broken(outgoing, received, last)
        root = tree.find_root(prompt.root.tools_key, prompt.root.args_key)
        root = tree.add_root(prompt.root) if root is None else root
        laid = last.laid if last is not None else None
        match plan:
            case Extend(node=end, tail=[]) if received is sent:
                self._images.of_tail(end, reply)  # of none: what was there is read as it was, or the turn fails
            case Extend(node=above, tail=tail, depth=depth) if received is sent:
                tail_images = self._images.of_tail(above, reply)
                ids = ids_array(outgoing.bridge_ids)
                end = tree.add_tail(above, tail, prompt.digests[depth:], ids, tail_images)
            case _:
                whole = received.ids if received is not None else None
                laid = tree.add_prompt(root, prompt.messages, prompt.digests, whole, laid, reply.expansions)
                end = laid.end
        answer = digest(message, self._model.config.match)
        node = tree.add_sampled(end, message, answer, reply.completion_ids, reply.logprobs, reply.weight_versions)
        self._fields.commit(node, reply, request, before)
        turn = self._turn(outgoing, reply, node, received, broken)
        turn.folded = max(0, folded - (last.folded if last is not None else 0))
        as_messages = request.prompt if isinstance(request.prompt, MessagePrompt) else None
        digests = [*prompt.digests, answer]
        after = LastTurn(
            root=root,
            messages=[*prompt.messages, message],
            digests=digests,
            prefixes=self._planner.prefixes(root, digests, last),
            node=node,
            received=received.read_as(reply.images_add) if received is not None else None,
            laid=laid,
            sent=as_messages or (last.sent if last is not None else None),
            sent_tokens=turn.prompt_tokens if as_messages else last.sent_tokens if last is not None else 0,
            folded=folded,
        )
        self._lasts.add(after, last)
        if self._model.config.verify:
            check_turn(tree, node, sent, reply, outgoing.previous if outgoing.route is Route.TOKEN_IN else None)
        return turn

    def _received(self, sent: TokenPrompt | None, reply: Reply, messages: Sequence[Message]) -> TokenPrompt | None:
        """The prompt as the server had it: what was sent, unless it says otherwise; None where nobody knows its ids."""
        if reply.prompt_ids is None or (sent is not None and sent.ids == ids_array(reply.prompt_ids)):
            received = sent
        else:
            received = TokenPrompt(reply.prompt_ids)
        if reply.expansions is not None and received is not None and not received.images:
            received = TokenPrompt(received.ids, self._images.of(messages))
        return received

    def _is_broken(self, outgoing: Outgoing, received: TokenPrompt | None, last: LastTurn | None) -> bool | None:
        """Whether the server's prompt departs from what was sampled before; None where that cannot be known."""
        previous = outgoing.previous
        if previous is None or received is None or not self.trajectory.nodes[previous].ids_known:
            return None
        branch = self.trajectory.nodes[previous]
        if branch.multimodal and branch.placed != bool(received.images):
            return None  # of one the images' placeholders are known, of the other what was read
        if received is outgoing.prompt and isinstance(outgoing.plan, Extend):
            return False  # the prompt was made from those very ids; `verify` compares them all the same
        answered, completion_ids = self._router.turn_of(previous, last)
        length = len(answered.ids)
        sampled = received.ids[length : length + len(completion_ids)]
        return received.ids[:length] != answered.ids or sampled.tolist() != completion_ids

    def _turn(
        self, outgoing: Outgoing, reply: Reply, node: int, received: TokenPrompt | None, broken: bool | None
    ) -> Turn:
        plan = outgoing.plan
        fallback = plan if isinstance(plan, Fallback) and outgoing.route is Route.MESSAGE_IN else None
        return Turn(
            route=outgoing.route,
            fallback=fallback.reason if fallback else None,
            fallback_detail=fallback.detail if fallback else "",
            bridge=outgoing.bridge,
            node=node,
            prompt_tokens=(
                len(received.ids) + reply.images_add if received is not None else _counted(reply.prompt_tokens) or 0
            ),
            completion_tokens=len(reply.completion_ids or ()),
            cached_tokens=_counted(reply.cached_tokens),
            finish_reason=reply.finish_reason,
            weight_versions=reply.weight_versions,
            prefix_break=broken,
        )


def _counted(said: int | None) -> int | None:
    """A server's count of a prompt's tokens; None for one that cannot be, which is worth no turn."""
    return said if said is not None and 0 <= said < 2**31 else None
