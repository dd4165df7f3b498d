"""Case tokens/text_parts: content as a list of text parts is the text that the server makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Message, user
from rollout.codec.local import load_codec
from rollout.codec.types import Bridged, Previous, make_context
from tests.cases.prompt_kit import CHATML, PLAIN, PROMPT, ShowingServer, appended, make_session, play
from transports.embedded import MODEL_DIR

TWO = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
MARKED = [{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}]
LOOPS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}<|im_end|>\n{% endfor %}" + PROMPT
)
ONLY_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m['content'] %}[{{ part['text'] }}]{% endfor %}"
    "<|im_end|>\n{% endfor %}" + PROMPT
)


@pytest.mark.parametrize(
    ("template", "role", "content", "right"),
    [
        (PLAIN, "user", TWO, "one\ntwo"),
        (PLAIN, "user", MARKED, "one"),
        (PLAIN, "tool", TWO, "one\ntwo"),
        (LOOPS, "user", TWO, "[one][two]"),
        (LOOPS, "user", "one", "[one]"),
        (ONLY_PARTS, "user", "one", "[one]"),
        (ONLY_PARTS, "user", TWO, "[one][two]"),
    ],
)
async def test_parts_reach_a_template_as_on_the_server(template: str, role: str, content: Any, right: str) -> None:
    """Text, its lines joined, for a template that takes text; parts for one that loops over them."""
    server = ShowingServer(small_tokenizer(CHATML, eos="<|im_end|>", chat_template=template), ["yo<|im_end|>"] * 2)
    session = make_session(server)
    tail = Message.of({"role": role, "content": content, "tool_call_id": "call00000" if role == "tool" else None})
    await play(session, [user("hi")], [tail])
    assert session.turns[1].fallback is None
    assert f"<|im_start|>{role}\n{right}<|im_end|>" in appended(server, "yo<|im_end|>")


async def test_a_family_writes_them_as_the_server_does() -> None:
    """The family's own way (no newline) is not vLLM's."""
    codec = load_codec(str(MODEL_DIR), renderer="qwen3")
    turn = Previous(prompt_ids=[1], completion_ids=codec.stop_token_ids[:1], message=Message("assistant", "x"))
    found = await codec.extend(turn, [Message.of({"role": "user", "content": TWO})], make_context([], {}))
    assert isinstance(found, Bridged)
    assert "one\ntwo" in await codec.decode(found.ids)
