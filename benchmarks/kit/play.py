"""Plays one case through the real session, prefix and bridge, and compares its prompts with full renderings.

The server's part is played here: it renders message prompts with the family, echoes what it saw, and samples
what the case says. Nothing of `rollout` is replaced but the transport.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import msgspec

from benchmarks.kit.completions import Kind
from benchmarks.kit.families import ONE_CALL, Family
from benchmarks.kit.shapes import NASTY, Shape, conversation_at, tools_at
from rollout.chat.messages import Function, Message, ToolCall
from rollout.codec.local import Lane
from rollout.codec.protocol import Codec
from rollout.codec.server import ServerCodec
from rollout.codec.types import Bridged, Context, Declined, Previous, make_context
from rollout.config import EngineConfig
from rollout.errors import RequestRefused, RolloutError
from rollout.play.late_system import LateSystems
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.records import Route
from rollout.request import MessagePrompt, Reply, Request
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.samples import samples_of_tree
from rollout.transport import ServerInfo, Transport

ROUNDS = 3

_READ = ("<think>", "</think>", "<tool_call>", "</tool_call>")


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a case's later turns."""

    extended: int = 0
    exact: int = 0
    """Of these, how many prompts are, id for id, the family's own rendering of the whole conversation."""
    unmeasured: int = 0
    """Of these, how many have no rendering to compare with: the template refuses the messages."""
    provoked: int = 0
    """Fallbacks that the shape is there to provoke."""
    fallbacks: Counter[str] = msgspec.field(default_factory=Counter)
    """Other fallbacks, by reason and detail."""
    read: int = 0
    """Answers whose text, reasoning and calls were read as the family writes them, to the last value."""
    broken: list[str] = []
    """What was found wrong."""
    bridges: Counter[str] = msgspec.field(default_factory=Counter)
    """Turns that went token-in, by the bridge that made their tails."""
    refusals: Counter[str] = msgspec.field(default_factory=Counter)
    """Conversations that the server's own template refuses, so that no engine could play them."""


class KitServer(Transport):
    """A server in a few lines: the family renders, the script samples, and every prompt is kept."""

    def __init__(self, family: Family) -> None:
        self.info = ServerInfo(
            dialect="kit", model="kit", token_route="kit", reports_prompt_ids=True, can_tokenize=True
        )
        self._family = family
        self.prompts: list[list[int]] = []
        self.completions: list[list[int]] = []
        self.next = Reply(completion_ids=[], logprobs=[])

    async def generate(self, request: Request) -> Reply:
        prompt = request.prompt
        ids = self._render(prompt, more=True) if isinstance(prompt, MessagePrompt) else list(prompt.ids)
        self.prompts.append(ids)
        self.completions.append(list(self.next.completion_ids or ()))
        return msgspec.structs.replace(self.next, prompt_ids=ids)

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        return self._render(prompt, more=add_generation_prompt)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return str(self._family.tokenizer.decode(list(ids)))

    async def aclose(self) -> None:
        pass

    def _render(self, prompt: MessagePrompt, *, more: bool) -> list[int]:
        try:
            return self._family.render(prompt.messages, prompt.tools, add_generation_prompt=more)
        except Exception as error:  # templates raise Jinja's errors, renderers any: a server answers 400
            raise RequestRefused(f"the template refuses: {error}", status=400) from error


class LaneCodec(Codec):
    """One lane, always on the loop."""

    description = "kit"

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.stop_token_ids = lane.stop_token_ids
        self.reader = lane.reader
        self.knows_developer = lane.knows_developer

    async def shows_late(self, before: str, role: str, behind: str, context: Context) -> bool:
        return self._lane.shows_late(before, role, behind, context)

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        return self._lane.extend(previous, tail, context)

    async def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        return self._lane.render(messages, context)

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message:
        return self._lane.parse(prompt_ids, completion_ids, context)


