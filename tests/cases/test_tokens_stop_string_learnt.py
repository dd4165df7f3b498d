"""Case tokens/stop_string_learnt: a caller's stop string or list ends no turn, and its token is no stop token."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import user
from tests.cases.prompt_kit import CHATML, PLAIN, ShowingServer, make_session, play

SEARCH = "I look.<search>cats</search>"


@pytest.mark.parametrize("by", ["string", "ids"])
async def test_an_ordinary_token_is_no_stop_token(by: str) -> None:
    """The text stays whole, and only what the template closes turns with is ever sent as a stop token."""
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=PLAIN)
    last = tokenizer.encode(SEARCH)[-1]
    sampling: dict[str, Any] = {"stop": ["</search>"]} if by == "string" else {"stop_token_ids": [last]}
    server = ShowingServer(tokenizer, [SEARCH, "It is a cat.<|im_end|>", "bye<|im_end|>"])
    session = make_session(server, "server", sampling=sampling)
    said = await play(session, [user("Find cats.")], [user("a page")], [user("thanks")])
    assert said[0].text == SEARCH
    assert list(server.requests[-1].stop_token_ids) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert session.turns[2].fallback is None


async def test_a_stop_string_in_the_templates_own_text_is_not_learnt() -> None:
    """A newline stands behind each turn of such a template, and would end every answer at its first line."""
    tokenizer = small_tokenizer(
        ("<|endoftext|>",),
        eos="<|endoftext|>",
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ",
    )
    server = ShowingServer(tokenizer, ["one line\n", "x"])
    session = make_session(server, "server", sampling={"stop": "\n"})
    await play(session, [user("hi")], [user("more")])
    assert list(server.requests[-1].stop_token_ids) == []
