"""What SGLang's routes take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from transports.embedded.wire import SamplingBody

#: What SGLang's own record of a tool's function has, whatever was sent, and what it takes beside; the rest is dropped.
_FUNCTION = ("description", "name", "parameters")
_OF_FUNCTION = {*_FUNCTION, "strict", "defer_loading"}


class NativeSamplingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params`, which are refused for a name that is none."""

    max_new_tokens: int | None = 128
    min_new_tokens: int | None = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    sampling_seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    no_stop_trim: bool | None = False
    logit_bias: dict[str, float] | None = None
    n: int | None = None


class GenerateBody(msgspec.Struct, kw_only=True):
    input_ids: list[int]
    image_data: Any = None
    sampling_params: NativeSamplingBody = msgspec.field(default_factory=NativeSamplingBody)
    return_logprob: bool = False
    top_logprobs_num: int = 0
    return_prompt_token_ids: bool = False
    stream: bool = False
    rid: str | None = None
    session_id: str | None = None
    cache_salt: str | None = None
    priority: int | None = None


class ChatBody(SamplingBody, kw_only=True):
    messages: list[dict[str, Any]]
    model: str | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_ids: bool = False
    return_prompt_token_ids: bool = False
    return_meta_info: bool = False
    stream: bool = False
    rid: str | None = None
    session_id: str | None = None
    cache_salt: str | None = None
    priority: int | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None
    skip_special_tokens: bool = True


class AbortBody(msgspec.Struct, kw_only=True):
    rid: str = ""
    abort_all: bool = False


class PauseBody(msgspec.Struct, kw_only=True):
    mode: Literal["abort", "in_place", "retract"] = "abort"


class FromDiskBody(msgspec.Struct, kw_only=True):
    model_path: str
    weight_version: str | None = None
    flush_cache: bool = True


class NewVersionBody(msgspec.Struct, kw_only=True):
    new_version: str
    abort_all_requests: bool = True


def tool_record(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as SGLang shows it to the template: its own record of it, with every field, those that were sent first."""
    sent = {name: value for name, value in (tool.get("function") or {}).items() if name in _OF_FUNCTION}
    function = {**sent, **{name: None for name in _FUNCTION if name not in sent}}
    return {"type": tool.get("type", "function"), "function": function, "defer_loading": tool.get("defer_loading")}
