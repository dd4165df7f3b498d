"""A pattern predicts what a renderer writes around texts, and there is none where a renderer reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.kit.families import RendererFamily
from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.codec.literal import LiteralTokenizer
from rollout.codec.pattern import Pattern, Slot, has_switch, learn, texts_of
from rollout.codec.readers import Sampled
from rollout.codec.readers.blocks import HERMES
from rollout.codec.renderer import PROMPT_END, RendererBridge
from rollout.codec.types import Bridged, Declined, Previous, make_context

Make = Callable[[Sequence[Message]], list[int]]


@pytest.fixture(scope="module")
def literal(tokenizer: Any) -> LiteralTokenizer:
    return LiteralTokenizer(tokenizer)


def written(literal: LiteralTokenizer, of: Callable[[str], str]) -> Make:
    """A renderer that writes a role, what `of` makes of each text, and an end."""
    start, end = (literal.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))

    def make(messages: Sequence[Message]) -> list[int]:
        out: list[int] = []
        for message in messages:
            out += [start, *literal.encode(f"user\n{of(message.text)}", add_special_tokens=False), end]
        return out

    return make


def test_a_text_that_is_written_as_it_is_has_a_pattern(literal: LiteralTokenizer) -> None:
    """What comes before a text is encoded with it, as the renderer does; all other tokens are as they were."""
    make = written(literal, str)
    pattern = learn(literal, [user("a"), user("b")], make)
    assert isinstance(pattern, Pattern)
    assert [piece for piece in pattern.pieces if isinstance(piece, Slot)] == [
        Slot(0, "user\n", ""),
        Slot(1, "user\n", ""),
    ]
    texts = ["one\n two", "12 + 3"]
    assert pattern.filled(texts, literal.plain_ids) == make([user(text) for text in texts])


@pytest.mark.parametrize(
    "of",
    [
        str.strip,
        str.rstrip,
        lambda text: text.replace("\n", " "),
        lambda text: "data" if text.startswith("{") else text,
        lambda text: text * 2,
        lambda text: "nothing",
    ],
)
def test_a_text_that_is_read_has_none(literal: LiteralTokenizer, of: Callable[[str], str]) -> None:
    """Stripped, replaced, told apart, written twice, left out: no pattern, so the renderer is asked each time."""
    assert learn(literal, [user("a")], written(literal, of)) is None


def test_messages_with_more_than_a_text_have_no_texts() -> None:
    """Parts, further keys, and tags that a renderer may look for."""
    assert texts_of([user("a"), Message("tool", "b", tool_call_id="x", name="f")]) == ["a", "b"]
    assert texts_of([Message("user", ({"type": "text", "text": "a"},))]) is None
    assert texts_of([Message("user", "a", extra={"cache_control": 1})]) is None
    assert texts_of([user("<tool_response>a")]) is None
    assert texts_of([Message("tool", None)]) is None


@pytest.mark.slow
@given(
    text=st.text(min_size=1, max_size=60),
    completion=st.lists(st.sampled_from(["Yes.", "<think>", "</think>", "<tool_call>", "\n", " <"]), max_size=4),
    ended=st.booleans(),
)
def test_a_bridge_by_pattern_is_the_familys(tokenizer: Any, text: str, completion: list[str], ended: bool) -> None:
    """Whatever the text, and whatever the model said, ended or cut off: a bridge that has learnt gives what a new one
    does."""
    learnt = _LEARNT.setdefault("qwen3", RendererBridge(tokenizer, "qwen3", "all"))
    context = make_context([], {})
    prompt = learnt.render([user("one")], context)
    end = [tokenizer.convert_tokens_to_ids("<|im_end|>")] if ended else []
    ids = [*(index for piece in completion for index in tokenizer.encode(piece)), *end]
    said = HERMES.read(Sampled(text=tokenizer.decode(ids[: len(ids) - len(end)])))
    previous = Previous(prompt_ids=prompt, completion_ids=ids, message=said)
    learnt.learnt_after = 1
    learnt.extend(previous, [user("two")], context)
    found = learnt.extend(previous, [user(text)], context)
    assert found == learnt._by_family(previous, [user(text)], context)


@pytest.mark.parametrize("name", ["glm-4.5", "qwen3"])
@pytest.mark.parametrize("thinks", [True, False])
def test_a_text_in_which_the_family_may_find_a_switch_is_the_familys(name: str, thinks: bool) -> None:
    """GLM 4.5 writes `/nothink` behind a user's text that does not end with it: no pattern can tell which does."""
    family = RendererFamily(name)
    bridge, context = RendererBridge(family.tokenizer, name, "all"), make_context([], {"enable_thinking": thinks})
    bridge.learnt_after = 1
    said = Message("assistant", "Yes.")
    sampled = family.sampled([user("one")], said, [])
    turn = Previous(prompt_ids=bridge.render([user("one")], context), completion_ids=sampled, message=said)
    bridge.extend(turn, [user("plain")], context)
    assert any(bridge._patterns.values())
    for text in ("stop it /nothink", "/no_think", "/think", "/nothink ", "x/NoThink\n", "why /nothink?"):
        assert bridge.extend(turn, [user(text)], context) == bridge._by_family(turn, [user(text)], context)
    assert has_switch("a /nothink b")
    assert not has_switch("/home/no I think")


