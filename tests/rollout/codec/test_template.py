"""Bridges append what the template would, prove it first, and never touch sampled ids."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rollout.chat.messages import Function, Message, ToolCall, system, tool, user
from rollout.codec.readers import Sampled, number_calls
from rollout.codec.readers.blocks import HERMES
from rollout.codec.renderer import PROMPT_END, RendererBridge
from rollout.codec.stand_in import NotExtendable
from rollout.codec.template import TemplateBridge
from rollout.codec.tokenizer import template_ids
from rollout.codec.types import Bridge, Bridged, Context, Declined, Previous, make_context
from rollout.memo import Memo

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def bridges(tokenizer: Any) -> dict[str, Any]:
    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    return {
        "renderer": RendererBridge(tokenizer, "qwen3", "all"),
        "template": TemplateBridge(tokenizer, stops),
    }


@pytest.mark.parametrize("arguments", [{"reasoning_effort": "none"}, {"enable_thinking": []}])
def test_a_family_declines_template_arguments_that_it_does_not_take(tokenizer: Any, arguments: dict[str, Any]) -> None:
    """By their names or their values; that is no fault, and is found out once, not every turn."""
    made: list[object] = []

    class Counted(RendererBridge):
        def _made(self, template_args: Mapping[str, Any]) -> Any:
            made.append(dict(template_args))
            return super()._made(template_args)

    bridge, context = Counted(tokenizer, "qwen3", "all"), make_context([], arguments)
    turn = Previous(prompt_ids=[1] * 9, completion_ids=[2], message=Message("assistant", "x"))
    for text in ("one", "<two>"):
        found = bridge.extend(turn, [user(text)], context)
        assert isinstance(found, Declined)
        assert "does not take the template's arguments" in found.reason
    assert made == [{}, arguments]


@pytest.mark.parametrize("reads_all", [False, True])
def test_a_family_that_reads_the_whole_prompt_gets_it(tokenizer: Any, reads_all: bool) -> None:
    """Asked once for each shape of tail: the end of a prompt, or all of it from then on."""
    lengths: list[int] = []

    class Reader(RendererBridge):
        def _bridge(self, prompt_ids: Sequence[int], *args: Any) -> list[int]:
            lengths.append(len(prompt_ids))
            return [len(prompt_ids)] if reads_all else [1]

    reader, context = Reader(tokenizer, "qwen3", "all"), make_context([], {})
    for length in (1_000, 2_000):
        turn = Previous(prompt_ids=[1] * length, completion_ids=[2], message=Message("assistant", "x"))
        found = reader.extend(turn, [user("<one>")], context)  # which has no pattern
        assert isinstance(found, Bridged)
        assert found.ids == ([length] if reads_all else [1])
    assert lengths == [1_000, PROMPT_END, 2_000 if reads_all else PROMPT_END]


def test_a_family_that_reads_the_whole_prompt_has_no_pattern(tokenizer: Any) -> None:
    """What it writes behind one prompt says nothing of another, however short they are."""

    class Counter(RendererBridge):
        def _bridge(
            self, prompt_ids: Sequence[int], completion_ids: list[int], tail: Any, context: Context
        ) -> list[int]:
            text: list[int] = self._tokenizer.encode(tail[0].text, add_special_tokens=False)
            return [len(prompt_ids), *text]

    counter, context = Counter(tokenizer, "qwen3", "all"), make_context([], {})
    counter.learnt_after = 2
    for length in (50, 51, 52, 53, 500, 501, 502, 503):
        turn = Previous(prompt_ids=[1] * length, completion_ids=[2], message=Message("assistant", "x"))
        found = counter.extend(turn, [user("one")], context)
        assert isinstance(found, Bridged)
        assert found.ids[0] == length


@pytest.fixture(params=["renderer", "template"])
def bridge(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    return bridges(tokenizer)[request.param]


def previous(bridge: Any, tokenizer: Any, completion: str, context: Context) -> Previous:
    """A turn that sampled `completion`, after a short first prompt."""
    prompt_ids = bridge.render([system("s"), user("one")], context)
    ids = tokenizer.encode(completion)
    ended = bool(ids) and ids[-1] in bridge.stop_token_ids
    sampled = Sampled(text=tokenizer.decode(ids[: len(ids) - ended]), tools=TOOLS, ended=ended)
    message = number_calls(HERMES.read(sampled), 0)
    return Previous(prompt_ids=prompt_ids, completion_ids=ids, message=message)


def text_of(tokenizer: Any, found: Bridged | Declined) -> str:
    assert isinstance(found, Bridged), found
    text: str = tokenizer.decode(found.ids)
    return text


PLAIN = make_context([], {})
WITH_TOOLS = make_context(TOOLS, {})


@pytest.mark.parametrize(
    ("completion", "tail", "expected"),
    [
        ("two<|im_end|>", [user("three")], "\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"),
        ("two<|endoftext|>", [user("three")], "\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"),
        ("two", [user("three")], "<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"),
        ("", [user("three")], "<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"),
        (
            "<|im_end|>",
            [user("a"), user("b")],
            "\n<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            CALL + "<|im_end|>",
            [tool("7", call="call00000")],
            "\n<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            CALL + "\n" + CALL + "<|im_end|>",
            [tool("7", call="call00000"), tool("8", call="call00001"), user("go")],
            "\n<|im_start|>user\n<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response><|im_end|>\n"
            "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_a_bridge_is_what_the_template_would_append(
    bridge: Any, tokenizer: Any, completion: str, tail: Sequence[Message], expected: str
) -> None:
    """Stop tokens are not repeated, a cut-off turn is closed, tool results and the generation prompt follow."""
    context = WITH_TOOLS if "tool_call" in completion else PLAIN
    found = bridge.extend(previous(bridge, tokenizer, completion, context), tail, context)
    assert text_of(tokenizer, found) == expected


def test_prompt_and_bridge_make_the_servers_prompt(bridge: Any, tokenizer: Any) -> None:
    """Where the completion is canonical, prompt, completion and bridge are the template's own prompt."""
    turn = previous(bridge, tokenizer, "two<|im_end|>", PLAIN)
    found = bridge.extend(turn, [user("three")], PLAIN)
    whole = [*turn.prompt_ids, *turn.completion_ids, *found.ids]
    conversation = [system("s"), user("one"), Message("assistant", "two"), user("three")]
    assert whole == template_ids(tokenizer, conversation, [], {}, add_generation_prompt=True)


