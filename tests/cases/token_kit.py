"""What the token cases share: a server of a few lines in front of a real session."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rollout.chat.messages import Message
from rollout.codec.local import Lane, LocalCodec
from rollout.codec.protocol import Codec
from rollout.codec.tokenizer import template_ids
from rollout.config import EngineConfig
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.request import FinishReason, MessagePrompt, Reply, Request
from rollout.transport import ServerInfo, Transport

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
CHATML_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ScriptedServer(Transport):
    """Renders messages by the tokenizer's template, and samples what the script says: (text, finish reason)."""

    def __init__(self, tokenizer: Any, replies: Sequence[tuple[str, FinishReason]]) -> None:
        self.info = ServerInfo(
            dialect="kit", model="kit", token_route="kit", reports_prompt_ids=True, can_tokenize=True
        )
        self._tokenizer, self._replies = tokenizer, list(replies)

    async def generate(self, request: Request) -> Reply:
        prompt = request.prompt
        if isinstance(prompt, MessagePrompt):
            args = prompt.template_args
            ids = template_ids(self._tokenizer, prompt.messages, prompt.tools, args, add_generation_prompt=True)
        else:
            ids = list(prompt.ids)
        text, reason = self._replies.pop(0)
        sampled = list(self._tokenizer.encode(text, add_special_tokens=False))
        return Reply(completion_ids=sampled, logprobs=[-0.5] * len(sampled), prompt_ids=ids, finish_reason=reason)

    async def aclose(self) -> None:
        pass


def start(tokenizer: Any, replies: Sequence[tuple[str, FinishReason]], codec: Codec | None = None) -> Session:
    """A session over a script, with the template bridge unless a codec is given."""
    codec = codec or LocalCodec(lambda: Lane(tokenizer, None, "all", [tokenizer.eos_token_id]), "template")
    server = ScriptedServer(tokenizer, replies)
    return Session(
        ServedModel(transport=server, info=server.info, codec=codec, config=EngineConfig(verify=True)), "case"
    )


def turn(session: Session, messages: Sequence[Message], **more: Any) -> Message:
    """One turn's answer."""

    async def play() -> Message:
        return await session.turn(messages, **more)

    return asyncio.run(play())
