"""What the cases on prompts share: a server that shows what it was sent, in front of a real session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout.chat.messages import Message
from rollout.codec.local import Lane, LocalCodec
from rollout.codec.protocol import Codec
from rollout.codec.server import ServerCodec
from rollout.codec.tokenizer import template_ids
from rollout.config import EngineConfig
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.request import MessagePrompt, Reply, Request
from rollout.transport import ServerInfo, Transport

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
BODY = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = "{% for m in messages %}" + BODY + "{% endfor %}" + PROMPT


class ShowingServer(Transport):
    """Renders messages by a tokenizer's template, samples the script's texts, and keeps what it was asked."""

    def __init__(self, tokenizer: Any, replies: Sequence[str], *, reports_prompt_ids: bool = True) -> None:
        self.info = ServerInfo(
            dialect="kit", model="kit", token_route="kit", reports_prompt_ids=reports_prompt_ids, can_tokenize=True
        )
        self.tokenizer, self._replies = tokenizer, list(replies)
        self.requests: list[Request] = []
        self.prompts: list[list[int]] = []

    def render(self, prompt: MessagePrompt, *, add_generation_prompt: bool = True) -> list[int]:
        """The server's own prompt."""
        return template_ids(
            self.tokenizer,
            prompt.messages,
            prompt.tools,
            prompt.template_args,
            add_generation_prompt=add_generation_prompt,
        )

    async def generate(self, request: Request) -> Reply:
        prompt = request.prompt
        ids = self.render(prompt) if isinstance(prompt, MessagePrompt) else list(prompt.ids)
        self.requests.append(request)
        self.prompts.append(ids)
        sampled = list(self.tokenizer.encode(self._replies.pop(0), add_special_tokens=False))
        return Reply(completion_ids=sampled, logprobs=[-0.5] * len(sampled), prompt_ids=ids, finish_reason="stop")

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        return self.render(prompt, add_generation_prompt=add_generation_prompt)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    async def aclose(self) -> None:
        pass


def make_session(server: ShowingServer, bridge: str = "template", codec: Codec | None = None, **config: Any) -> Session:
    """A session over a server, with the template bridge, the server's, or those of a codec."""
    tokenizer = server.tokenizer
    if codec is None and bridge == "server":
        codec = ServerCodec(server)
    elif codec is None:
        codec = LocalCodec(lambda: Lane(tokenizer, None, "all", [tokenizer.eos_token_id]), "template")
    model = ServedModel(transport=server, info=server.info, codec=codec, config=EngineConfig(verify=True, **config))
    return Session(model, "case")


async def play(session: Session, opening: Sequence[Message], *tails: Sequence[Message]) -> list[Message]:
    """Plays turns; gives the assistant's messages."""
    history, said = list(opening), list[Message]()
    for tail in (*tails, ()):
        said.append(await session.turn(history))
        history = [*history, said[-1], *tail]
    return said


def appended(server: ShowingServer, said: str) -> str:
    """What the second prompt has behind the first and what was sampled."""
    before = [*server.prompts[0], *server.tokenizer.encode(said, add_special_tokens=False)]
    assert server.prompts[1][: len(before)] == before
    return str(server.tokenizer.decode(server.prompts[1][len(before) :]))
