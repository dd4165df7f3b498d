"""Chat templates in the style of real families, each of a structure that bridges get wrong in its own way."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from rollout.chat.messages import Message, ToolCall


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A chat template, and how its model writes."""

    name: str
    jinja: str
    markers: tuple[str, ...]
    stops: tuple[str, ...]
    """Tokens that end the assistant's turn; the first is the one that templates write, and the tokenizer's eos."""
    eos: str | None = None
    """Where it is another than the first stop."""
    says: Callable[[Message], str]
    """What the model samples for a message, without its stop token."""
    call_stop: str | None = None
    """What ends a turn that calls tools, where it is another token."""


def hermes(message: Message) -> str:
    """`<think>` reasoning, text, and calls as JSON between `<tool_call>` tags: what our parser reads."""
    reasoning = f"<think>\n{message.reasoning_content}\n</think>\n\n" if message.reasoning_content else ""
    calls = [
        "<tool_call>\n" + json.dumps({"name": call.name, "arguments": call.parsed_arguments()}) + "\n</tool_call>"
        for call in message.tool_calls
    ]
    return reasoning + "\n".join(filter(None, [message.text, *calls]))


def bare_json(message: Message) -> str:
    """Calls as bare JSON, as Llama 3 writes them."""
    calls = [json.dumps({"name": call.name, "parameters": call.parsed_arguments()}) for call in message.tool_calls]
    return message.text + "".join(calls)


def bracketed(message: Message) -> str:
    """Calls as a JSON list behind a marker, as Mistral writes them."""
    calls = [{"name": call.name, "arguments": call.parsed_arguments()} for call in message.tool_calls]
    return message.text + (f"[TOOL_CALLS]{json.dumps(calls)}" if calls else "")


def channels(message: Message) -> str:
    """Harmony's channels. The prompt ends with `<|start|>assistant`."""
    analysis = (
        f"<|channel|>analysis<|message|>{message.reasoning_content}<|end|><|start|>assistant"
        if message.reasoning_content
        else ""
    )
    if message.tool_calls:
        call = message.tool_calls[0]
        return f"{analysis}<|channel|>commentary to=functions.{call.name}<|message|>{call.function.arguments}"
    return f"{analysis}<|channel|>final<|message|>{message.text}"


def kimi_id(call: ToolCall) -> str:
    """A call's id as Kimi's models number them."""
    return f"functions.{call.name}:{int((call.id or '0')[-5:])}"


def sections(message: Message) -> str:
    """Calls in sections, each with its id, as Kimi writes them."""
    calls = [
        f"<|tool_call_begin|>{kimi_id(call)}<|tool_call_argument_begin|>{call.function.arguments}<|tool_call_end|>"
        for call in message.tool_calls
    ]
    return message.text + (f"<|tool_calls_section_begin|>{''.join(calls)}<|tool_calls_section_end|>" if calls else "")


_CALLS = (
    "{% for call in m.tool_calls or [] %}{{ '\\n' if m.content or not loop.first else '' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}"
)
_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
)
_RESULTS = (
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}\n<tool_response>\n"
    "{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
)
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
_CHATML_STOPS = ("<|im_end|>", "<|endoftext|>")
_OUTPUTS = (
    "<｜begin｜>",
    "<｜end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜outputs｜>",
    "<｜/outputs｜>",
    "<｜output｜>",
)


def _chatml(assistant: str, *, results: str = _RESULTS, after: str = "\n", before: str = "") -> str:
    """A ChatML template with a body for the assistant's turn."""
    body = (
        before
        + _TOOLS
        + "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
        "{% elif m.role == 'system' and not loop.first %}<|im_start|>system\n{{ m.content }}<|im_end|>\n"
        "{% elif m.role == 'assistant' %}<|im_start|>assistant\n" + assistant + "<|im_end|>\n"
        "{% elif m.role == 'tool' %}" + results + "{% endif %}{% endfor %}" + _PROMPT
    )
    return body.replace("<|im_end|>\n", f"<|im_end|>{after}")


_THINK = (
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}" + _CALLS
)
_LAST_QUERY = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)

