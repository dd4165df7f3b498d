"""Calls in a section of their own, and of one's own header: DeepSeek, Kimi, Mistral, gpt-oss."""

from __future__ import annotations

from rollout.codec.readers.harmony import HARMONY
from rollout.codec.readers.mistral import MISTRAL
from rollout.codec.readers.sections import DEEPSEEK, KIMI
from tests.rollout.codec.readers.kit import calls_of, read, reasons_of

HEADER = "<|start|>assistant"


def test_parallel_calls_of_deepseek() -> None:
    """Several in one section, a newline between them."""
    call = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>'
    message = read(DEEPSEEK, f"I add.\n<｜tool▁calls▁begin｜>{call}\n{call}<｜tool▁calls▁end｜>")
    assert (calls_of(message), message.content) == ([("add", {"a": 1})] * 2, "I add.")


def test_a_section_without_calls_is_malformed() -> None:
    """Calls were announced, and none is there: its text stays."""
    text = "<｜tool▁calls▁begin｜>hm<｜tool▁calls▁end｜>"
    message = read(DEEPSEEK, text)
    assert (reasons_of(message), message.content) == (["malformed_structure"], text)


def test_kimis_ids_are_kept() -> None:
    """They are how its template names a call, and hold the function's name, whose dots are its own."""
    text = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.a.b:7<|tool_call_argument_begin|>{}"
        "<|tool_call_end|><|tool_calls_section_end|>"
    )
    (call,) = read(KIMI, text).tool_calls
    assert (call.name, call.id) == ("a.b", "functions.a.b:7")


def test_mistrals_ids_are_kept() -> None:
    """Where the model writes them."""
    text = '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "abcdefghi"}, {"name": "add", "arguments": {}}]'
    assert [call.id for call in read(MISTRAL, text).tool_calls] == ["abcdefghi", None]
    assert [call.id for call in read(MISTRAL, "[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{}").tool_calls] == ["abcdefghi"]
    assert reasons_of(read(MISTRAL, "[TOOL_CALLS]add[ARGS]{")) == ["invalid_json"]
    assert reasons_of(read(MISTRAL, "[TOOL_CALLS]")) == ["malformed_structure"]


def test_harmonys_channels() -> None:
    """A preamble is text, what has a recipient is a call, a call that was cut off is malformed."""
    call = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}'
    text = f"<|channel|>commentary<|message|>I add.<|end|>{HEADER}{call}<|call|>"
    message = read(HARMONY, text, prompt_end=HEADER)
    assert (message.content, calls_of(message)) == ("I add.", [("add", {"a": 1})])
    cut = read(HARMONY, call, prompt_end=HEADER, ended=False)
    assert (reasons_of(cut), cut.content) == (["unclosed_block"], call)
    assert calls_of(read(HARMONY, call, prompt_end=HEADER, ended=True)) == [("add", {"a": 1})]
    assert read(HARMONY, "Hello.", prompt_end=HEADER).content == "Hello."


def test_harmony_behind_a_prompt_that_nobody_knows() -> None:
    """Its first header tells."""
    message = read(
        HARMONY, f"<|channel|>analysis<|message|>Hm.<|end|>{HEADER}<|channel|>final<|message|>Yes.", prompt_end=""
    )
    assert (message.reasoning_content, message.content) == ("Hm.", "Yes.")
