"""The codec of a server that renders and tokenizes: for models without a local tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from rollout.chat.messages import Message
from rollout.codec import stand_in
from rollout.codec.history import ShapeCache
from rollout.codec.protocol import Codec
from rollout.codec.readers import Reader, Sampled, read
from rollout.codec.readers.tagged import HERMES
from rollout.codec.types import Bridged, Context, Declined, Previous
from rollout.errors import RequestRefused, TransportError
from rollout.log import get_logger
from rollout.memo import Memo
from rollout.request import MessagePrompt
from rollout.transport import Transport

_PROMPT_ENDS_KEPT = 1_024

#: As `rollout.codec.local` has it. Fewer, for a server is asked for each end that is new.
_GENERATION_PROMPT = 8

_log = get_logger(__name__)


class ServerCodec(Codec):
    """The server's /tokenize in the place of a tokenizer. Stop tokens are learnt from what it samples."""

    def __init__(self, transport: Transport, reader: Reader | None = None) -> None:
        self._transport = transport
        self.reader = reader
        self._shapes = ShapeCache()
        self.stop_token_ids = []
        self._prompt_ends = Memo[tuple[int, ...], str](_PROMPT_ENDS_KEPT)
        self.description = "server (/tokenize)"

    def saw_stop(self, token: int) -> None:
        """Notes the token that ended a completion with finish reason `stop`."""
        if token not in self.stop_token_ids:
            self.stop_token_ids.append(token)

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        if not self.stop_token_ids:
            return Declined("server: no stop token seen yet")
        steps = self._shapes.steps(previous, tail, context.key, self.stop_token_ids)
        try:
            conversation = next(steps)
            while True:
                try:
                    ids = await self._tokenize(conversation, context)
                except RequestRefused as error:
                    conversation = steps.throw(stand_in.NotRendered(f"the server's template refuses: {error}"))
                else:
                    conversation = steps.send(ids)
        except StopIteration as stop:
            return Bridged(stop.value, "server")
        except stand_in.NotExtendable as error:
            return Declined(f"server: {error}")
        except TransportError as error:
            _log.warning("bridge_raised", bridge="server", error=str(error))
            return Declined(f"server: {error}")

    async def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        return await self._tokenize(stand_in.Conversation(messages), context)

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message | None:
        stopped = bool(completion_ids) and completion_ids[-1] in self.stop_token_ids
        try:
            text = await self._transport.detokenize(completion_ids[: len(completion_ids) - stopped])
            prompt_end = await self._prompt_end(tuple(prompt_ids[-_GENERATION_PROMPT:]))
        except TransportError as error:
            _log.warning("parser_raised", error=str(error))
            return None
        sampled = Sampled(text=text, prompt_end=prompt_end, tools=context.tools, ended=stopped)
        return read(self.reader or HERMES, sampled)

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
