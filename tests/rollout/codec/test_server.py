"""The server's codec takes nothing for proved that the server did not render, and nothing for the template's word."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Message, user
from rollout.codec.server import ServerCodec
from rollout.codec.types import Bridged, Declined, Previous, make_context
from rollout.errors import AuthenticationFailed, ModelNotFound, PromptTooLong, RequestRefused, TransportError
from rollout.request import MessagePrompt
from tests.cases.prompt_kit import CHATML, PLAIN, ShowingServer

NOTHING = make_context([], {})
COUNTS = PLAIN.replace("assistant\n", "assistant{{ '!' if messages | length > 6 }}\n")
SAID = PLAIN.replace("assistant\n", "assistant{{ '!' if messages | length > 1 and '(!)' in messages[-2].content }}\n")


class FailingServer(ShowingServer):
    """Answers one /tokenize with an error."""

    def __init__(self, template: str) -> None:
        super().__init__(small_tokenizer(CHATML, eos="<|im_end|>", chat_template=template), [])
        self.error: Exception | None = None
        self.least = 0
        """How many messages a conversation has that is answered so."""

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        if self.error is not None and len(prompt.messages) >= self.least:
            error, self.error = self.error, None
            raise error
        return await super().tokenize(prompt, add_generation_prompt=add_generation_prompt)


def codec_of(server: ShowingServer) -> ServerCodec:
    codec = ServerCodec(server)
    codec.stop_token_ids = [server.tokenizer.eos_token_id]
    return codec


async def follows(codec: ServerCodec, history: Sequence[Message], said: str, server: ShowingServer) -> str | None:
    """What is written behind a turn; None where that was declined."""
    message = Message("assistant", said)
    end = server.tokenizer.eos_token_id
    turn = Previous(prompt_ids=[1], completion_ids=[end], message=message, history=history)
    found = await codec.extend(turn, [user("why?")], NOTHING)
    return str(server.tokenizer.decode(found.ids)) if isinstance(found, Bridged) else None


def talk(turns: int) -> list[Message]:
    return [*(m for _ in range(turns) for m in (user("q"), Message("assistant", "x"))), user("q")]


REFUSALS = [
    AuthenticationFailed("401", status=401),
    ModelNotFound("404", status=404),
    PromptTooLong("400: too long", status=400),
    RequestRefused("413", status=413),
]


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_refusal_that_is_not_the_templates_is_remembered_of_no_history(error: TransportError) -> None:
    """A key that was renewed while a whole history was tried: one turn is declined, the next is tried again."""
    server = FailingServer(COUNTS)
    codec = codec_of(server)
    assert await follows(codec, [user("q")], "yes", server) is not None
    server.error, server.least = error, 9
    assert await follows(codec, talk(3), "yes", server) is None
    assert "assistant!" in str(await follows(codec, talk(3), "yes", server))


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_refusal_that_is_not_the_templates_is_remembered_of_no_answer(error: TransportError) -> None:
    """What the model said is tried again, and declined where the template looks at it."""
    server = FailingServer(SAID)
    codec = codec_of(server)
    assert await follows(codec, [user("q")], "yes", server) is not None
    server.error = error
    assert await follows(codec, [user("q")], "no (!)", server) is None
    assert await follows(codec, [user("q")], "no (!)", server) is None
    assert await follows(codec, [user("q")], "no", server) is not None


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_refusal_that_is_not_the_templates_is_remembered_of_no_shape(error: TransportError) -> None:
    """What could not be proved for want of an answer is proved with the next turn, not the next day."""
    server = FailingServer(PLAIN)
    codec = codec_of(server)
    server.error, server.least = error, 3
    assert await follows(codec, [user("q")], "yes", server) is None
    assert await follows(codec, [user("q")], "yes", server) is not None


async def test_what_the_template_refuses_is_declined_by_its_own_words() -> None:
    """A 400 is the template's: the turn is declined with what it says."""
    server = FailingServer("{{ raise_exception('no users') }}")

    async def refused(prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        raise RequestRefused("/tokenize: 400: no users", status=400)

    server.tokenize = refused  # type: ignore[method-assign]  # a server that refuses all
    turn = Previous(prompt_ids=[1], completion_ids=[1], message=Message("assistant", "yes"))
    found = await codec_of(server).extend(turn, [user("why?")], NOTHING)
    assert isinstance(found, Declined)
    assert "the server's template refuses: /tokenize: 400: no users" in found.reason
