"""A template is given what it sees of earlier messages, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.kit.templates import TEMPLATES
from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Function, Message, ToolCall, system, user
from rollout.codec.history import ShapeCache
from rollout.codec.template import TemplateBridge
from rollout.codec.types import Bridged, Context, Declined, Previous, make_context
from tests.cases.prompt_kit import CHATML, PLAIN
from tests.cases.test_tokens_history_decides_tail import INST, NO_THINK, SYSTEM_LAST

NOTHING = make_context([], {})


class Counting(TemplateBridge):
    """Notes how many messages each rendering had."""

    def __init__(self, template: str, markers: Sequence[str] = CHATML, eos: str = "<|im_end|>") -> None:
        self.own = small_tokenizer(markers, eos=eos, chat_template=template)
        super().__init__(self.own, [self.own.eos_token_id])
        self.rendered: list[int] = []

    def render(self, messages: Sequence[Message], context: Context, *, add_generation_prompt: bool = True) -> list[int]:
        self.rendered.append(len(messages))
        return super().render(messages, context, add_generation_prompt=add_generation_prompt)

    def turn(self, history: Sequence[Message], tail: Sequence[Message] = (user("why?"),)) -> str:
        """What follows a turn behind this history."""
        end = self.own.eos_token_id
        turn = Previous(prompt_ids=[1], completion_ids=[end], message=Message("assistant", "yo"), history=history)
        found = self.extend(turn, tail, NOTHING)
        assert isinstance(found, Bridged), found
        return str(self.own.decode(found.ids))


def talk(turns: int, first: Sequence[Message] = ()) -> list[Message]:
    """A history of so many turns, up to a user's message."""
    said = [m for i in range(turns) for m in (user(f"question {i}"), Message("assistant", f"answer {i}"))]
    return [*first, *said, user("and?")]


@pytest.mark.parametrize("first", [[], [system("Be brief.")]])
def test_a_turn_costs_one_rendering_however_long_the_history(first: list[Message]) -> None:
    """Where nothing is seen it is rendered once for each length, each double of a long one, and not looked at again."""
    bridge = Counting(PLAIN)
    history = talk(1, first)
    bridge.turn(history)
    bridge.rendered.clear()
    for _ in range(30):
        history = [*history, Message("assistant", "yo"), user("more")]
        bridge.turn(history)
    assert bridge.rendered.count(3) == 30
    assert len(bridge.rendered) - 30 <= 10
    bridge.rendered.clear()
    bridge.turn([*talk(1, first)[:-1], user("another")])
    bridge.turn([*talk(30, first)[:-1], user("another")])
    assert bridge.rendered == [3, 3]


