"""Every format: what a model wrote in it comes back as it was written, and nothing that it wrote gets lost."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message
from rollout.codec.readers import Sampled
from rollout.codec.readers.catalogue import FORMATS
from tests.rollout.codec.readers.kit import calls_of, read, reasons_of, tool_of
from tests.rollout.codec.readers.writers import WRITERS

#: What stands before a turn, where it matters to a format.
PROMPTS = {"harmony": "<|start|>assistant", "inkling": "<|message_model|>"}

#: Formats that have nothing around their text, so that text before a call is not certain to be text.
BARE = {"llama", "llama4", "xlam", "gemma"}

#: Formats whose messages have headers: those of an answer are no content.
HEADED = {"harmony", "inkling", "atem"}

#: A tool with a parameter of each type.
PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "count": {"type": "integer"},
    "size": {"type": "number"},
    "nothing": {"type": ["integer", "null"]},
    "items": {"type": "array"},
    "object": {"type": "object"},
    "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
}
EDIT = tool_of("edit", PROPERTIES)

#: Texts, but not those that spell a format's own tags: of these some formats cannot write.
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40).filter(
    lambda text: not any(char in text for char in "<[｜") and "```" not in text
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXTS,
        "flag": st.booleans(),
        "count": st.integers(),
        "size": st.floats(allow_nan=False, allow_infinity=False),
        "nothing": st.none(),
        "items": st.lists(JSON, max_size=3),
        "object": st.dictionaries(TEXTS, JSON, max_size=3),
        "either": st.integers() | st.none(),
    },
)
VALUES: list[dict[str, Any]] = [
    {},
    {"text": "    if x:\n        return 1\n"},
    {"text": "  x  "},
    {"text": "\n\n"},
    {"text": ""},
    {"text": "True"},
    {"text": "12"},
    {"text": "naïve Straße 東京 👩‍👩‍👧‍👦 \u2028"},
    {"text": "say \"hi\" and 'hi', \\n is no newline, {a: 1}"},
    {"flag": True, "nothing": None, "count": 2**80, "size": -1.5e-7},
    {"items": [1, [2.5, None, True, "x, y"], {"k": "v"}], "object": {"a b": {"c": []}}},
    {"either": 7, "count": -(10**30)},
]


@pytest.mark.parametrize(("name", "variant"), WRITERS)
def test_every_format_has_a_writer_and_values_come_back(name: str, variant: str) -> None:
    """Indentation, last newlines, words of other types, nested JSON, unicode, numbers beyond 64 bits."""
    for arguments in VALUES:
        text = WRITERS[name, variant]("edit", arguments)
        message = read(FORMATS[name], text, tools=[EDIT], prompt_end=PROMPTS.get(name, "."))
        assert calls_of(message) == [("edit", arguments)], text
        assert (message.content, message.malformed_tool_calls) == (None, ()), text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), WRITERS)
@given(arguments=ARGUMENTS)
def test_any_arguments_come_back(name: str, variant: str, arguments: dict[str, Any]) -> None:
    """Whatever object a model means, in the format's documented spelling."""
    text = WRITERS[name, variant]("edit", arguments)
    message = read(FORMATS[name], text, tools=[EDIT], prompt_end=PROMPTS.get(name, "."))
    assert calls_of(message) == [("edit", arguments)]


def test_all_formats_are_tested() -> None:
    """None is left out."""
    assert {name for name, _ in WRITERS} == set(FORMATS)


@pytest.mark.parametrize(("name", "variant"), WRITERS)
def test_where_no_tools_were_offered_text_is_text(name: str, variant: str) -> None:
    """In every format a call is then what was said."""
    text = WRITERS[name, variant]("edit", {"text": "x"})
    message = read(FORMATS[name], text, tools=(), prompt_end=PROMPTS.get(name, "."))
    assert (message.content, message.tool_calls) == (text, ())


@pytest.mark.parametrize(("name", "variant"), WRITERS)
def test_where_no_tools_were_offered_nothing_is_malformed(name: str, variant: str) -> None:
    """A call that was cut off anywhere is what was said then, too: no environment answers it as an error."""
    text = WRITERS[name, variant]("edit", {"text": "some words", "count": 3})
    for end in range(1, len(text)):
        message = read(FORMATS[name], text[:end], tools=(), prompt_end=PROMPTS.get(name, "."), ended=False)
        assert (message.tool_calls, message.malformed_tool_calls) == ((), ())
        if name not in HEADED:
            assert message.text == text[:end]


