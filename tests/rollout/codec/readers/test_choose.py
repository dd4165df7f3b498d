"""The reader is chosen by what the model is."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.kit.templates import TEMPLATES
from benchmarks.kit.tokenizers import small_tokenizer
from rollout.codec.families import families
from rollout.codec.readers import choose_reader, response_template
from rollout.codec.readers.catalogue import FORMATS, format_by_name
from rollout.codec.readers.choose import reader_names
from rollout.codec.tokenizer import load_tokenizer
from rollout.errors import ConfigError
from tests.cases.token_kit import CHATML_TEMPLATE
from transports.embedded import MODEL_DIR

PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"


def name_of(tokenizer: Any, family: str | None = None) -> str | None:
    reader = choose_reader(tokenizer, family=family)
    return reader.name if reader is not None else None


def test_the_embedded_model_writes_hermes() -> None:
    """As Qwen3's template has it."""
    assert name_of(load_tokenizer(str(MODEL_DIR))) == "hermes"


def test_the_templates_own_call_decides() -> None:
    """Whatever the model's tokens and name say, what its template writes for a call is how it writes calls."""
    found = {
        template.name: name_of(small_tokenizer(template.markers, chat_template=template.jinja))
        for template in TEMPLATES
    }
    assert found == {
        **dict.fromkeys(found, "hermes"),
        "alternate-end": "llama",
        "call-ids-shown": "kimi",
        "strict-alternation": "mistral",
        "end-differs-when-last": "harmony",
    }


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ('{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}', "llama"),
        ('[{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}]', "xlam"),
        ('<TOOLCALL>[{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}]</TOOLCALL>', "nemotron"),
        ('<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>', "hermes"),
        (
            "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n{{ v }}\n"
            "</parameter>\n{% endfor %}</function>\n</tool_call>",
            "qwen-xml",
        ),
        (
            "<tool_call>{{ f.name }}{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key>"
            "<arg_value>{{ v }}</arg_value>{% endfor %}</tool_call>",
            "glm",
        ),
        ("[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}", "mistral"),
        ("[TOOL_CALLS]{{ f.name }}{{ '{}' if f.arguments is string else '' }}[ARGS]{{ f.arguments + '' }}", "mistral"),
    ],
)
def test_a_call_that_is_read_back_tells(call: str, name: str) -> None:
    """Also where the model has Llama's tokens, as fine-tunes of it have, and where a template wants text."""
    template = (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{% set f = c.function %}" + call + "{% endfor %}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    tokenizer = small_tokenizer(("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), chat_template=template)
    assert name_of(tokenizer) == name


@pytest.mark.parametrize(
    ("sign", "name"),
    [
        ("<function=", "qwen-xml"),
        ("[TOOL_CALLS]", "mistral"),
        ("<|tool_calls_section_begin|>", "kimi"),
        ("<｜tool▁calls▁begin｜>", "deepseek"),
        ("<start_of_turn>", "gemma"),
        ("<|tool_list_start|>", "lfm2"),
    ],
)
def test_a_template_that_drops_calls_tells_by_its_text(sign: str, name: str) -> None:
    """It says to the model how calls are written, or how turns are."""
    assert name_of(small_tokenizer(("</s>",), chat_template=PLAIN_TEMPLATE + sign)) == name


@pytest.mark.parametrize(("token", "name"), [("<minimax:tool_call>", "minimax"), ("<|python_start|>", "llama4")])
def test_tokens_tell_where_the_template_does_not(token: str, name: str) -> None:
    """A format's markers are tokens of the models that were trained on it."""
    assert name_of(small_tokenizer((token,), chat_template=PLAIN_TEMPLATE)) == name


@pytest.mark.parametrize(
    ("name", "tokens", "reader"),
    [
        ("Qwen/Qwen3.5-9B", ("<tool_call>", "</tool_call>"), "qwen-xml"),
        ("Salesforce/Llama-xLAM-2-8b-fc-r", ("<|python_tag|>", "<|start_header_id|>"), "xlam"),
        ("/ckpt/policy", ("<tool_call>", "</tool_call>"), "hermes"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", ("<tool_call>", "</tool_call>"), "hermes"),
    ],
)
def test_of_formats_with_the_same_tokens_the_name_tells(name: str, tokens: tuple[str, ...], reader: str) -> None:
    """Under a template of one's own, that renders no call. What has markers that the model lacks is not taken."""
    tokenizer = small_tokenizer(tokens, chat_template=PLAIN_TEMPLATE)
    tokenizer.name_or_path = name
    assert name_of(tokenizer) == reader


def test_a_name_tells_where_nothing_else_does(tmp_path: Any) -> None:
    """The hub's name, or the `model_type` of the model's own configuration."""
    tokenizer = small_tokenizer(("</s>",), chat_template=PLAIN_TEMPLATE)
    assert name_of(tokenizer) is None
    tokenizer.name_or_path = "microsoft/Phi-3-mini-4k-instruct"
    assert name_of(tokenizer) == "phi"
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    tokenizer.name_or_path = str(tmp_path)
    assert name_of(tokenizer) == "mistral"
    (tmp_path / "config.json").write_text("[oops")
    assert name_of(tokenizer) is None


def test_nobody_knows_how_a_chat_model_without_tools_writes_calls() -> None:
    """None is said, not a guess."""
    assert name_of(small_tokenizer(("<|im_start|>", "<|im_end|>"), chat_template=CHATML_TEMPLATE)) is None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", "llama"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4"),
        ("Qwen/Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen/Qwen3-4B-Instruct-2507", "hermes"),
        ("Qwen/Qwen3-8B", "hermes"),
        ("qwen3_5_moe", "qwen-xml"),
        ("Qwen/Qwen3-VL-8B-Instruct", "hermes"),
        ("Qwen/Qwen3.5-2B", "qwen-xml"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen-xml"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "hermes"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("mistralai/Ministral-8B-Instruct-2410", "mistral"),
        ("mistralai/Magistral-Small-2506", "mistral"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseek"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek"),
        ("deepseek-ai/DeepSeek-V3.2", "dsml"),
        ("moonshotai/Kimi-K2-Instruct", "kimi"),
        ("zai-org/GLM-4.5-Air", "glm"),
        ("MiniMaxAI/MiniMax-M2", "minimax"),
        ("MiniMaxAI/MiniMax-M1-80k", "minimax-m1"),
        ("openai/gpt-oss-20b", "harmony"),
        ("google/gemma-3-4b-it", "gemma"),
        ("google/gemma-4-E2B-it", "gemma4"),
        ("google/functiongemma-270m-it", "functiongemma"),
        ("ibm-granite/granite-3.3-8b-instruct", "granite"),
        ("ibm-granite/granite-4.0-h-tiny", "hermes"),
        ("microsoft/Phi-4-mini-instruct", "phi"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi"),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "nemotron"),
        ("nvidia/Llama-3_1-Nemotron-Nano-8B-v1", "nemotron"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "qwen-xml"),
        ("nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16", "qwen-xml"),
        ("Salesforce/Llama-xLAM-2-8b-fc-r", "xlam"),
        ("someone/my-model", None),
    ],
)
def test_names_of_models_that_people_train(model: str, name: str | None) -> None:
    """Where all that is known is a name, as behind a server without /tokenize."""
    found = format_by_name(model)
    assert (found.name if found is not None else None) == name


def test_every_family_of_renderers_has_a_reader() -> None:
    """And so a renderer that is named brings one along."""
    assert [name for name in families() if format_by_name(name) is None] == []


def test_a_reader_can_be_named() -> None:
    """`--reader` beats what the model seems to be; an unknown name is refused with those that there are."""
    tokenizer = load_tokenizer(str(MODEL_DIR))
    assert choose_reader(tokenizer, "mistral") is FORMATS["mistral"]
    assert {"auto", "none", "hermes"} < set(reader_names())
    with pytest.raises(ConfigError, match="no reader 'hermess'; there are: auto, atem, cohere"):
        choose_reader(tokenizer, "hermess")


@pytest.mark.skipif(not response_template.is_known(), reason="transformers reads such formats from 5.13 on")
def test_a_documented_response_format_is_read_by_transformers() -> None:
    """A format that we do not know, and that the tokenizer documents."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}@@{{ c.function | tojson }}@@{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = small_tokenizer(("<|im_start|>", "<|im_end|>"), chat_template=template)
    assert choose_reader(tokenizer) is None
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "tool_calls": {
                "open": "@@",
                "close": "@@",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"close": "<|im_end|>", "content": "text"},
        },
    }
    reader = choose_reader(tokenizer)
    assert reader is not None
    assert reader.name == "response-template"
    from rollout.codec.readers import Sampled
    from tests.rollout.codec.readers.kit import ADD, calls_of

    sampled = Sampled(
        text='So. @@{"name": "add", "arguments": {"a": 1}}@@', prompt_end="<|im_start|>assistant\n", tools=[ADD]
    )
    assert calls_of(reader.read(sampled)) == [("add", {"a": 1})]
    assert reader.read(Sampled(text="@@{oops@@", prompt_end="<|im_start|>assistant\n", tools=[ADD])).text == "@@{oops@@"