def test_answers_in_which_a_template_finds_the_same_cost_no_rendering_each() -> None:
    """A model that writes `</think>` in every answer, in ever new words: its history is not rendered each time."""
    bridge, history = Counting(PLAIN.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")), talk(1)
    for number in range(40):
        history = [*history, Message("assistant", f"words {number}</think>and {number}"), user("more")]
        bridge.turn(history)
    assert bridge.rendered.count(3) <= 40 + 6
    assert sum(size > 3 for size in bridge.rendered) <= 14


COUNTS = PLAIN.replace("assistant\n", "assistant{{ '!' if messages | length > 8 else '' }}\n")
SAID = PLAIN.replace(
    "assistant\n", "assistant{{ '!' if messages[1].role == 'assistant' and '(!)' in messages[1].content else '' }}\n"
)
CALLED = PLAIN.replace("assistant\n", "assistant{{ '!' if messages[1].reasoning_content else '' }}\n")


def test_a_template_that_counts_or_looks_at_the_models_turns_is_followed() -> None:
    """What no message of a user decides is found in the whole history."""
    counts, looks = Counting(COUNTS), Counting(CALLED)
    history = talk(1)
    for _ in range(8):
        marked = "assistant!" in counts.turn(history)
        assert marked is (len(history) + 2 > 8)
        history = [*history, Message("assistant", "yo"), user("more")]
    reasoned = [user("a"), Message("assistant", "b", reasoning_content="r"), user("c")]
    finds = Counting(SAID)
    long = "word " * 100
    for text, marked in (("b", False), (f"{long}(!)", True), (long, False), ("(!)", True)):
        assert ("assistant!" in finds.turn([user("a"), Message("assistant", text), user("c")])) is marked
    assert "assistant!" not in looks.turn(talk(1))
    assert "assistant!" in looks.turn(reasoned)


def test_a_text_that_is_written_again_costs_its_own_length_only() -> None:
    """A system text in the last user turn is in the head; the other messages are not."""
    bridge = Counting(SYSTEM_LAST, INST, "</s>")
    history = talk(40, [system("Be brief.")])
    assert bridge.turn(history) == "[INST]Be brief.\n\nwhy?[/INST]"
    bridge.rendered.clear()
    assert bridge.turn(history) == "[INST]Be brief.\n\nwhy?[/INST]"
    assert bridge.rendered == [4]


def test_a_message_that_is_seen_is_seen_from_the_turn_on_that_has_it() -> None:
    """A switch in the fifth message decides the turns behind it, and none before; another history is looked at anew."""
    bridge = Counting(NO_THINK)
    history = talk(1)
    assert bridge.turn(history).endswith("<think>\n")
    longer = [*history, Message("assistant", "yo"), user("now /no_think")]
    assert bridge.turn(longer).endswith("</think>\n\n")
    assert bridge.turn([*longer, Message("assistant", "yo"), user("more")]).endswith("</think>\n\n")
    rewritten = [history[0], Message("assistant", "other"), *longer[2:-1], user("and?")]
    assert bridge.turn(rewritten).endswith("<think>\n")


def test_what_is_remembered_of_histories_is_bounded() -> None:
    """Ever new conversations leave no more behind than a memo's size."""
    bridge = Counting(NO_THINK)
    for number in range(40):
        bridge.turn([system(f"{number} /no_think"), user(f"{number}")])
    memos: dict[str, Any] = {name: memo for name, memo in vars(bridge._shapes).items() if hasattr(memo, "size")}
    assert memos
    assert all(len(memo) <= memo.size <= 1_024 for memo in memos.values())


def test_conversations_that_share_their_first_messages_do_not_disturb_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A system message that is one object in all rollouts of a run: each history is still walked once."""
    bridge, shared = Counting(NO_THINK), [system("S"), user("q")]
    histories = [[*shared, Message("assistant", f"{i}"), user("more")] for i in range(3)]
    looked: list[str] = []
    look = bridge._shapes._finds
    assert look is not None

    def looking(text: str) -> object:
        looked.append(text)
        return look(text)

    monkeypatch.setattr(bridge._shapes, "_finds", looking)
    for turn in range(12):
        looked.clear()
        for at, history in enumerate(histories):
            bridge.turn(history)
            histories[at] = [*history, Message("assistant", f"{at} {turn}"), user(f"{at} more {turn}")]
        if turn > 8:  # past the lengths of which each is rendered whole
            assert not any("q" in text or "S" in text for text in looked)


def test_a_clock_that_ticks_while_a_shape_is_proved_costs_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template with the time of day: what is rendered before and after a tick differs in its first lines."""
    ticks: list[str] = ["a"]
    bridge = Counting("<|im_start|>system\n{{ clock }}<|im_end|>\n" + PLAIN)
    apply = bridge._tokenizer.apply_chat_template

    def ticking(*args: Any, **more: Any) -> Any:
        ticks.append("b" if len(ticks) > 1 else "a")
        return apply(*args, **more, clock=ticks[-1])

    monkeypatch.setattr(bridge._tokenizer._tokenizer, "apply_chat_template", ticking)
    assert bridge.turn([user("hi")]) == "\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"


def of_kit(name: str) -> Counting:
    made = next(template for template in TEMPLATES if template.name == name)
    return Counting(made.jinja, made.markers, made.stops[0])


def agent_turn(kind: str, number: int, call_id: str | None = None) -> list[Message]:
    """A turn, with a call or without, and what the environment answers."""
    if kind == "said":
        return [Message("assistant", f"said {number}"), user(f"more {number}")]
    called = ToolCall(id=call_id or f"call{number:05d}", function=Function(kind, f'{{"n": {number}}}'))
    answer = Message("tool", f"result {number}", tool_call_id=called.id, name=kind)
    return [Message("assistant", "", tool_calls=(called,)), answer]


def follows(bridge: Counting, conversation: Sequence[Message], answers: int) -> list[int]:
    """What the bridge writes behind the last turn of a conversation that ends with so many answers to it."""
    at, end = len(conversation) - answers - 1, bridge.own.eos_token_id
    turn = Previous(prompt_ids=[1], completion_ids=[end], message=conversation[at], history=conversation[:at])
    found = bridge.extend(turn, conversation[at + 1 :], NOTHING)
    assert isinstance(found, Bridged), found
    return found.ids


def test_a_template_that_notes_results_costs_no_rendering_of_the_history_at_each_turn() -> None:
    """DeepSeek's kind: the last calls stand for the whole conversation, which is rendered once for each double."""
    bridge, conversation = of_kit("results-noted"), [user("hi")]
    for number in range(120):
        conversation += agent_turn("weather", number)
        follows(bridge, conversation, 1)
    assert sum(size > 8 for size in bridge.rendered) <= 16
    bridge.rendered.clear()
    for number in range(120, 125):
        conversation += agent_turn("weather", number)
        follows(bridge, conversation, 1)
    assert bridge.rendered == [5] * 5


def test_a_server_whose_template_notes_results_is_asked_short_questions() -> None:
    """What its template looks for cannot be read: each new result is tried by itself, and not the history with it."""
    bridge, conversation = of_kit("results-noted"), [user("hi")]
    bridge._shapes._finds = None
    for number in range(70):
        conversation += agent_turn("weather", number)
        found = follows(bridge, conversation, 1)
        assert bridge.own.decode(found) == f"<｜output｜>result {number}<｜/output｜><｜/outputs｜>".replace(
            "<｜output｜>", "<｜outputs｜><｜output｜>" if number == 0 else "<｜output｜>"
        )
    assert sum(size > 8 for size in bridge.rendered) <= 20
    bridge.rendered.clear()
    follows(bridge, [*conversation, *agent_turn("weather", 71)], 1)
    assert max(bridge.rendered) <= 8


def test_a_result_that_is_read_by_its_text_keeps_the_history() -> None:
    """A template that finds a word in an earlier result of a tool is given that result, wherever it stands."""
    reads = CALLED.replace(
        "messages[1].reasoning_content", "messages | map(attribute='content') | select('equalto', 'stop') | list"
    )
    for looked_for in (True, False):
        bridge, conversation = Counting(reads), [user("hi")]
        if not looked_for:
            bridge._shapes._finds = None
        for number in range(12):
            conversation += agent_turn("weather", number)
            conversation[-1] = Message(
                "tool", "stop" if number == 5 else f"r{number}", tool_call_id=f"call{number:05d}"
            )
            assert ("assistant!" in bridge.own.decode(follows(bridge, conversation, 1))) is (number >= 5)


NOTED = of_kit("results-noted")
SHOWN = of_kit("call-ids-shown")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["said", "weather", "traffic"]), min_size=1, max_size=24), st.booleans())
def test_what_follows_is_what_the_template_writes_behind_the_whole_conversation(kinds: list[str], named: bool) -> None:
    """Whatever was called and said before, in whatever order: also with what was remembered of other conversations."""
    for bridge in (NOTED, SHOWN):
        conversation = [system("Be brief."), user("hi")] if named else [user("hi")]
        for number, kind in enumerate(kinds):
            conversation += agent_turn(kind, number)
            whole = bridge.render(conversation, NOTHING)
            found = follows(bridge, conversation, 1)
            assert whole[-len(found) :] == found
            assert whole[-len(found) - 1] == bridge.own.eos_token_id