@pytest.mark.parametrize(("name", "variant"), WRITERS)
def test_a_call_that_was_cut_off_is_malformed(name: str, variant: str) -> None:
    """Its text is kept, in the content, too, from the format's first mark on."""
    text = WRITERS[name, variant]("edit", {"text": "some words", "count": 3})
    cut = text[: text.index("words")]
    message = read(FORMATS[name], cut, tools=[EDIT], prompt_end=PROMPTS.get(name, "."), ended=False)
    assert message.tool_calls == ()
    assert len(message.malformed_tool_calls) == 1
    assert message.malformed_tool_calls[0].raw in message.text
    assert "some " in message.malformed_tool_calls[0].raw


@pytest.mark.parametrize(("name", "variant"), WRITERS)
def test_two_calls_one_after_the_other(name: str, variant: str) -> None:
    """Parallel calls, for formats that write them as two."""
    if name in ("xlam", "harmony") or (name, variant) in {("llama4", ""), ("gemma", "list")}:
        pytest.skip("which writes them in one list, or one a turn")
    write = WRITERS[name, variant]
    text = write("edit", {"text": "a\n"}) + "\n" + write("edit", {"text": "b"})
    message = read(FORMATS[name], text, tools=[EDIT], prompt_end=PROMPTS.get(name, "."))
    assert calls_of(message) == [("edit", {"text": "a\n"}), ("edit", {"text": "b"})]
    assert message.content is None


@pytest.mark.parametrize(("name", "variant"), WRITERS)
def test_text_before_a_call_is_content(name: str, variant: str) -> None:
    """With its own whitespace, less the newline that the format writes."""
    if name in BARE | {"harmony", "inkling", "atem"}:
        pytest.skip("whose text has a place of its own, or none")
    text = "  I edit it.\n" + WRITERS[name, variant]("edit", {"text": "a"})
    message = read(FORMATS[name], text, tools=[EDIT])
    assert (message.content, calls_of(message)) == ("  I edit it.", [("edit", {"text": "a"})])


