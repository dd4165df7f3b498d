"""`rollout probe`: what a server can do, and whether the local chat template agrees with its own."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollout.codec import Codec, make_context
from rollout.config import EngineConfig
from rollout.engine import check_config, make_codec, open_transport
from rollout.errors import TransportError
from rollout.messages import Message
from rollout.transport import MessagePrompt, Request, ServerInfo, Transport

TOOLS: list[Mapping[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
            },
        },
    }
]

#: A small conversation with a tool call and its result.
CONVERSATION = [
    Message("system", "You add numbers."),
    Message("user", "What is 1 + 2?"),
    Message.of(
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "call00000", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}, "type": "function"}
            ],
        }
    ),
    Message("tool", "3", tool_call_id="call00000", name="add"),
]


class TemplateCheck(msgspec.Struct, kw_only=True):
    """Whether the local template renders a conversation as the server does."""

    agrees: bool | None = None
    """None where it could not be compared; `detail` says why."""
    detail: str = ""


class Probe(msgspec.Struct, kw_only=True):
    """What a probe saw."""

    url: str
    server: ServerInfo
    bridges: str | None
    """The bridges that would be used; None where every turn would go message-in."""
    template: TemplateCheck
    command: str
    """The command line to use."""


async def probe(config: EngineConfig) -> Probe:
    """Asks a server. Raises ServerError, ConfigError."""
    check_config(config)
    transport = open_transport(config)
    try:
        info = await transport.connect()
        codec = await make_codec(config, transport, info)
        template = await compare_templates(transport, info, codec)
    finally:
        await transport.aclose()
    return Probe(
        url=config.base_url or "in process",
        server=info,
        bridges=codec.description if codec is not None else None,
        template=template,
        command=command_line(config, info, codec),
    )


async def compare_templates(transport: Transport, info: ServerInfo, codec: Codec | None) -> TemplateCheck:
    """Renders a conversation with tools here and on the server."""
    if codec is None:
        return TemplateCheck(detail="no local tokenizer: name one by --tokenizer")
    try:
        theirs = await _server_ids(transport, info)
    except TransportError as error:
        return TemplateCheck(detail=f"the server did not render it: {error}")
    if theirs is None:
        return TemplateCheck(detail="the server does not report prompt ids")
    ours = await codec.render(CONVERSATION, make_context(TOOLS, {}))
    if ours == theirs:
        return TemplateCheck(agrees=True, detail=f"{len(ours)} ids are equal")
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = f"here {ours[max(0, at - 2) : at + 4]}, there {theirs[max(0, at - 2) : at + 4]}"
    return TemplateCheck(agrees=False, detail=f"they differ from id {at} on: {shown}")


async def _server_ids(transport: Transport, info: ServerInfo) -> Sequence[int] | None:
    prompt = MessagePrompt(messages=CONVERSATION, tools=TOOLS)
    if info.can_tokenize:
        return await transport.tokenize(prompt, add_generation_prompt=True)
    reply = await transport.generate(
        Request(prompt=prompt, request_id="probe", session_id="probe", max_tokens=1, echo_prompt=True)
    )
    return reply.prompt_ids


def command_line(config: EngineConfig, info: ServerInfo, codec: Codec | None) -> str:
    """What to run against this server."""
    words = ["rollout", "run", "guess_number"]
    if config.base_url is not None:
        words += ["--base-url", config.base_url, "-m", info.model]
    if config.tokenizer:
        words += ["--tokenizer", config.tokenizer]
    if codec is None:
        words += ["--tokenizer", "NAME_OR_DIR"]
    if info.max_model_len is None:
        words += ["--max-model-len", "TOKENS"]
    return shlex.join(words)


def rows(found: Probe) -> list[tuple[str, str]]:
    """The probe for people."""
    info = found.server
    routes = ", ".join(info.token_routes) or "none: every turn would go message-in"
    return [
        ("dialect", f"{info.dialect} {info.version or ''}".strip()),
        ("models", ", ".join(info.models)),
        ("context", f"{info.max_model_len} tokens" if info.max_model_len else "not said: give --max-model-len"),
        ("token-in", routes),
        ("ids", f"from {info.ids_source}" if info.ids_source else "not reported on message-in"),
        ("prompt ids", _yes(info.reports_prompt_ids)),
        (
            "stop token",
            {True: "kept in the ids", False: "not in the ids", None: "could not tell"}[info.keeps_stop_token],
        ),
        ("cached tokens", "reported" if info.reports_cached_tokens else "not reported"),
        ("weight versions", "reported" if info.reports_weight_versions else "not reported"),
        ("/tokenize", _yes(info.can_tokenize)),
        ("bridges", found.bridges or "none: name the tokenizer by --tokenizer"),
        ("chat template", f"{_AGREES[found.template.agrees]}   {found.template.detail}"),
        ("use", found.command),
    ]


_AGREES = {True: "agrees with the server's", False: "DIFFERS from the server's", None: "not compared"}


def _yes(value: bool) -> str:
    return "yes" if value else "no"