def test_template_arguments_reach_every_bridge(bridge: Any, tokenizer: Any) -> None:
    """`enable_thinking=False` puts the empty think block behind the generation prompt of the bridge too."""
    context = make_context([], {"enable_thinking": False})
    found = bridge.extend(previous(bridge, tokenizer, "two<|im_end|>", context), [user("three")], context)
    assert text_of(tokenizer, found).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_an_argument_that_the_renderer_lacks_makes_it_raise(tokenizer: Any) -> None:
    """An unknown chat-template argument is never dropped: the renderer refuses, and the chain goes on."""
    context = make_context([], {"no_such_argument": 1})
    with pytest.raises(NotExtendable, match="no_such_argument"):
        bridges(tokenizer)["renderer"].render([user("x")], context)


def test_an_image_is_shown_to_a_template_as_servers_show_it(tokenizer: Any) -> None:
    """vLLM and SGLang say that there is an image (`{"type": "image"}`): many templates look for no other type."""
    shows = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    for image in ("data:image/png;base64,AA==", {"url": "https://x.example/a.png", "detail": "low"}):
        message = Message("user", ({"type": "image_url", "image_url": image}, {"type": "text", "text": "what?"}))
        changed = copy.deepcopy(tokenizer)
        changed.chat_template = shows
        ids = template_ids(changed, [message], (), {}, add_generation_prompt=True)
        assert tokenizer.decode(ids).startswith("<|im_start|>user\n<image>what?<|im_end|>")