def test_new_call_ids_cost_no_new_proof() -> None:
    """Where ids are printed each call has its own: what was proved of one holds for those of its form."""
    bridge = of_kit("call-ids-shown")
    for number in range(4):
        follows(bridge, [user("hi"), *agent_turn("weather", number)], 1)
    bridge.rendered.clear()
    for number in range(4, 10):
        found = follows(bridge, [user("hi"), *agent_turn("weather", number)], 1)
        assert f"Return of call{number:05d}" in bridge.own.decode(found)
    assert len(bridge.rendered) == 2 * 6
    found = follows(bridge, [user("hi"), *agent_turn("weather", 1, "functions.weather:1")], 1)
    assert "Return of functions.weather:1" in bridge.own.decode(found)
    assert len(bridge.rendered) > 2 * 6 + 2


LAST_SWITCH = (
    "{% set ns = namespace(think=true) %}{% for m in messages %}{% if m.role in ('user', 'system') %}"
    "{% if '/no_think' in m.content %}{% set ns.think = false %}"
    "{% elif '/think' in m.content %}{% set ns.think = true %}{% endif %}{% endif %}{% endfor %}"
    + PLAIN.replace("assistant\n", "assistant{{ '' if ns.think else '!' }}\n")
)


class Unread(Counting):
    """As a server's template is: nobody can read what it looks for."""

    def __init__(self, template: str) -> None:
        super().__init__(template)
        self._shapes = ShapeCache()


