"""Case tokens/tool_role_dropped: a template that leaves a tool's result out."""

from __future__ import annotations

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Message, user
from rollout.tokens.prefix import FallbackReason
from tests.cases.prompt_kit import BODY, CHATML, PROMPT, ShowingServer, make_session, play

TEMPLATE = "{% for m in messages %}{% if m.role in ('user', 'assistant') %}" + BODY + "{% endif %}{% endfor %}" + PROMPT
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize("bridge", ["template", "server"])
@pytest.mark.parametrize(
    "tail",
    [
        [Message("tool", "RESULT 42", tool_call_id="call00000", name="f")],
        [Message("tool", tool_call_id="call00000", name="f")],
        [Message("tool", "RESULT 42", tool_call_id="call00000", name="f"), user("And now?")],
    ],
)
async def test_what_the_environment_added_does_not_vanish(tail: list[Message], bridge: str) -> None:
    """The bridge declines and names the message that the template does not show."""
    server = ShowingServer(small_tokenizer(CHATML, eos="<|im_end|>", chat_template=TEMPLATE), [CALL, "ok<|im_end|>"])
    session = make_session(server, bridge)
    await play(session, [user("hi")], tail)
    assert session.turns[1].fallback is FallbackReason.BRIDGE_DECLINED
    assert "the template does not show the tool message" in session.turns[1].fallback_detail
