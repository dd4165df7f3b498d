"""What the model really said is tried in the stand-in's place: a template that looks at it is declined, not guessed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rollout.chat.messages import Function, Message, ToolCall, tool, user
from rollout.codec.types import Bridged, Previous
from tests.cases.prompt_kit import PLAIN
from tests.rollout.codec.test_history import NOTHING, Counting

CALL = ToolCall(id="call00000", function=Function("f", '{"a": 1}'))
CALLS = "{% for c in m.tool_calls or [] %}<c>{{ c.function.name }} {{ c.function.arguments | tojson }}</c>{% endfor %}"
CALLING = PLAIN.replace("{{ m.content }}", "{{ m.content or '' }}" + CALLS)


def marking(condition: str, before: str = "") -> str:
    """A template that marks the generation prompt where this holds."""
    return before + CALLING.replace("assistant\n", f"assistant{{{{ '!' if {condition} }}}}\n")


def follows(
    bridge: Counting, said: Message, tail: Sequence[Message], history: Sequence[Message] = (user("q"),)
) -> str | None:
    """What is written behind a turn; None where that was declined."""
    end = bridge.own.eos_token_id
    turn = Previous(prompt_ids=[1], completion_ids=[end], message=said, history=history)
    found = bridge.extend(turn, tail, NOTHING)
    if isinstance(found, Bridged):
        whole = bridge.render([*history, said, *tail], NOTHING)
        assert whole[-len(found.ids) :] == found.ids
        return str(bridge.own.decode(found.ids))
    assert "behind what the assistant said" in found.reason
    return None


@pytest.mark.parametrize("read", [True, False])
def test_an_empty_answer_is_tried(read: bool) -> None:
    """A template that looks whether there is a text: what follows words says nothing of what follows none."""
    bridge, plain = Counting(marking("not messages[-2].content and messages | length > 1")), Counting(CALLING)
    for each in (bridge, plain):
        each._shapes._finds = each._shapes._finds if read else None
    assert follows(bridge, Message("assistant", "yes"), [user("why?")]) is not None
    assert follows(bridge, Message("assistant"), [user("why?")]) is None
    assert follows(plain, Message("assistant"), [user("why?")]) is not None


@pytest.mark.parametrize("read", [True, False])
def test_text_beside_calls_is_tried_with_its_words(read: bool) -> None:
    """A template that finds a word there, or that there is a text at all."""
    said = Message("assistant", "now (!)", tool_calls=(CALL,))
    last = "(messages | selectattr('role', 'equalto', 'assistant') | list | last).content"
    for condition, words in (
        (f"messages | length > 1 and '(!)' in ({last} or '')", "now"),
        (f"messages | length > 1 and {last}", None),
    ):
        bridge, tail = Counting(marking(condition)), [tool("7", call=CALL)]
        bridge._shapes._finds = bridge._shapes._finds if read else None
        assert follows(bridge, Message("assistant", words, tool_calls=(CALL,)), tail) is not None
        assert follows(bridge, said, tail) is None


def test_text_that_is_written_behind_the_results_of_its_calls_costs_no_bridge() -> None:
    """Gemma 4's kind: sampled before the calls, it stands there, and is no part of what is appended."""
    late = "{% if m.role == 'tool' and loop.previtem.content %}{{ loop.previtem.content }}{% endif %}"
    moved = CALLING.replace(
        "{{ m.content or '' }}", "{% if not m.tool_calls %}{{ m.content or '' }}{% endif %}"
    ).replace("<|im_end|>\n", f"<|im_end|>\n{late}")
    bridge = Counting(moved)
    said, tail = Message("assistant", "Let me see", tool_calls=(CALL,)), [tool("7", call=CALL)]
    end = bridge.own.eos_token_id
    turn = Previous(prompt_ids=[1], completion_ids=[end], message=said, history=[user("q")])
    found = bridge.extend(turn, tail, NOTHING)
    assert isinstance(found, Bridged)
    assert "Let me see" not in bridge.own.decode(found.ids)


def test_what_is_found_in_two_answers_is_tried_behind_both() -> None:
    """A template that counts marked answers: behind a word the second is the first."""
    counted = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'assistant' and '(!)' in m.content %}"
        "{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}"
    )
    bridge = Counting(marking("ns.n > 1", counted))
    history = [user("q"), Message("assistant", "a (!)"), user("q")]
    assert follows(bridge, Message("assistant", "b (!)"), [user("why?")]) is not None
    assert follows(bridge, Message("assistant", "b"), [user("why?")], history) is not None
    assert follows(bridge, Message("assistant", "b (!)"), [user("why?")], history) is None


def test_answers_of_one_kind_are_tried_once() -> None:
    """Text beside calls, in ever new words, costs each turn no rendering more where the template can be read."""
    bridge, tail = Counting(CALLING), [tool("7", call=CALL)]
    follows(bridge, Message("assistant", "first", tool_calls=(CALL,)), tail)
    bridge.rendered.clear()
    for number in range(5):
        follows(bridge, Message("assistant", f"said {number}", tool_calls=(CALL,)), tail)
    assert len(bridge.rendered) == 5 * 2  # the bridge's own, and the whole to compare it with
