"""Case tokens/history_decides_tail: a template that looks at an earlier message when it writes the new turn."""

from __future__ import annotations

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Message, system, user
from tests.cases.prompt_kit import BODY, CHATML, ShowingServer, appended, make_session, play

NO_THINK = (
    "{% set ns = namespace(think=true) %}{% for m in messages %}"
    "{% if m.role in ('system', 'user') and '/no_think' in m.content %}{% set ns.think = false %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}" + BODY + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n' if ns.think else '<think>\n\n</think>\n\n' }}{% endif %}"
)
SYSTEM_LAST = (
    "<s>{% if messages[0].role == 'system' %}{% set sm = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last and sm is defined %}{{ sm }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
INST = ("<s>", "</s>", "[INST]", "[/INST]")
THINKS = "\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n<think>\n"
DOES_NOT = "\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.mark.slow
@pytest.mark.parametrize("bridge", ["template", "server"])
@pytest.mark.parametrize(
    ("template", "opening", "right"),
    [
        (NO_THINK, [system("Be brief. /no_think"), user("hi")], DOES_NOT),
        (NO_THINK, [user("hi /no_think")], DOES_NOT),
        (NO_THINK, [system("Be brief."), user("hi")], THINKS),
        (NO_THINK, [user("hi"), Message("assistant", "/no_think"), user("more")], THINKS),
        (
            NO_THINK,
            [user("a"), Message("assistant", "b"), user("c /no_think"), Message("assistant", "d"), user("e")],
            DOES_NOT,
        ),
        (SYSTEM_LAST, [system("Be brief."), user("hi")], "[INST]Be brief.\n\nwhy?[/INST]"),
        (SYSTEM_LAST, [user("hi")], "[INST]why?[/INST]"),
    ],
)
async def test_what_follows_is_what_the_template_writes_for_this_conversation(
    template: str, opening: list[Message], right: str, bridge: str
) -> None:
    """A system text, or a switch in an earlier message, decides the tail on token-in as it does on message-in."""
    markers, eos = (INST, "</s>") if template == SYSTEM_LAST else (CHATML, "<|im_end|>")
    server = ShowingServer(small_tokenizer(markers, eos=eos, chat_template=template), [f"yo{eos}"] * 2)
    session = make_session(server, bridge)
    await play(session, opening, [user("why?")])
    assert session.turns[1].fallback is None
    assert appended(server, f"yo{eos}") == right