class Player:
    """Plays the cases of one family."""

    def __init__(self, family: Family, *, server_bridge: bool = False) -> None:
        self._family = family
        self._server = KitServer(family)
        self.stop_ids = family.lane().stop_token_ids
        self._codec: Codec = LaneCodec(family.lane())
        if server_bridge:
            codec = ServerCodec(self._server)
            codec.stop_token_ids += self.stop_ids
            self._codec = codec
        self._added = set(family.tokenizer.added_tokens_decoder)
        self._markers = _markers(family.tokenizer)

    async def play(self, shape: Shape, kind: Kind, seed: int) -> Outcome | None:
        """Plays a case; None where its completion does not apply to the family."""
        chance = random.Random(f"{self._family.name}/{shape.name}/{kind.name}/{seed}")
        outcome = Outcome()
        server = self._server
        server.prompts, server.completions = [], []
        config = EngineConfig(verify=True, match=shape.match, template_args=self._family.args)
        session = Session(ServedModel(transport=server, info=server.info, codec=self._codec, config=config), "kit")
        late = LateSystems(config.late_system, self._codec)
        history = self._family.opening()
        for turn in range(ROUNDS):
            messages, tools = conversation_at(shape, history, turn), tools_at(shape, turn)
            intended = self._intended(messages, kind.says(shape.says), tools)
            sampled = kind.make(self._family, intended, chance) if intended is not None else None
            if sampled is None:
                return None
            logprobs = [-chance.random() for _ in sampled.ids]
            server.next = Reply(completion_ids=sampled.ids, logprobs=logprobs, finish_reason=sampled.finish_reason)
            try:
                message = await session.turn(messages, tools=tools)
            except RequestRefused as error:
                outcome.refusals[str(error)] += 1
                return outcome
            except RolloutError as error:
                outcome.broken.append(f"{type(error).__name__}: {error}")
                return outcome
            if kind.is_said_whole:
                self._check_reading(message, kind.says(shape.says), sampled.ids, outcome, offered=bool(tools))
            sent, _ = await late.settled(messages, make_context(tools, self._family.args))
            self._judge(session, shape, sent, tools, outcome)
            history = [*messages, message, *shape.answer(message, turn)]
        outcome.broken += self._wrong_samples(session)
        return outcome

    def _intended(self, messages: Sequence[Message], message: Message, tools: Sequence[Any]) -> list[int] | None:
        """What the model samples to say a message; None where the family cannot write it (several calls in a turn)."""
        for history in (
            messages,
            self._family.opening(),
        ):  # a family that cannot render what came before can still sample
            try:
                return self._family.sampled(history, message, tools)
            except Exception:  # families state what they lack in their own ways: ValueError, Jinja's errors
                continue
        return None

    def _check_reading(
        self, message: Message, said: Message, ids: Sequence[int], outcome: Outcome, *, offered: bool
    ) -> None:
        """Compares what was read with what was said. How much whitespace stands around text is the template's."""
        thoughts, written = said.reasoning_content, self._family.tokenizer.decode(list(ids))
        if message.text == "" and said.text and message.reasoning_content:
            return  # the prompt opens reasoning, and the family's rendering never closes it: all of it is reasoning
        read = [(call.name, call.parsed_arguments()) for call in message.tool_calls]
        meant = [(call.name, call.parsed_arguments()) for call in said.tool_calls] if offered else []
        texts = {}
        if (offered or not said.tool_calls) and said.text in written:  # one family writes no text beside calls
            texts[message.text.strip()] = said.text.strip()
        if thoughts and thoughts in written:  # some families write none
            texts |= {(message.reasoning_content or "").strip(): thoughts}
        if read != meant[: 1 if self._family.name in ONE_CALL else None] or any(a != b for a, b in texts.items()):
            outcome.broken.append(
                f"{written[-300:]!r} is read as {message.text!r}, {message.reasoning_content!r}, {read}"
            )
        else:
            outcome.read += 1

    def _judge(
        self, session: Session, shape: Shape, messages: Sequence[Message], tools: Sequence[Any], outcome: Outcome
    ) -> None:
        """Classes the turn just played, and checks a prompt that went token-in."""
        turn = session.turns[-1]
        if turn.fallback is FallbackReason.FIRST_TURN:
            return
        if turn.fallback is not None:
            provoked = turn.fallback is shape.expected and not outcome.provoked
            outcome.provoked += provoked
            outcome.fallbacks[f"{turn.fallback.value}: {turn.fallback_detail}"] += not provoked
            return
        assert turn.route is Route.TOKEN_IN
        server = self._server
        prompt, before = server.prompts[-1], [*server.prompts[-2], *server.completions[-2]]
        if prompt[: len(before)] != before:
            outcome.broken.append("the prompt does not start with the ids before it")
            return
        outcome.extended += 1
        outcome.bridges[turn.bridge or ""] += 1
        self._compare(prompt, before, shape, messages, tools, outcome)

    def _compare(
        self,
        prompt: list[int],
        before: list[int],
        shape: Shape,
        messages: Sequence[Message],
        tools: Sequence[Any],
        outcome: Outcome,
    ) -> None:
        """Compares a prompt with the family's own rendering of the conversation, as far as that can be one."""
        bridge = prompt[len(before) :]
        cut_off = before[-1] not in self.stop_ids
        if shape.markers:
            # What the tokenizer itself makes of the text: to sentence pieces `▁` is a space.
            typed = NASTY.replace("▁", self._shown_of("a▁b")[1])
            if typed not in self._family.tokenizer.decode(bridge):
                outcome.broken.append("typed special text is not in the bridge as it was typed")
            messages = [msgspec.structs.replace(m, content=m.text.replace(NASTY, "x") or None) for m in messages]
        full = self._measure(messages, tools)
        if full is None:
            outcome.unmeasured += 1
            return
        if shape.markers:  # the server's rendering takes typed markers for tokens: only the markers are compared
            bridge, full = [[i for i in ids if i in self._markers] for ids in (bridge, full)]
        elif full[: len(before)] == before and not cut_off:
            if full != prompt:
                outcome.broken.append(f"the family renders on with {self._shown(full[len(before) :], bridge)}")
            outcome.exact += full == prompt
            return
        # How a cut-off turn is closed is the bridge's to choose, in a few markers; what follows the close is not.
        marks = {*self._added, *self._family.tokenizer.encode("</think>", add_special_tokens=False)}
        closes = range(1 + cut_off * sum(1 for _ in takewhile(marks.__contains__, bridge)))
        if not any(full[len(full) - len(bridge) + n :] == bridge[n:] for n in closes):
            outcome.broken.append(f"the family's rendering ends with {self._shown(full[-len(bridge) :], bridge)}")

    def _shown_of(self, text: str) -> str:
        tokenizer = self._family.tokenizer
        return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)))

    def _measure(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[int] | None:
        """The family's own rendering; None where it is no measure of what follows the assistant's turn."""
        answered = next(message for message in reversed(messages) if message.role == "assistant")
        if answered.text and answered.tool_calls and self._family.moves_text:
            return None
        try:
            return self._family.render(_adopted(messages), tools)
        except Exception:  # the template refuses what the ids hold
            return None

    def _shown(self, theirs: list[int], ours: list[int]) -> str:
        decode = self._family.tokenizer.decode
        return f"{decode(theirs)[-160:]!r}, the bridge is {decode(ours)[-160:]!r}"

    def _wrong_samples(self, session: Session) -> list[str]:
        """Checks that each sampled token is trained on exactly once, after exactly the prompt that the server had."""
        samples = samples_of_tree(session.trajectory)
        wrong = []
        trained = Counter[int]()
        for prompt, completion in zip(self._server.prompts, self._server.completions, strict=True):
            whole = [*prompt, *completion]
            holders = [
                index
                for index, sample in enumerate(samples)
                if sample.token_ids[: len(whole)].tolist() == whole and all(sample.loss_mask[len(prompt) : len(whole)])
            ]
            if completion and len(holders) != 1:
                wrong.append(f"a completion is trained on in {len(holders)} samples")
            trained.update(dict.fromkeys(holders[:1], len(completion)))
        if not wrong and sum(trained.values()) != sum(sum(sample.loss_mask) for sample in samples):
            wrong.append("a token that was not sampled is trained on")
        return wrong


def _markers(tokenizer: Any) -> set[int]:
    """Added tokens that typed text must not become: special ones, those that the template writes, those that are read.

    Without a template, all of them: a hand-written family writes which it likes.
    """
    template = str(tokenizer.chat_template or "")
    return {
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or not template or token.content in template or token.content in _READ
    }


def _adopted(messages: Sequence[Message]) -> list[Message]:
    """The messages with a call for each result that has none.

    Templates go astray at a result for a call that the parser could not read, but the model did make it.
    """
    out = list(messages)
    for at, message in enumerate(messages):
        results = list(takewhile(lambda m: m.role == "tool", messages[at + 1 :]))
        if message.role == "assistant" and results and not message.tool_calls:
            made = tuple(
                ToolCall(id=result.tool_call_id, function=Function(result.name or "tool", "{}")) for result in results
            )
            out[at] = Message("assistant", tool_calls=made)
    return out