def test_the_renderer_does_not_cut_sampled_ids(tokenizer: Any) -> None:
    """Where a stop token stands inside a completion, the renderer declines and the template bridges."""
    both = bridges(tokenizer)
    ids = tokenizer.encode("two<|im_end|>more")
    turn = Previous(prompt_ids=both["renderer"].render([user("one")], PLAIN), completion_ids=ids, message=None)
    assert isinstance(both["renderer"].extend(turn, [user("x")], PLAIN), Declined)
    assert text_of(tokenizer, both["template"].extend(turn, [user("x")], PLAIN)).startswith("<|im_end|>\n")


def with_template(tokenizer: Any, template: str) -> Bridge:
    """The template bridge over another chat template."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    stops = [changed.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    return TemplateBridge(changed, stops)


NUMBERED = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.index }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {{ messages|length + 1 }}\n{% endif %}"
)
NO_STOP = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
LAST_THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(("template", "reason"), [(NUMBERED, "turns came before"), (NO_STOP, "no stop token")])
def test_a_template_that_cannot_be_bridged_says_why(tokenizer: Any, template: str, reason: str) -> None:
    """A template that numbers its turns, or never ends them, is declined with the reason."""
    turn = Previous(prompt_ids=[1], completion_ids=tokenizer.encode("two<|im_end|>"), message=None)
    found = with_template(tokenizer, template).extend(turn, [user("x")], PLAIN)
    assert isinstance(found, Declined)
    assert reason in found.reason


def test_a_template_that_treats_the_last_turn_in_another_way_is_bridged(tokenizer: Any) -> None:
    """An empty think block in the last assistant turn alone does not stop the bridge."""
    turn = Previous(prompt_ids=[1], completion_ids=tokenizer.encode("two<|im_end|>"), message=None)
    found = with_template(tokenizer, LAST_THINKS).extend(turn, [user("x")], PLAIN)
    assert text_of(tokenizer, found) == "\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


def test_a_proof_is_made_once_per_shape(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second tail of a shape costs one rendering."""
    bridge = bridges(tokenizer)["template"]
    rendered: list[object] = []
    original = bridge.render

    def counting(messages: object, context: Context, **kwargs: Any) -> list[int]:
        rendered.append(messages)
        ids: list[int] = original(messages, context, **kwargs)
        return ids

    monkeypatch.setattr(bridge, "_render", counting)
    turn = Previous(prompt_ids=[1], completion_ids=tokenizer.encode("two<|im_end|>"), message=None)
    bridge.extend(turn, [user("x")], PLAIN)
    first = len(rendered)
    bridge.extend(turn, [user("another text")], PLAIN)
    assert len(rendered) - first == 1


def answered(tokenizer: Any, call_id: str) -> tuple[Previous, list[Message]]:
    """A turn that called a tool under this id, and the tool's answer."""
    call = ToolCall(function=Function("add", "{}"), id=call_id)
    said = Message("assistant", "two", tool_calls=(call,))
    turn = Previous(prompt_ids=[1], completion_ids=tokenizer.encode("two<|im_end|>"), message=said)
    return turn, [tool("4", call=call)]


IDS_UNSEEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDS_PRINTED = IDS_UNSEEN.replace("{{ m.content }}", "{{ m.tool_call_id or '' }}{{ m.content }}")
IDS_CHECKED = IDS_UNSEEN.replace(
    "{{ m.content }}",
    "{% if m.tool_call_id and m.tool_call_id|length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    "{{ m.tool_call_id or '' }}{{ m.content }}",
)


