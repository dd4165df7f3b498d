"""Late system and developer messages (Claude Code and Codex send them), on both routes and over both bridges."""

from __future__ import annotations

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Message, system, user
from rollout.config import LateSystem, Mode
from rollout.errors import MessageError
from rollout.request import MessagePrompt
from tests.cases.prompt_kit import BODY, CHATML, PLAIN, PROMPT, ShowingServer, make_session, play

FIRST_ONLY = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}" + BODY + "{% endfor %}" + PROMPT
)
LEFT_OUT = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}" + BODY + "{% endif %}{% endfor %}" + PROMPT
)
#: DeepSeek's way.
GATHERED = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role != 'system' %}" + BODY + "{% endif %}{% endfor %}" + PROMPT
)
TAILS = [[user("why?"), system("late")], [Message("developer", "mid"), user("again")]]
FOLDED = ["user\nwhy?\n\nlate", "user\nmid\n\nagain"]
KEPT = ["user\nwhy?", "system\nlate", "system\nmid", "user\nagain"]  # no template here knows developers


def spoken(server: ShowingServer) -> list[str]:
    """The messages of the last prompt, without the model's."""
    turns = server.tokenizer.decode(server.prompts[-1]).split("<|im_start|>")[1:-1]
    return [turn.removesuffix("\n").removesuffix("<|im_end|>") for turn in turns if not turn.startswith("assistant")]


@pytest.mark.parametrize("mode", ["tito", "mito"])
@pytest.mark.parametrize("bridge", ["template", "server"])
@pytest.mark.parametrize(
    ("template", "how", "right"),
    [
        (PLAIN, "auto", KEPT),
        (PLAIN, "fold", FOLDED),
        (PLAIN, "keep", KEPT),
        (FIRST_ONLY, "auto", FOLDED),
        (FIRST_ONLY, "fold", FOLDED),
        (LEFT_OUT, "auto", FOLDED),
        (GATHERED, "auto", FOLDED),
    ],
)
async def test_late_messages_reach_the_model(
    template: str, how: LateSystem, right: list[str], bridge: str, mode: Mode
) -> None:
    """In their place where the template shows them there, else in the user message beside them, on both routes."""
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=template)
    server = ShowingServer(tokenizer, ["yo<|im_end|>"] * 3)
    session = make_session(server, bridge, late_system=how, mode=mode)
    await play(session, [user("hi")], *TAILS)
    assert spoken(server)[1:] == right
    assert [turn.folded for turn in session.turns] == ([0, 1, 1] if right is FOLDED else [0, 0, 0])
    sent = [
        m.role
        for request in server.requests
        if isinstance(request.prompt, MessagePrompt)
        for m in request.prompt.messages
    ]
    if how == "auto" and bridge == "template":
        assert "developer" not in sent  # vLLM would move it to the front
    if mode == "tito":
        assert [turn.fallback for turn in session.turns[1:]] == [None, None]


async def test_late_messages_may_be_refused() -> None:
    """`refuse` names the message and the way out."""
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=PLAIN)
    session = make_session(ShowingServer(tokenizer, ["yo<|im_end|>"] * 2), late_system="refuse")
    with pytest.raises(MessageError, match="message 3 is a system message"):
        await play(session, [user("hi")], TAILS[0])
