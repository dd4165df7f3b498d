"""Small writers: a call's arguments as each format documents them. The readers' tests read back what these write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Any]
Write = Callable[[str, Arguments], str]
"""(name, arguments) -> what the model samples to call."""


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _call(name: str, arguments: Arguments, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {dumps(arguments)}}}'


def bare(value: Any) -> str:
    """A value as XML formats write it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else dumps(value)


def qwen_value(value: Any) -> str:
    """As Qwen3.5's template writes it: Python's words, JSON for containers."""
    return dumps(value) if isinstance(value, list | dict) else str(value)


def gemma_value(value: Any, quote: str) -> str:
    """Gemma's notation."""
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote}{k}{quote}:{gemma_value(v, quote)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(gemma_value(each, quote) for each in value) + "]"
    return dumps(value)


def _gemma(arguments: Arguments, quote: str) -> str:
    return "{" + ",".join(f"{key}:{gemma_value(value, quote)}" for key, value in arguments.items()) + "}"


def _tags(arguments: Arguments, form: str, value: Callable[[Any], str] = bare) -> str:
    return "".join(form.format(key=key, value=value(each)) for key, each in arguments.items())


def _qwen_xml(name: str, arguments: Arguments) -> str:
    parameters = _tags(arguments, "<parameter={key}>\n{value}\n</parameter>\n", qwen_value)
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def _seed(name: str, arguments: Arguments) -> str:
    parameters = _tags(arguments, "<parameter={key}>{value}</parameter>\n")
    return f"<seed:tool_call>\n<function={name}>\n{parameters}</function>\n</seed:tool_call>"


def _glm(name: str, arguments: Arguments) -> str:
    pairs = _tags(arguments, "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n")
    return f"<tool_call>{name}\n{pairs}</tool_call>"


def _hy3(name: str, arguments: Arguments) -> str:
    key, value = (
        "<arg_key:opensource>{key}</arg_key:opensource>",
        "<arg_value:opensource>{value}</arg_value:opensource>",
    )
    pairs = _tags(arguments, f"{key}\n{value}\n")
    call = f"<tool_call:opensource>{name}<tool_sep:opensource>\n{pairs}</tool_call:opensource>"
    return f"<tool_calls:opensource>\n{call}\n</tool_calls:opensource>"


def _minimax(name: str, arguments: Arguments) -> str:
    parameters = _tags(arguments, '<parameter name="{key}">{value}</parameter>\n')
    return f'<minimax:tool_call>\n<invoke name="{name}">\n{parameters}</invoke>\n</minimax:tool_call>'


def _dsml(name: str, arguments: Arguments) -> str:
    parameters = "".join(
        f'<｜DSML｜parameter name="{key}" string="{"true" if isinstance(value, str) else "false"}">{bare(value)}'
        "</｜DSML｜parameter>\n"
        for key, value in arguments.items()
    )
    return f'<｜DSML｜tool_calls>\n<｜DSML｜invoke name="{name}">\n{parameters}</｜DSML｜invoke>\n</｜DSML｜tool_calls>'


def _python(name: str, arguments: Arguments) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _deepseek(name: str, arguments: Arguments) -> str:
    call = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{dumps(arguments)}\n```<｜tool▁call▁end｜>"
    return f"<｜tool▁calls▁begin｜>{call}<｜tool▁calls▁end｜>"


def _deepseek_31(name: str, arguments: Arguments) -> str:
    call = f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{dumps(arguments)}<｜tool▁call▁end｜>"
    return f"<｜tool▁calls▁begin｜>{call}<｜tool▁calls▁end｜>"


def _kimi(name: str, arguments: Arguments) -> str:
    call = f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{dumps(arguments)}<|tool_call_end|>"
    return f"<|tool_calls_section_begin|>{call}<|tool_calls_section_end|>"


def _cohere(name: str, arguments: Arguments) -> str:
    call = f'{{"tool_call_id": "0", "tool_name": "{name}", "parameters": {dumps(arguments)}}}'
    return f"<|START_ACTION|>[\n    {call}\n]<|END_ACTION|>"


def _atem(name: str, arguments: Arguments) -> str:
    parameters = _tags(arguments, '<atem:parameter name="{key}">{value}</atem:parameter>\n')
    invoked = f'<atem:invoke name="{name}">\n{parameters}</atem:invoke>'
    block = f"<atem:function_calls>\n{invoked}\n</atem:function_calls>"
    return f"<|start|>assistant to={name}<|message|>{block}<|eom|>"


def _inkling(name: str, arguments: Arguments) -> str:
    return f"{name}<|content_invoke_tool_json|>{_call(name, arguments, 'args')}<|end_message|>"


#: (the reader, the format's variant) -> how it is written.
WRITERS: dict[tuple[str, str], Write] = {
    ("hermes", ""): lambda n, a: f"<tool_call>\n{_call(n, a)}\n</tool_call>",
    ("qwen-xml", ""): _qwen_xml,
    ("seed", ""): _seed,
    ("glm", ""): _glm,
    ("hy3", ""): _hy3,
    ("minimax", ""): _minimax,
    ("minimax-m1", ""): lambda n, a: f"<tool_calls>\n{_call(n, a)}\n</tool_calls>",
    ("hunyuan", ""): lambda n, a: f"<tool_calls>[{_call(n, a)}]</tool_calls>",
    ("dsml", ""): _dsml,
    ("deepseek", "V3"): _deepseek,
    ("deepseek", "V3.1"): _deepseek_31,
    ("kimi", ""): _kimi,
    ("mistral", "v3"): lambda n, a: f'[TOOL_CALLS][{{"name": "{n}", "arguments": {dumps(a)}, "id": "abcdefghi"}}]',
    ("mistral", "v11"): lambda n, a: f"[TOOL_CALLS]{n}[CALL_ID]abcdefghi[ARGS]{dumps(a)}",
    ("mistral", "v13"): lambda n, a: f"[TOOL_CALLS]{n}[ARGS]{dumps(a)}",
    ("llama", ""): lambda n, a: _call(n, a, "parameters"),
    ("llama", "tag"): lambda n, a: f"<|python_tag|>{_call(n, a, 'parameters')}",
    ("llama", "type"): lambda n, a: f'{{"type": "function", "name": "{n}", "parameters": {dumps(a)}}}',
    ("llama4", ""): lambda n, a: f"[{_python(n, a)}]",
    ("llama4", "tags"): lambda n, a: f"<|python_start|>[{_python(n, a)}]<|python_end|>",
    ("llama4", "JSON"): lambda n, a: _call(n, a, "parameters"),
    ("lfm2", ""): lambda n, a: f"<|tool_call_start|>[{_python(n, a)}]<|tool_call_end|>",
    ("lfm2", "JSON"): lambda n, a: f"<|tool_call_start|>[{_call(n, a)}]<|tool_call_end|>",
    ("olmo", ""): lambda n, a: f"<function_calls>\n{_python(n, a)}\n</function_calls>",
    ("gemma", "fence"): lambda n, a: f"```tool_code\nprint({_python(n, a)})\n```",
    ("gemma", "list"): lambda n, a: f"[{_python(n, a)}]",
    ("gemma", "JSON"): lambda n, a: _call(n, a, "parameters"),
    ("gemma4", ""): lambda n, a: "<|tool_call>call:" + n + _gemma(a, '<|"|>') + "<tool_call|>",
    ("functiongemma", ""): lambda n, a: f"<start_function_call>call:{n}{_gemma(a, '<escape>')}<end_function_call>",
    ("granite", "3.0"): lambda n, a: f"<|tool_call|>[{_call(n, a)}]",
    ("granite", "3.1"): lambda n, a: f"<tool_call>[{_call(n, a)}]",
    ("phi", ""): lambda n, a: f"<|tool_call|>[{_call(n, a)}]<|/tool_call|>",
    ("phi", "functools"): lambda n, a: f"functools[{_call(n, a)}]",
    ("nemotron", ""): lambda n, a: f"<TOOLCALL>[{_call(n, a)}]</TOOLCALL>",
    ("xlam", ""): lambda n, a: f"[{_call(n, a)}]",
    ("xlam", "v1"): lambda n, a: f'{{"tool_calls": [{_call(n, a)}]}}',
    ("cohere", ""): _cohere,
    ("harmony", ""): lambda n, a: (
        f"<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{dumps(a)}<|call|>"
    ),
    ("harmony", "recipient first"): lambda n, a: (
        f" to=functions.{n}<|channel|>commentary json<|message|>{dumps(a)}<|call|>"
    ),
    ("inkling", ""): _inkling,
    ("atem", ""): _atem,
}