@pytest.mark.parametrize("kind", [Counting, Unread])
@settings(max_examples=40, deadline=None)
@example(talks=[["/no_think", "hi"], ["/no_think", "/think"]])
@given(talks=st.lists(st.lists(st.sampled_from(["/think", "/no_think", "hi"]), min_size=1, max_size=6), max_size=6))
def test_of_several_switches_the_last_counts(kind: type[Counting], talks: list[list[str]]) -> None:
    """In conversations of one bridge: a switch to what is the default changes nothing alone, and all behind another."""
    bridge = kind(LAST_SWITCH)
    for switches in talks:
        typed = [m for text in switches[1:] for m in (Message("assistant", "yo"), user(text))]
        history = [system(switches[0]), user("hi"), *typed]
        last = next((text for text in reversed(switches) if text != "hi"), "/think")
        assert ("assistant!" in bridge.turn(history)) == (last == "/no_think"), switches


def test_what_was_said_is_tried_where_nobody_can_read_the_template() -> None:
    """A server's template that looks for a word in the last answer: the turn is declined, not bridged wrongly."""
    looks = "{{ '!' if messages | length > 1 and 'stop' in messages[-2].content else '' }}"
    bridge = Unread(PLAIN.replace("assistant\n", f"assistant{looks}\n"))
    end = bridge.own.eos_token_id
    for said, kind in (("yo", Bridged), ("I stop.", Declined), ("yo yo", Bridged)):
        turn = Previous(prompt_ids=[1], completion_ids=[end], message=Message("assistant", said), history=[user("hi")])
        assert isinstance(bridge.extend(turn, [user("why?")], NOTHING), kind)


def test_a_history_that_the_template_refuses_proves_nothing_of_another() -> None:
    """Two users in a row are refused; what follows them stands, and the next conversation's is looked at."""
    refuses = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
        + PLAIN.replace("assistant\n", "assistant{{ '!' if messages | length > 6 }}\n")
    )
    bridge = Counting(refuses)
    first = talk(2)
    conversation = [first[0], first[0], *first[3:], first[0]]
    assert len(conversation) == len(first)
    assert "assistant!" not in bridge.turn(conversation)
    assert "assistant!" in bridge.turn(first)
    bridge.rendered.clear()
    for number in range(8):  # refused once, and not rendered with each turn that it grows by
        conversation += [Message("assistant", f"said {number}"), user("more")]
        bridge.turn(conversation)
    assert not any(size > 3 for size in bridge.rendered)


CALLING = PLAIN.replace(
    "{{ m.content }}",
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<c>{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "</c>{% endfor %}",
)
#: What a template may see of earlier messages, beside their words: Cohere's numbers the calls of a conversation.
SEES = {
    "calls": "(messages | map(attribute='tool_calls') | select | sum(start=[])) | length",
    "two calls at once": "messages | map(attribute='tool_calls') | select | map('length') | select('gt', 1) | list",
    "an empty answer": "messages | rejectattr('content') | rejectattr('tool_calls') | list | length",
    "a name": "messages | selectattr('role', 'equalto', 'user') | map(attribute='name') | select | list",
}


@st.composite
def told(draw: Any) -> list[Message]:
    """A conversation of calls, one or two at once, of answers and of users with a name or none."""
    history, calls = [user("hi")], 0
    for number in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["said", "nothing", "weather", "twice"]))
        if kind in ("said", "nothing"):
            name = draw(st.sampled_from([None, "ann"]))
            history += [Message("assistant", kind if kind == "said" else None), Message("user", "more", name=name)]
            continue
        made = [*agent_turn("weather", calls), *(agent_turn("weather", calls + 1) if kind == "twice" else ())]
        history += [
            Message("assistant", tool_calls=tuple(call for message in made for call in message.tool_calls)),
            *(message for message in made if message.role == "tool"),
        ]
        calls += 1 + (kind == "twice")
        if draw(st.booleans()):
            history += [Message("assistant", "said"), user(f"more {number}")]
    return history