@pytest.mark.parametrize(("name", "variant"), WRITERS)
@pytest.mark.parametrize("opened", [True, False])
def test_reasoning_stands_apart(name: str, variant: str, opened: bool) -> None:
    """Before a call, opened by the prompt or by the model."""
    reader, call = FORMATS[name], WRITERS[name, variant]("edit", {"text": "a"})
    if not reader.tags:
        pytest.skip("which has no reasoning, or a channel for it")
    tags = reader.tags[0]
    newlines = "\n" * tags.newlines
    opener = tags.open + newlines
    text = f"  I think.{newlines}{tags.close}\n\n{call}"
    before, text = (f".{opener}", text) if opened else (".", opener + text)
    message = read(reader, text, tools=[EDIT], prompt_end=before)
    assert (message.reasoning_content, message.content) == ("  I think.", None)
    assert calls_of(message) == [("edit", {"text": "a"})]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_no_text_raises_or_gets_lost(name: str, data: st.DataObject) -> None:
    """Any text, of the format's own marks and words, cut anywhere: its pieces are the text, and its message is kept.

    What is malformed is in the content, whole, and the message can be written.
    """
    reader = FORMATS[name]
    whole = [write("edit", {"text": "a", "count": 1}) for (each, _), write in WRITERS.items() if each == name]
    marks = [*reader.openers, *(tag for each in reader.tags for tag in (each.open, each.close))]
    cuts = [text[start:end] for text in whole for start, end in ((0, 12), (0, len(text) // 2), (len(text) // 2, None))]
    words = st.sampled_from([*whole, *marks, *cuts, "\n", " ", "x", "{", "}", "[", '"', "\ud83d", "<|message|>", ")"])
    text = "".join(data.draw(st.lists(words | st.text(max_size=5), max_size=8)))
    ended, tools = data.draw(st.booleans()), data.draw(st.sampled_from([(), (EDIT,)]))
    prompt_end = data.draw(st.sampled_from(["", ".", *marks, *PROMPTS.values()]))
    sampled = Sampled(text=text, prompt_end=prompt_end, tools=tools, ended=ended)
    assert "".join(piece.raw for piece in reader.pieces(sampled)) == text
    message = reader.read(sampled)
    assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message
    for call in message.tool_calls:
        assert isinstance(call.parsed_arguments(), dict)
    for malformed in message.malformed_tool_calls:
        assert malformed.raw in message.text
        assert malformed.reason
    if not tools:
        assert not message.tool_calls
        assert not message.malformed_tool_calls


@pytest.mark.parametrize("name", FORMATS)
def test_plain_text_is_content(name: str) -> None:
    """An answer without any mark is the answer, to its last space."""
    for text in ("Hello.", "    return x\n", "\n", "a {b} [c] <d> `e`", "if x: {\n}", '{"a": 1}', "[1, 2]", "x(1)"):
        assert read(FORMATS[name], text) == Message("assistant", text)


JSON_READERS = sorted({"hermes", "mistral", "granite", "phi", "nemotron", "hunyuan", "minimax-m1", "llama", "xlam"})


@pytest.mark.parametrize("name", JSON_READERS)
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ('{"name": "edit", "arguments": [1]}', "malformed_structure"),
        ('{"name": "edit", "arguments": "x"}', "malformed_structure"),
        ('{"name": "edit", "arguments": {"a": NaN}}', "invalid_json"),
        ('{"name": "edit", "arguments": {"a": 1e999}}', "invalid_json"),
        ('{"name": "edit", "arguments": {}, "thought": "x"}', "malformed_structure"),
        ('{"name": "edit", "name": "edit", "arguments": {}}', "malformed_structure"),
        ('{"name": "", "arguments": {}}', "missing_name"),
        ('{"name": 3, "arguments": {}}', "missing_name"),
        ('{"name": "edit", "arguments": {"a": ' + "[" * 500 + "]" * 500 + "}}", "invalid_json"),
        ('{"name": "edit", "arguments": {"a": 1,}}', "invalid_json"),
        ("{'name': 'edit', 'arguments': {}}", "invalid_json"),
    ],
)
def test_what_is_malformed_is_said_why(name: str, call: str, reason: str) -> None:
    """In every format of JSON alike, with its whole text."""
    if name in ("llama", "xlam") and call.startswith("{'"):
        pytest.skip("which is text there: nothing tells that a call was meant")
    good = '{"name": "edit", "arguments": {}}'
    variant = next(v for each, v in WRITERS if each == name)
    text = WRITERS[name, variant]("edit", {})
    written = '{"name": "edit", "parameters": {}}' if name == "llama" else good
    text = text.replace(', "id": "abcdefghi"', "")
    assert written in text
    text = text.replace(written, call)
    message = read(FORMATS[name], text, tools=[EDIT])
    assert reasons_of(message) == [reason]
    assert (message.content, message.tool_calls) == (text, ())


def test_arguments_keep_their_text() -> None:
    """Where a format is JSON, they are what the model wrote, to the last space."""
    written = '{"text":  "\\u00e9",\n "size": 1.10}'
    for (name, variant), write in WRITERS.items():
        text = write("edit", {"text": "@"}).replace(json.dumps({"text": "@"}), written)
        if written not in text:
            continue
        message = read(FORMATS[name], text, tools=[EDIT], prompt_end=PROMPTS.get(name, "."))
        assert [call.function.arguments for call in message.tool_calls] == [written], (name, variant)


@pytest.mark.parametrize(("name", "variant"), WRITERS)
@pytest.mark.parametrize("number", ["12345678901234567890.5", "1.10", "-0", "1E3", "9" * 400])
def test_numbers_keep_their_text(name: str, variant: str, number: str) -> None:
    """Those of formats without quotes, and of Python's, too: as floats they would lose digits."""
    text = WRITERS[name, variant]("edit", {"size": 7}).replace("7", number)
    message = read(FORMATS[name], text, tools=[EDIT], prompt_end=PROMPTS.get(name, "."))
    assert [call.function.arguments for call in message.tool_calls] == [f'{{"size": {number}}}']


NUMBERS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,2})?\Z").map(str)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), WRITERS)
@given(number=NUMBERS)
def test_any_number_keeps_its_text(name: str, variant: str, number: str) -> None:
    """Nested ones, too."""
    for arguments in ({"size": 7}, {"object": {"k": [7, "x"]}}):
        text = WRITERS[name, variant]("edit", arguments)
        assert text.count("7") == 1
        message = read(FORMATS[name], text.replace("7", number), tools=[EDIT], prompt_end=PROMPTS.get(name, "."))
        assert [call.function.arguments for call in message.tool_calls] == [json.dumps(arguments).replace("7", number)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), WRITERS)
def test_what_is_repeated_without_end_is_read_to_the_end(name: str, variant: str) -> None:
    """What a policy that degenerates writes: spaces, a call's beginning, words. A reader that tries a text again from
    each of its places would be at it for minutes or hours, and hold up every rollout of the process."""
    reader, call = FORMATS[name], WRITERS[name, variant]("edit", {"text": "some words", "count": 3})
    begun = [call[: call.index("words")], call[: call.index("edit") + 4], *reader.openers]
    for before in ("", *begun):
        for again in (" " * 60_000, "\n" * 60_000, "word" * 15_000, *(each * 2_000 for each in begun)):
            assert read(reader, before + again, tools=[EDIT], prompt_end=".", ended=False).tool_calls == ()
