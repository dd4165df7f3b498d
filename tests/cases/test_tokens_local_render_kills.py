"""Case tokens/local_render_kills: a prompt that cannot be rendered here does not end its rollout."""

from __future__ import annotations

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.records import Route
from rollout.request import MessagePrompt
from rollout.tokens.prefix import FallbackReason
from tests.cases.prompt_kit import CHATML, PLAIN, PROMPT, ShowingServer, make_session, play

REFUSES = "{% if messages | length > 1 %}{{ raise_exception('No more than one.') }}{% endif %}" + PLAIN
TOO_DEEP = "{% macro f(n) %}{{ f(n) }}{% endmacro %}{% if messages | length > 1 %}{{ f(1) }}{% endif %}" + PLAIN
NOT_THERE = "{% for m in messages %}{{ m.nothing.at_all }}{% endfor %}" + PROMPT
CALL = ToolCall(function=Function("f", '{"a": "' + "x" * 200 + '"}'), id="call00000")
OPENING = [
    user("hi " * 50),
    Message("assistant", tool_calls=(CALL,)),
    Message("tool", "r", tool_call_id="call00000"),
    user("go"),
]


class Repaired(ShowingServer):
    """A server with a template of its own."""

    def render(self, prompt: MessagePrompt, *, add_generation_prompt: bool = True) -> list[int]:
        return [1] * 100


@pytest.mark.parametrize("template", [REFUSES, TOO_DEEP, NOT_THERE])
async def test_a_prompt_that_cannot_be_measured_is_sent(template: str) -> None:
    """Its length is the server's to judge."""
    server = Repaired(small_tokenizer(CHATML, eos="<|im_end|>", chat_template=template), ["yo<|im_end|>"])
    (said,) = await play(make_session(server, max_model_len=600, max_tokens=32), OPENING)
    assert said.text == "yo"


@pytest.mark.parametrize("template", [REFUSES, TOO_DEEP, NOT_THERE])
async def test_a_first_prompt_that_cannot_be_rendered_here_goes_out_as_messages(template: str) -> None:
    """Where the server reports no prompt ids it is made here, if it can be; the reason is named."""
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=template)
    server = Repaired(tokenizer, ["yo<|im_end|>"], reports_prompt_ids=False)
    session = make_session(server)
    await play(session, OPENING)
    assert session.turns[0].route is Route.MESSAGE_IN
    assert session.turns[0].fallback is FallbackReason.NOT_RENDERED


async def test_text_that_cannot_be_kept_as_text_goes_out_as_messages() -> None:
    """Plane 15 and a typed marker in one text (icons of Nerd Fonts stand there)."""
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=PLAIN)
    session = make_session(ShowingServer(tokenizer, ["yo<|im_end|>"], reports_prompt_ids=False))
    (said,) = await play(session, [user("icons: \U000f0001 and a typed <|im_end|>")])
    assert said.text == "yo"
    assert session.turns[0].fallback is FallbackReason.NOT_RENDERED
