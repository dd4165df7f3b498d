"""The codec of a server that renders and tokenizes: for models without a local tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import anyio

from rollout.chat.messages import Function, Message, ToolCall, tool, user
from rollout.codec import late, stand_in
from rollout.codec.history import ShapeCache
from rollout.codec.protocol import Codec
from rollout.codec.readers import Reader, Sampled, choose
from rollout.codec.types import Bridged, Context, Declined, Previous
from rollout.door import error_text
from rollout.errors import AuthenticationFailed, ModelNotFound, PromptTooLong, RequestRefused, TransportError
from rollout.log import get_logger
from rollout.memo import Memo
from rollout.request import MessagePrompt
from rollout.transport import Transport

_PROMPT_ENDS_KEPT = 1_024
_OPEN, _CLOSE = "<think>", "</think>"
_CONTEXTS_KEPT = 64

#: As `rollout.codec.local` has it. Fewer, for a server is asked for each end that is new.
_GENERATION_PROMPT = 8

#: What a server answers where its template refuses a conversation; None where it is in this process.
_TEMPLATES_STATUS = frozenset({400, 422, None})

Result = TypeVar("Result")
_log = get_logger(__name__)


class ServerCodec(Codec):
    """The server's /tokenize in the place of a tokenizer. Stop tokens are learnt from what it samples."""

    def __init__(self, transport: Transport, reader: Reader | None = None) -> None:
        """`reader` reads what was sampled; None has it found out from how the server renders a call."""
        self._transport = transport
        self.reader = reader
        self._asked = reader is not None
        self._asking = anyio.Lock()
        self._shapes = ShapeCache()
        self.stop_token_ids = []
        self._close_ids: list[int] | None = None
        self._late = Memo[tuple[object, ...], bool](_CONTEXTS_KEPT)
        self._closings = Memo[bytes, frozenset[int]](_CONTEXTS_KEPT)
        self._prompt_ends = Memo[tuple[int, ...], str](_PROMPT_ENDS_KEPT)
        self.description = "server (/tokenize)"

    async def saw_stop(self, completion_ids: Sequence[int], sampling: Mapping[str, Any], context: Context) -> None:
        """Learns the stop token from a completion that ended by one.

        Only where the template closes a turn with it: what a caller's own stop string or list ended is no turn's end,
        and its last token, sent as a stop token, would cut every later turn.
        """
        token = completion_ids[-1]
        if token in self.stop_token_ids or token in (sampling.get("stop_token_ids") or ()):
            return
        try:
            if await self._by_stop_string(completion_ids, sampling.get("stop") or []):
                return
            if context.key not in self._closings:
                self._closings[context.key] = await self._closing_ids(context)
        except TransportError as error:  # the next completion tells it, too
            _log.warning("stop_token_unknown", error=str(error))
            return
        if token in self._closings[context.key] and token not in self.stop_token_ids:  # others may have asked meanwhile
            self.stop_token_ids.append(token)

    async def _by_stop_string(self, completion_ids: Sequence[int], stops: str | Sequence[str]) -> bool:
        """Whether a completion may have ended by a stop string: one that its last token had a part in."""
        if not stops:
            return False
        longest = max(len(stop) for stop in ([stops] if isinstance(stops, str) else stops))
        text = await self._transport.detokenize(completion_ids[-longest - 1 :])  # a token is a character at least
        last = await self._transport.detokenize(completion_ids[-1:])
        return any(stop in text[-longest - len(last) :] for stop in ([stops] if isinstance(stops, str) else stops))

    async def _closing_ids(self, context: Context) -> frozenset[int]:
        """What the template writes behind an assistant's turn: one that spoke, and one that called."""
        call = ToolCall(id="call00000", function=Function("tool", "{}"))
        found = frozenset[int]()
        for said, answer in (
            (Message("assistant", "."), user(".")),
            (Message("assistant", tool_calls=(call,)), tool(".", call=call)),
        ):
            with contextlib.suppress(stand_in.NotExtendable):  # a template may know no calls
                found |= await self._drive(stand_in.closings(said, [answer]), context)
        return found

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        if not self.stop_token_ids:
            return Declined("server: no stop token seen yet")
        steps = self._shapes.steps(previous, tail, context.key, self.stop_token_ids)
        try:
            ids = await self._drive(steps, context)
            return Bridged([*await self._reasoning_end(previous, context), *ids], "server")
        except stand_in.NotExtendable as error:
            return Declined(f"server: {error}")
        except TransportError as error:
            _log.warning("bridge_raised", bridge="server", error=str(error))
            return Declined(f"server: {error}")

    async def _reasoning_end(self, previous: Previous, context: Context) -> list[int]:
        """`</think>`, where a completion was cut off in its reasoning: that is closed before the turn is."""
        ids = previous.completion_ids
        if not ids or ids[-1] in self.stop_token_ids:
            return []
        said = await self._transport.detokenize(ids)
        opened = (await self._prompt_end(tuple(previous.prompt_ids[-_GENERATION_PROMPT:]))).rstrip().endswith(_OPEN)
        if _CLOSE in said or not (opened or said.lstrip().startswith(_OPEN)):
            return []
        if self._close_ids is None:
            self._close_ids = await self._ids_of(_CLOSE, context)
        return self._close_ids

    async def _ids_of(self, text: str, context: Context) -> list[int]:
        """The ids of a short text, as they stand in a user's message; none where they cannot be told."""
        one = await self._tokenize(stand_in.Conversation([user(stand_in.WORDS[0])]), context)
        other = await self._tokenize(stand_in.Conversation([user(text)]), context)
        start = stand_in.common_prefix(one, other)
        found = other[start : len(other) - stand_in.common_suffix(one, other, start)]
        return found if (await self._transport.detokenize(found)).strip() == text else []

    async def _drive(self, steps: stand_in.Steps[Result], context: Context) -> Result:
        """Runs steps with the server's /tokenize. Raises NotExtendable, TransportError."""
        try:
            conversation = next(steps)
            while True:
                try:
                    ids = await self._tokenize(conversation, context)
                except Exception as error:
                    if not _is_the_templates(error):
                        raise
                    said = f"the server's template refuses: {error_text(error)}"
                    conversation = steps.throw(stand_in.NotRendered(said))
                else:
                    conversation = steps.send(ids)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    async def shows_late(self, before: str, role: str, behind: str, context: Context) -> bool:
        key = (context.key, before, role, behind)
        if key not in self._late:
            try:
                self._late[key] = await self._drive(late.shows_late(before, role, behind), context)
            except TransportError as error:  # the server decides
                _log.warning("late_system_unknown", error=str(error))
                return True
        return self._late[key]

    async def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        return await self._tokenize(stand_in.Conversation(messages), context)

    async def find_reader(self, *names: str | None) -> None:
        """Finds the reader by how the server writes a call, else by the model's names; asks once."""
        async with self._asking:
            if not self._asked:
                await self._find_reader(names)
                self._asked = True

    async def _find_reader(self, names: Sequence[str | None]) -> None:
        try:
            prompt, whole = [
                await self._transport.detokenize(
                    await self._transport.tokenize(
                        MessagePrompt(messages=messages, tools=choose.TOOLS, template_args={}),
                        add_generation_prompt=len(messages) == 1,
                    )
                )
                for messages in (choose.ASKED, [*choose.ASKED, choose.SAID])
            ]
        except TransportError:  # its template refuses calls, or tools
            self.reader = choose.reader_by_name(*names)
        else:
            self.reader = choose.reader_of(prompt, whole) or choose.reader_by_name(*names)

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message | None:
        if context.tools and not self._asked:
            await self.find_reader()
        stopped = bool(completion_ids) and completion_ids[-1] in self.stop_token_ids
        try:
            text = await self._transport.detokenize(completion_ids[: len(completion_ids) - stopped])
            prompt_end = await self._prompt_end(tuple(prompt_ids[-_GENERATION_PROMPT:]))
        except TransportError as error:
            _log.warning("parser_raised", error=str(error))
            return None
        sampled = Sampled(text=text, prompt_end=prompt_end, tools=context.tools, ended=stopped)
        return self.read(sampled)

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._transport.detokenize(ids)

    async def _prompt_end(self, ids: tuple[int, ...]) -> str:
        """The text of a prompt's end. Prompts end alike, so the server is asked once."""
        if ids not in self._prompt_ends:
            self._prompt_ends[ids] = await self._transport.detokenize(ids) if ids else ""
        return self._prompt_ends[ids]

    async def _tokenize(self, conversation: stand_in.Conversation, context: Context) -> list[int]:
        prompt = MessagePrompt(messages=conversation.messages, tools=context.tools, template_args=context.template_args)
        return await self._transport.tokenize(prompt, add_generation_prompt=conversation.add_generation_prompt)


def _is_the_templates(error: Exception) -> bool:
    """Whether an error is the template's word on a conversation. What a key or a gateway was refused proves nothing.

    What is no TransportError is the template's own, from a server in this process.
    """
    if not isinstance(error, TransportError):
        return True
    if isinstance(error, AuthenticationFailed | ModelNotFound | PromptTooLong):
        return False
    return isinstance(error, RequestRefused) and error.status in _TEMPLATES_STATUS