def test_a_new_call_id_costs_what_a_known_one_does(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that does not print call ids is asked once for each turn, however new the id."""
    bridge: Any = with_template(tokenizer, IDS_UNSEEN)
    rendered: list[object] = []
    original = bridge.render

    def counting(messages: object, context: Context, **kwargs: Any) -> list[int]:
        rendered.append(messages)
        ids: list[int] = original(messages, context, **kwargs)
        return ids

    monkeypatch.setattr(bridge, "_render", counting)
    found = {str(bridge.extend(*answered(tokenizer, "call_0"), PLAIN))}
    first = len(rendered)
    found |= {str(bridge.extend(*answered(tokenizer, f"c{number:08d}"), PLAIN)) for number in range(5)}
    assert len(rendered) - first == 5
    assert len(found) == 1


@pytest.mark.parametrize("template", [IDS_PRINTED, IDS_CHECKED])
def test_a_template_that_prints_call_ids_has_each_in_its_bridge(tokenizer: Any, template: str) -> None:
    """Where a template prints or checks call ids, each bridge is what the template appends for that very id."""
    bridge = with_template(tokenizer, template)
    for call_id in ("abcdefghi", "123456789", "abcdefghi"):
        found = bridge.extend(*answered(tokenizer, call_id), PLAIN)
        assert text_of(tokenizer, found) == (f"\n<|im_start|>tool\n{call_id}4<|im_end|>\n<|im_start|>assistant\n")


def test_a_family_that_prints_call_ids_has_a_pattern_for_none_but_its_own(tokenizer: Any) -> None:
    """The family's bridge is asked with other ids before a shape is taken for all of them."""
    bridge = RendererBridge(tokenizer, "qwen3", "all")
    turn, tail = answered(tokenizer, "call_0")
    assert bridge._shapes(turn, tail, PLAIN) == bridge._shapes(*answered(tokenizer, "other"), PLAIN)
    printing: Any = RendererBridge(tokenizer, "qwen3", "all")
    original = printing._bridge
    printing._bridge = lambda prompt, sampled, tail, context: [
        *original(prompt, sampled, tail, context),
        *(len(message.tool_call_id or "") for message in tail),
    ]
    assert printing._shapes(turn, tail, PLAIN)[0] != printing._shapes(*answered(tokenizer, "other"), PLAIN)[0]


def test_nothing_that_a_bridge_remembers_grows_without_end(tokenizer: Any) -> None:
    """Names, template arguments, tools and endings that are ever new leave no more behind than a memo's size."""
    found = bridges(tokenizer)
    memos: dict[str, Any] = {
        f"{name}.{attribute}": memo
        for name, bridge in {
            **found,
            "shapes": found["template"]._shapes,
            "stand_in": found["renderer"].stand_in,
        }.items()
        for attribute, memo in vars(bridge).items()
        if isinstance(memo, dict)
    }
    assert len(memos) >= 8
    assert all(isinstance(memo, Memo) for memo in memos.values())
    for memo in memos.values():
        memo.size = 4
    for number in range(8):
        call = ToolCall(function=Function(f"add{number}", "{}"), id=f"call_{number}")
        said = Message("assistant", "two", tool_calls=(call,))
        context = make_context([{"type": "function", "function": {"name": f"f{number}"}}], {})
        turn = Previous(prompt_ids=[1, number], completion_ids=tokenizer.encode("two<|im_end|>"), message=said)
        for bridge in found.values():
            bridge.extend(turn, [tool("4", call=call)], context)
    assert all(0 <= len(memo) <= 4 for memo in memos.values())
    assert sum(map(len, memos.values())) > 8


ENDS_IN_ANOTHER_WAY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ '<|im_end|>' if loop.last and m.role == 'assistant' else '<|box_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLE_MARKERS = (
    "{% for m in messages %}{{ {'user': '<|box_start|>', 'tool': '<|quad_start|>'}.get(m.role, '<|im_start|>') }}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
CALLS_STAND_ALONE = (
    "{% for m in messages %}"
    "{% if m.tool_calls and loop.last %}{{ raise_exception('a call needs its result') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def after(tokenizer: Any, template: str, completion: str, tail: Sequence[Message], stops: Sequence[str]) -> str:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    bridge = TemplateBridge(changed, [changed.convert_tokens_to_ids(stop) for stop in stops])
    turn = Previous(prompt_ids=[1], completion_ids=tokenizer.encode(completion), message=None)
    return text_of(tokenizer, bridge.extend(turn, tail, PLAIN))


def test_a_turn_that_ends_in_another_way_when_it_is_the_last_is_bridged(tokenizer: Any) -> None:
    """Where history has another token in the stop token's place (gpt-oss), the sampled stop token stays."""
    text = after(tokenizer, ENDS_IN_ANOTHER_WAY, "two<|im_end|>", [user("x")], ["<|im_end|>"])
    assert text == "<|im_start|>user\nx<|box_end|><|im_start|>assistant\n"
    text = after(tokenizer, ENDS_IN_ANOTHER_WAY, "two", [user("x")], ["<|im_end|>"])
    assert text == "<|box_end|><|im_start|>user\nx<|box_end|><|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("two<|quad_start|>", "7<|im_start|>"),
        ("two<|box_start|>", "<|quad_start|>7<|im_start|>"),
        ("two", "<|quad_start|>7<|im_start|>"),
    ],
)
def test_a_stop_token_that_opens_the_next_message_is_not_repeated(
    tokenizer: Any, completion: str, expected: str
) -> None:
    """GLM's way: the right role's marker is there already; a wrong one was sampled, so it stays before it."""
    tail = [tool("7", call="call00000")]
    assert after(tokenizer, ROLE_MARKERS, completion, tail, ["<|box_start|>", "<|quad_start|>"]) == expected


