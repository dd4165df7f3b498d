"""What vLLM's routes take."""

from __future__ import annotations

from typing import Any

import msgspec

from transports.embedded.wire import SamplingBody


class CommonBody(SamplingBody, kw_only=True):
    model: str | None = None
    stream: bool | None = False
    cache_salt: str | None = None
    priority: int = 0
    request_id: str | None = None


class ChatBody(CommonBody, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    stream_options: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True


class CompletionBody(CommonBody, kw_only=True):
    prompt: str | list[int]
    max_tokens: int | None = 16
    stream_options: dict[str, Any] | None = None
    logprobs: int | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False


class GenerateSampling(SamplingBody, kw_only=True):
    logprobs: int | None = None


class GenerateBody(msgspec.Struct, kw_only=True):
    token_ids: list[int]
    content_parts: list[Any] | None = None
    sampling_params: GenerateSampling
    model: str | None = None
    stream: bool | None = False
    cache_salt: str | None = None
    priority: int = 0
    request_id: str | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = False


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


class AbortBody(msgspec.Struct, kw_only=True):
    request_ids: list[str]


class RpcBody(msgspec.Struct, kw_only=True):
    method: str
    kwargs: dict[str, Any] = {}


class NewVersionBody(msgspec.Struct, kw_only=True):
    new_version: str