@pytest.mark.parametrize(
    ("said", "is_learnt"),
    [
        ("I go on and", True),
        ("<think>I go on and", True),
        ("\n<think>I go on and", False),  # its reasoning is closed first; behind other words it would not be
        ("<think>Hm.</think>I go on and", True),
        ("", False),
    ],
)
def test_how_a_turn_that_was_cut_off_is_closed_is_learnt(tokenizer: Any, said: str, is_learnt: bool) -> None:
    """Where the words between the markers do not count."""
    bridge, context = RendererBridge(tokenizer, "qwen3", "all"), make_context([], {})
    prompt = bridge.render([user("one")], context)
    previous = Previous(prompt_ids=prompt, completion_ids=tokenizer.encode(said), message=Message("assistant", "x"))
    for seen in range(1, bridge.learnt_after + 1):
        assert not bridge._patterns, seen
        assert isinstance(bridge.extend(previous, [user("two")], context), Bridged)
    assert any(bridge._patterns.values()) is is_learnt


_LEARNT: dict[str, RendererBridge] = {}


def test_shapes_that_never_come_again_are_not_learnt(tokenizer: Any) -> None:
    """Names that are new each time would have a pattern learnt on every turn."""
    bridge, context = RendererBridge(tokenizer, "qwen3", "all"), make_context([], {})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for number in range(20):
        tail = [Message("tool", "4", tool_call_id="call-0", name=f"add{number}")]
        bridge.extend(Previous(prompt_ids=[1], completion_ids=[end], message=Message("assistant", "x")), tail, context)
    assert not bridge._patterns


def test_a_family_that_raises_on_a_probe_is_asked_each_time(tokenizer: Any) -> None:
    """What it writes for the turns that were played stands, whatever it makes of others."""

    class Moody(RendererBridge):
        def _extend(self, previous: Previous, tail: Sequence[Message], context: Any) -> list[int]:
            if tail[0].text != "played":
                raise RuntimeError("a probe")
            return super()._extend(previous, tail, context)

    bridge, context = Moody(tokenizer, "qwen3", "all"), make_context([], {})
    bridge.learnt_after = 1
    ids = [*tokenizer.encode("Yes, I do think so, and more."), tokenizer.convert_tokens_to_ids("<|im_end|>")]
    prompt = bridge.render([user("one")], context)
    for _ in range(3):
        message = Message("assistant", "Yes, I do think so, and more.")
        previous = Previous(prompt_ids=prompt, completion_ids=ids, message=message)
        assert isinstance(bridge.extend(previous, [user("played")], context), Bridged)


def test_a_family_that_prints_call_ids_is_held_against_itself_once_for_each_form_of_them() -> None:
    """Each call has an id of its own: a comparison for each would cost every turn what a shape costs once."""
    family = RendererFamily("kimi-k2")
    bridge, context = RendererBridge(family.tokenizer, "kimi-k2", "all"), make_context([], {})
    prompt, end = family.render([user("one")], []), bridge.stop_token_ids[0]
    for number in range(9):
        call = ToolCall(id=f"functions.f:{number}", function=Function("f", "{}"))
        said = Message("assistant", tool_calls=(call,))
        turn = Previous(prompt_ids=prompt, completion_ids=[*family.tokenizer.encode("f"), end], message=said)
        found = bridge.extend(turn, [Message("tool", "2", tool_call_id=call.id, name="f")], context)
        assert isinstance(found, Bridged)
        assert f"functions.f:{number}" in family.tokenizer.decode(found.ids)
    assert len(bridge._unlike) == 1


@pytest.mark.parametrize("name", ["deepseek-v4", "hy3"])
def test_a_text_with_replacement_characters_costs_its_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tool fetched need not be no UTF-8: a family that looks for each token's place decodes it once for each."""
    family = RendererFamily(name)
    bridge, context = RendererBridge(family.tokenizer, name, "all"), make_context([], {})
    prompt, said = family.render([user("one")], []), Message("assistant", "Yes.")
    turn = Previous(prompt_ids=prompt, completion_ids=family.sampled([user("one")], said, []), message=said)
    decoded: list[int] = []
    decode = family.tokenizer.decode

    def counted(ids: list[int], **more: Any) -> str:
        decoded.append(len(ids))
        return str(decode(ids, **more))

    monkeypatch.setattr(family.tokenizer, "decode", counted)
    text = "\ufffd" + "wind and rain " * 300
    found = bridge.extend(turn, [user(text)], context)
    assert isinstance(found, Bridged)
    assert text in decode(found.ids)
    assert sum(decoded) <= 4 * len(found.ids)


def test_a_family_that_declines_is_shown_the_end_of_a_prompt_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek R1's declines behind text: asked with all of a long prompt, it costs more the longer that is."""
    family = RendererFamily("deepseek-r1")
    bridge, context = RendererBridge(family.tokenizer, "deepseek-r1", "all"), make_context([], {})
    prompt, said = family.render([user("one " * 5_000)], []), Message("assistant", "Yes.")
    turn = Previous(prompt_ids=prompt, completion_ids=family.sampled([user("one")], said, []), message=said)
    shown: list[int] = []
    ask = bridge._bridge

    def counted(prompt_ids: Sequence[int], *others: Any) -> list[int]:
        shown.append(len(prompt_ids))
        return ask(prompt_ids, *others)

    monkeypatch.setattr(bridge, "_bridge", counted)
    answers = [bridge.extend(turn, [user(f"two {number} <b>")], context) for number in range(4)]
    assert all(isinstance(found, Declined) for found in answers)
    assert max(shown[2:]) == PROMPT_END