def test_a_template_that_refuses_one_stand_in_gets_another(tokenizer: Any) -> None:
    """A result whose call could not be read is bridged by calls that fit it; where calls must not be last, by text."""
    text = after(tokenizer, CALLS_STAND_ALONE, "two<|im_end|>", [tool("7", call="c")], ["<|im_end|>"])
    assert text == "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n"


def test_reasoning_that_was_cut_off_is_closed(bridge: Any, tokenizer: Any) -> None:
    """A turn cut off while the model reasons gets its `</think>` before its stop token."""
    found = bridge.extend(previous(bridge, tokenizer, "<think>\nhm", PLAIN), [user("x")], PLAIN)
    assert text_of(tokenizer, found).startswith("</think><|im_end|>\n<|im_start|>user\n")


def test_a_renderer_whose_bridge_is_not_what_it_renders_declines(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family's bridge is measured against its own rendering once per shape, and the rendering wins."""
    bridge = bridges(tokenizer)["renderer"]
    turn = previous(bridge, tokenizer, "two<|im_end|>", PLAIN)
    original = bridge._extend
    monkeypatch.setattr(bridge, "_extend", lambda *args: original(*args)[1:])
    declined = bridge.extend(turn, [user("x")], PLAIN)
    assert isinstance(declined, Declined)
    assert "is not what it renders" in declined.reason
    assert isinstance(bridge.stand_in.extend(turn, [user("x")], PLAIN), Bridged)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("{{ raise_exception('no tools here') }}", "no tools here"),
        ("{{ m.nothing.at_all }}", "no attribute 'nothing'"),
        ("{{ m.content + 1 }}", "concatenate"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
    ],
)
def test_a_decline_names_the_templates_line(tokenizer: Any, rule: str, said: str) -> None:
    """Whatever a template raises is a decline with its own words and where it said them."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = (
        "{% for m in messages %}\n{% if m.role == 'tool' %}\n" + rule + "{% endif %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    bridge = TemplateBridge(own, [tokenizer.eos_token_id])
    turn = Previous(prompt_ids=[1], completion_ids=[tokenizer.eos_token_id], message=Message("assistant", "x"))
    found = bridge.extend(turn, [Message("tool", "r", tool_call_id="c")], make_context([], {}))
    assert isinstance(found, Declined)
    assert "the template refuses at its line 3: " in found.reason
    assert said in found.reason
