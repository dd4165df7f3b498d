"""Case tokens/date_changes: a template with the day's date, and a run that goes on past midnight."""

from __future__ import annotations

import datetime

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import user
from rollout.play.session import Session
from tests.cases.prompt_kit import CHATML, PLAIN, ShowingServer, make_session, play

TEMPLATE = "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y') }}<|im_end|>\n" + PLAIN


class Clock(datetime.datetime):
    """What templates read, a day at a time."""

    day = 1

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
        return cls(2026, 11, cls.day, 12)


@pytest.mark.parametrize("bridge", ["template", "server"])
async def test_midnight_costs_no_fallback(bridge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind a sampled turn has no date in it: turns stay token-in, begun on the new day or before it."""
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    monkeypatch.setattr(Clock, "day", 1)
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=TEMPLATE)
    server = ShowingServer(tokenizer, ["yo<|im_end|>"] * 8)
    session = make_session(server, bridge)
    history = [user("hi")]
    for text in ("a", "b", "c", "d"):
        history = [*history, await session.turn(history), user(text)]
        monkeypatch.setattr(Clock, "day", 1 + (text in "bc"))
    begun_later = Session(session._model, "later")
    await play(begun_later, [user("hi")], [user("a")], [user("b")])
    assert {turn.fallback for turn in (*session.turns[1:], *begun_later.turns[1:])} == {None}
    assert "01 November" in tokenizer.decode(server.prompts[3])