@pytest.mark.slow
@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("sees", SEES)
@settings(max_examples=25, deadline=None)
@given(talks=st.lists(told(), min_size=2, max_size=6))
def test_a_conversations_proof_serves_no_other_in_which_a_template_sees_more(
    sees: str, read: bool, talks: list[list[Message]]
) -> None:
    """The number of calls, an empty text and a name are as much a history's as its roles and its length."""
    bridge = Counting(CALLING.replace("assistant\n", f"assistant {{{{ {SEES[sees]} }}}}\n"))
    if not read:
        bridge._shapes._finds = None
    for history in talks:
        turn = Previous(
            prompt_ids=[1],
            completion_ids=[bridge.own.eos_token_id],
            message=Message("assistant", "yes"),
            history=history,
        )
        found = bridge.extend(turn, [user("why?")], NOTHING)
        whole = bridge.render([*history, Message("assistant", "yes"), user("why?")], NOTHING)
        if isinstance(found, Bridged):
            assert whole[-len(found.ids) :] == found.ids


def test_calls_that_are_numbered_over_a_conversation_are_each_conversations_own() -> None:
    """Two histories of one length and the same kinds of messages, in which other numbers of calls were made."""
    bridge = Counting(CALLING.replace("assistant\n", f"assistant {{{{ {SEES['calls']} }}}}\n"))
    talked, called = talk(1), agent_turn("weather", 0)
    said, more = Message("assistant", "x"), user("more")
    once = [*talked, said, more, said, more, *called, said, more]
    twice = [*talked, *called, said, more, *agent_turn("weather", 1), said, more]
    assert len(once) == len(twice)
    assert "assistant 1" in bridge.turn(once)
    assert "assistant 2" in bridge.turn(twice)


def test_the_template_that_is_used_without_tools_is_read() -> None:
    """Of two templates by name the one for tools looks for nothing: the other's switch is found all the same."""
    bridge = Counting({"default": NO_THINK, "tool_use": PLAIN})  # type: ignore[arg-type]  # as transformers has them
    assert bridge.turn([system("Be brief."), user("q")]).endswith("<think>\n")
    assert bridge.turn([system("/no_think"), user("q")]).endswith("</think>\n\n")


IMAGES = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{% if 'image' in part.type %}"
    "{% set ns.n = ns.n + 1 %}{{ 'Picture ' ~ ns.n ~ ': ' if NUMBERED }}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def picture(text: str) -> Message:
    return Message("user", ({"type": "image_url", "image_url": {"url": "data:,x"}}, {"type": "text", "text": text}))


@pytest.mark.parametrize("numbered", ["true", "false"])
def test_images_that_are_numbered_are_behind_those_of_the_history(numbered: str) -> None:
    """Qwen-VL's `add_vision_id`: a tail's image is the second behind one. Where nothing is numbered a word stands."""
    bridge = Counting(IMAGES.replace("NUMBERED", numbered))
    history = [picture("one")]
    for number in range(2, 6):
        found = bridge.turn(history, [picture("another")])
        whole = bridge.render([*history, Message("assistant", "yo"), picture("another")], NOTHING)
        assert str(bridge.own.decode(whole)).endswith(found)
        assert (f"Picture {number}: " in found) is (numbered == "true")
        history += [Message("assistant", "yo"), picture("another")]
    assert "Picture" not in bridge.turn([user("hi"), Message("assistant", "yo"), user("more")])
    bridge.turn(history, [picture("another")])
    bridge.rendered.clear()
    bridge.turn(history, [picture("another")])
    assert bridge.rendered[0] == (len(history) + 2 if numbered == "true" else 3)