TEMPLATES = [
    Template(
        name="chatml",
        jinja="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT,
        markers=_CHATML,
        stops=_CHATML_STOPS,
        says=hermes,
    ),
    Template(name="chatml-tools", jinja=_chatml(_THINK), markers=_CHATML, stops=_CHATML_STOPS, says=hermes),
    Template(
        name="drops-reasoning",
        jinja=_chatml(
            "{% if m.reasoning_content and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
            "{% endif %}{{ m.content }}" + _CALLS,
            before=_LAST_QUERY,
        ),
        markers=_CHATML,
        stops=_CHATML_STOPS,
        says=hermes,
    ),
    Template(
        name="empty-think-last",
        jinja=_chatml("{% if loop.last and not m.reasoning_content %}<think>\n\n</think>\n\n{% endif %}" + _THINK),
        markers=_CHATML,
        stops=_CHATML_STOPS,
        says=hermes,
    ),
    Template(
        name="opens-think",
        jinja=_chatml(_THINK).replace(_PROMPT, _PROMPT.replace("assistant\n", "assistant\n<think>\n")),
        markers=_CHATML,
        stops=_CHATML_STOPS,
        says=lambda message: hermes(message).removeprefix("<think>\n"),
    ),
    Template(
        name="separator-after-stop",
        jinja=_chatml(_THINK, after="\n\n---\n\n"),
        markers=_CHATML,
        stops=_CHATML_STOPS,
        says=hermes,
    ),
    Template(
        name="orphan-tool-raises",
        jinja=_chatml(
            _THINK,
            results="{% set found = namespace(id=false) %}{% for other in messages %}"
            "{% for call in other.tool_calls or [] %}{% if call.id == m.tool_call_id %}{% set found.id = true %}"
            "{% endif %}{% endfor %}{% endfor %}"
            "{% if not found.id %}{{ raise_exception('a tool message without its call') }}{% endif %}"
            "<|im_start|>tool\n{{ m.content }}<|im_end|>\n",
        ),
        markers=_CHATML,
        stops=_CHATML_STOPS,
        says=hermes,
    ),
    Template(
        name="numbered",
        jinja="{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.index }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {{ messages|length + 1 }}\n{% endif %}",
        markers=_CHATML,
        stops=_CHATML_STOPS,
        says=hermes,
    ),
    Template(
        name="stop-is-next-role",
        jinja="[gMASK]<sop>{% if tools %}<|system|>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|observation|>{% endif %}\n<tool_response>\n"
        "{{ m.content }}\n</tool_response>{% else %}<|{{ m.role }}|>\n{{ m.content }}"
        + _CALLS
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        markers=("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
        + ("<tool_call>", "</tool_call>"),
        stops=("<|user|>", "<|observation|>", "<|endoftext|>"),
        eos="<|endoftext|>",
        says=hermes,
        call_stop="<|observation|>",
    ),
    Template(
        name="alternate-end",
        jinja="<|begin_of_text|>{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n"
        "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|eot_id|>{% endif %}"
        "{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
        "{% if m.tool_calls %}{{ m.content }}{% for call in m.tool_calls %}"
        '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% endfor %}<|eom_id|>'
        "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        markers=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        + ("<|eom_id|>",),
        stops=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        says=bare_json,
        call_stop="<|eom_id|>",
    ),
    Template(
        name="system-merged",
        jinja="<bos>{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}<|turn|>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ first if loop.first else '' }}{{ m.content | trim }}" + _CALLS + "<|end_of_turn|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>model\n{% endif %}",
        markers=("<bos>", "<|turn|>", "<|end_of_turn|>", "<|eos|>", "<tool_call>", "</tool_call>"),
        stops=("<|end_of_turn|>", "<|eos|>"),
        eos="<|eos|>",
        says=hermes,
    ),
    Template(
        name="strict-alternation",
        jinja="<s>{% set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
        "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}{% set ns = namespace(user=true) %}"
        "{% for m in rest %}{% if m.role in ('user', 'assistant') and not m.tool_calls %}"
        "{% if (m.role == 'user') != ns.user %}{{ raise_exception('roles must alternate user and assistant') }}{% endif %}"
        "{% set ns.user = not ns.user %}{% endif %}"
        "{% if m.role == 'user' %}{% if tools and loop.first %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]"
        "{% endif %}[INST]{{ system if loop.first else '' }}{{ m.content }}[/INST]"
        "{% elif m.tool_calls %}{{ m.content }}[TOOL_CALLS][{% for call in m.tool_calls %}"
        '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
        "{{ ', ' if not loop.last else '' }}{% endfor %}]</s>"
        "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
        "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
        markers=("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]")
        + ("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        stops=("</s>",),
        says=bracketed,
    ),
    Template(
        name="no-newlines",
        jinja=_LAST_QUERY + "<｜begin｜>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'tool' %}"
        "{% if messages[loop.index0 - 1].role != 'tool' %}<｜outputs｜>{% endif %}<｜output｜>{{ m.content }}<｜/output｜>"
        "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<｜/outputs｜>{% endif %}{% else %}"
        "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}" + _CALLS + "<｜end｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
        markers=_OUTPUTS + ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        stops=("<｜end｜>",),
        says=hermes,
    ),
    Template(
        name="end-differs-when-last",
        jinja="<|start|>system<|message|>Channels.{% for tool in tools or [] %}\n{{ tool | tojson }}{% endfor %}<|end|>"
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% if m.reasoning_content and loop.last %}<|start|>assistant<|channel|>analysis<|message|>"
        "{{ m.reasoning_content }}<|end|>{% endif %}<|start|>assistant"
        "{% if m.tool_calls %}{% for call in m.tool_calls %}<|channel|>commentary to=functions.{{ call.function.name }}"
        "<|message|>{{ call.function.arguments | tojson }}<|call|>{% endfor %}"
        "{% else %}<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
        "{% elif m.role == 'tool' %}<|start|>functions.{{ m.name or 'tool' }} to=assistant<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        markers=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|endoftext|>"),
        stops=("<|return|>", "<|call|>", "<|endoftext|>"),
        says=channels,
        call_stop="<|call|>",
    ),
    Template(
        name="role-tokens",
        jinja="<BOS>{% for m in messages %}<|turn_start|>{{ {'user': '<|USER|>', 'assistant': '<|CHATBOT|>'}"
        ".get(m.role, '<|SYSTEM|>') }}{% if m.role == 'tool' %}<results>\n{{ m.content }}</results>"
        "{% else %}{{ m.content }}" + _CALLS + "{% endif %}<|turn_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn_start|><|CHATBOT|>{% endif %}",
        markers=("<BOS>", "<|turn_start|>", "<|turn_end|>", "<|USER|>", "<|CHATBOT|>", "<|SYSTEM|>", "<EOS>")
        + ("<tool_call>", "</tool_call>"),
        stops=("<|turn_end|>", "<EOS>"),
        eos="<EOS>",
        says=hermes,
    ),
    Template(
        name="bos-every-turn",
        jinja="{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }}" + _CALLS + " </s>"
        "{% elif m.role == 'tool' %}<s>[TOOL] {{ m.content }} [/TOOL]"
        "{% else %}<s>[SYS] {{ m.content }} [/SYS]</s>{% endif %}{% endfor %}",
        markers=("<s>", "</s>", "<tool_call>", "</tool_call>"),
        stops=("</s>",),
        says=lambda message: f" {hermes(message)} ",
    ),
    Template(
        name="results-noted",
        jinja="{% set ns = namespace(first=true, tool=false) %}<｜begin｜>{% for m in messages %}{% if m.role == 'tool' %}"
        "{% set ns.tool = true %}{{ '<｜outputs｜>' if ns.first else '' }}{% set ns.first = false %}"
        "<｜output｜>{{ m.content }}<｜/output｜>{% elif m.role == 'assistant' and not m.tool_calls and ns.tool %}"
        "<｜/outputs｜>{{ m.content }}<｜end｜>{% set ns.tool = false %}{% elif m.role == 'assistant' %}"
        "<｜Assistant｜>{{ m.content }}" + _CALLS + "<｜end｜>{% set ns.tool = false %}"
        "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}{% set ns.tool = false %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}{{ '<｜/outputs｜>' if ns.tool }}{% if add_generation_prompt and not ns.tool %}<｜Assistant｜>{% endif %}",
        markers=_OUTPUTS + ("<tool_call>", "</tool_call>"),
        stops=("<｜end｜>",),
        says=hermes,
    ),
    Template(
        name="call-ids-shown",
        jinja="{% for tool in tools or [] %}<|im_system|>tool_declare<|im_middle|>{{ tool | tojson }}<|im_end|>{% endfor %}"
        "{% for m in messages %}<|im_{{ 'system' if m.role == 'tool' else m.role }}|>{{ m.role }}<|im_middle|>"
        "{% if m.role == 'tool' %}## Return of {{ m.tool_call_id }}\n{% endif %}{{ m.content }}"
        "{% if m.tool_calls %}<|tool_calls_section_begin|>{% for call in m.tool_calls %}<|tool_call_begin|>{{ call.id }}"
        "<|tool_call_argument_begin|>{{ call.function.arguments | tojson }}<|tool_call_end|>{% endfor %}"
        "<|tool_calls_section_end|>{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}",
        markers=("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", "[EOS]")
        + ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>")
        + ("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        stops=("<|im_end|>", "[EOS]"),
        says=sections,
    ),
]
