"""What an SGLang server does, found out by asking it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from rollout.chat.messages import user
from rollout.errors import ConfigError, RequestRefused, ServerBusy, ServerError, TransportError
from rollout.log import get_logger
from rollout.request import MessagePrompt, Reply, Sampling, TokenPrompt
from rollout.transport import ServerInfo, TransportConfig
from transports import folder
from transports.http.answers import UNREADABLE
from transports.http.client import HttpClient
from transports.logprobs import find_mode
from transports.openai import (
    PROBE_RETRIES,
    ModelCard,
    choose_model,
    list_models,
    probe_call,
    probe_request,
    read_tokens,
)
from transports.sglang.wire import (
    CHAT,
    DETOKENIZE,
    GENERATE,
    TOKENIZE,
    Ways,
    chat_body,
    generate_body,
    read_chat,
    read_generate,
    read_text,
)

SERVER_INFO = "/server_info"

#: What a pause that keeps what runs does with what was computed of it: keeps it, or computes it again.
Keep = Literal["in_place", "retract"]

HELLO = MessagePrompt(messages=[user("Hi.")])
IDS = TokenPrompt([1, 2, 1])

#: A tool that leaves out what a tool may leave out.
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "rollout_probe"}}

#: Who owns its models.
OWNER = "sglang"

#: What a request is told that biases an id which no model has: "logit_bias must has keys in [0, 2047], got -1."
_RANGE = re.compile(r"\[0, (\d{1,9})\]")

_log = get_logger(__name__)


def tokenize_body(prompt: MessagePrompt, model: str, *, add_generation_prompt: bool) -> dict[str, Any]:
    """The body of /tokenize. Without `add_generation_prompt` messages are rendered as for a chat completion."""
    body: dict[str, Any] = {"model": model, "messages": prompt.json()}
    if not add_generation_prompt:
        body["add_generation_prompt"] = False
    if prompt.tools:
        body["tools"] = list(prompt.tools)
    if prompt.template_args:
        body["chat_template_kwargs"] = dict(prompt.template_args)
    return body


def named_as_started(cards: Sequence[ModelCard], server: Mapping[str, Any]) -> list[ModelCard]:
    """The models by the names that they were started with: new weights give SGLang's model the name of their folder."""
    started, base = server.get("served_model_name"), next((card for card in cards if card.owned_by == OWNER), None)
    if not isinstance(started, str) or base is None:
        return list(cards)
    return [msgspec.structs.replace(card, id=started) if card is base else card for card in cards]


class Probe:
    """Sees what a server does."""

    def __init__(self, config: TransportConfig, client: HttpClient) -> None:
        self._config = config
        self.client = client
        self._ways = Ways()
        self._refusal: str | None = None
        """What it said to the first request that it did not answer."""

    async def run(self) -> tuple[ServerInfo, Ways]:
        """What the server is, and what requests depend on. Raises ServerError, ConfigError."""
        cards = await list_models(self.client)
        await self._must_be_ready()
        model, server = await self._said("/model_info"), await self._said(SERVER_INFO)
        card = choose_model(named_as_started(cards, server), self._config.model, self.client.base_url)
        info = ServerInfo(dialect="sglang", model=card.id, models=[card.id], owned_by=card.owned_by)
        info.max_model_len = self._ways.context = card.context
        info.version = _text(server.get("version"))
        info.tokenizer = _text(model.get("tokenizer_path")) or _text(model.get("model_path"))
        info.weight_version = _text(model.get("weight_version"))
        # An older server does not say it, but its folder does, where that is on this machine.
        size = await self._vocab_size() or await folder.vocab_size(_text(model.get("model_path")))
        info.vocab_size = self._ways.vocab_size = size
        self._ways.priority_sign = _priority_sign(server)
        hello = await self._probe_messages(info)
        info.sampling_defaults = await self._sampling_defaults(_text(model.get("model_path")), server)
        if info.sampling_defaults is not None:
            self._ways.defaults = _whole(info.sampling_defaults)
        await self._probe_ids(info)
        if info.token_routes and (self._config.routed_experts or self._config.sampling_mask):
            self._ways.experts = await folder.experts(_text(model.get("model_path")))
            await self._probe_fields(info)
        if hello is None and not info.token_routes:
            raise ServerError(f"{self.client.base_url} lists {card.id!r} but completes nothing: {self._refusal}")
        self._check_forced(info)
        info.can_tokenize = await self._can_tokenize(info, hello)
        if info.can_tokenize:
            info.tool_fields = await self._tool_fields(info)
        if hello is not None:
            body = chat_body(probe_request(HELLO), info.model, _name("mode"), self._ways)
            del body["rid"]  # it is sent twice
            info.logprobs_mode = await find_mode(self.client, CHAT, body)
        return info, self._ways

    async def _must_be_ready(self) -> None:
        """A client that was killed in the middle of an update leaves a server paused. Older servers do not say."""
        try:
            await self.client.get("/ready")
        except ServerBusy as error:
            url = self.client.base_url
            why = f"whoever paused it must resume it (POST {url}/continue_generation)"
            raise ServerError(f"{url} is paused, or has not started yet, and samples nothing: {why}") from error
        except TransportError as error:
            _log.debug("route_absent", path="/ready", error=str(error))

    async def _said(self, path: str) -> dict[str, Any]:
        """What it says of itself; nothing where it does not."""
        try:
            answer = await self.client.get(path, retries=PROBE_RETRIES)
            return msgspec.json.decode(answer.body, type=dict[str, Any])
        except (TransportError, *UNREADABLE) as error:
            _log.debug("route_absent", path=path, error=str(error))
            return {}

    async def _vocab_size(self) -> int | None:
        """No route tells it, but a refusal does. The refused request never reaches what an unknown id would kill."""
        sampling = {"max_new_tokens": 1, "logit_bias": {"-1": 0.0}}
        body = {"input_ids": list(IDS.ids), "sampling_params": sampling, "rid": _name("vocabulary")}
        try:
            await probe_call(self.client, GENERATE, body)
        except RequestRefused as error:
            if (found := _RANGE.search(str(error))) is not None:
                return int(found[1]) + 1
        except TransportError as error:
            _log.debug("vocabulary_not_told", error=str(error))
        return None

    async def _probe_messages(self, info: ServerInfo) -> Reply | None:
        reply = await self._try_messages(info)
        if reply is None and "top_k" in (self._refusal or ""):
            self._ways.chat_top_k, self._refusal = True, None
            reply = await self._try_messages(info)
        if reply is None:
            return None
        info.reports_prompt_ids = reply.prompt_ids is not None
        info.reports_completion_ids = reply.completion_ids is not None
        info.reports_cached_tokens = reply.cached_tokens is not None
        info.ids_source = "choice" if reply.completion_ids is not None else None
        return reply

    async def _try_messages(self, info: ServerInfo) -> Reply | None:
        """Not greedily: at temperature 0 the model's own `top_k` is not looked at."""
        try:
            request = probe_request(HELLO, sampling={"temperature": 1.0})
            body = chat_body(request, info.model, _name("messages"), self._ways)
            return read_chat(await probe_call(self.client, CHAT, body))
        except TransportError as error:
            _log.debug("probe_failed", path=CHAT, error=str(error))
            self._refusal = self._refusal or str(error)
            return None

    async def _probe_ids(self, info: ServerInfo) -> None:
        first = await self._try_ids()
        if first is None or not first.completion_ids:
            return
        info.token_route, info.token_routes = GENERATE, [GENERATE]
        info.reports_cached_tokens = info.reports_cached_tokens or first.cached_tokens is not None
        if first.weight_versions:
            info.reports_weight_versions, info.weight_version = True, first.weight_versions[-1].version
        stopped = await self._try_ids(stop_token_ids=first.completion_ids, max_tokens=2)
        if stopped is not None and stopped.finish_reason == "stop":
            info.keeps_stop_token = stopped.completion_ids == first.completion_ids

    async def _probe_fields(self, info: ServerInfo) -> None:
        """Only where they are wanted: an older server refuses a field that it does not know."""
        if self._config.routed_experts:
            reply = await self._try_ids(routed_experts_from=0)
            info.reports_routed_experts = reply is not None and reply.routed_experts is not None
        if self._config.sampling_mask:
            reply = await self._try_ids(sampling_mask=True, sampling={"temperature": 1.0, "top_k": 2})
            info.reports_sampling_mask = reply is not None and reply.sampling_mask is not None

    async def _try_ids(self, **changes: Any) -> Reply | None:
        try:
            request = probe_request(IDS, **changes)
            answer = await probe_call(self.client, GENERATE, generate_body(request, _name("ids"), self._ways))
            return read_generate(answer, request, self._ways)
        except TransportError as error:
            _log.debug("probe_failed", path=GENERATE, error=str(error))
            self._refusal = self._refusal or str(error)
            return None

    def _check_forced(self, info: ServerInfo) -> None:
        forced = self._config.token_route
        if forced is not None and forced not in info.token_routes:
            working = ", ".join(info.token_routes) or "none"
            raise ConfigError(f"{self.client.base_url} has no token route {forced!r}; those that work: {working}")

    async def _sampling_defaults(self, path: str | None, server: dict[str, Any]) -> Sampling | None:
        """How messages are sampled: by the model's own settings, unless the server was told to leave them."""
        if server.get("sampling_defaults") == "openai":
            return Sampling()
        config = await folder.read_json(path, "generation_config.json")
        return None if config is None else Sampling.of(config, Sampling())

    async def _can_tokenize(self, info: ServerInfo, hello: Reply | None) -> bool:
        """Whether /tokenize gives the ids of a chat prompt, and /detokenize takes ids; older ones tokenize no chat."""
        try:
            body = tokenize_body(HELLO, info.model, add_generation_prompt=True)
            ids = read_tokens(await probe_call(self.client, TOKENIZE, body), TOKENIZE)
            if hello is not None and hello.prompt_ids is not None and ids != list(hello.prompt_ids):
                return False
            await probe_call(self.client, DETOKENIZE, {"model": info.model, "tokens": list(IDS.ids)})
        except TransportError as error:
            _log.debug("route_absent", path=TOKENIZE, error=str(error))
            return False
        return True

    async def _tool_fields(self, info: ServerInfo) -> Mapping[str, Any]:
        """What it adds to a tool before the template sees it; nothing where the template does not show tools whole."""
        prompt = MessagePrompt(HELLO.messages, [TOOL])
        try:
            body = tokenize_body(prompt, info.model, add_generation_prompt=True)
            ids = read_tokens(await probe_call(self.client, TOKENIZE, body), TOKENIZE)
            asked = {"model": info.model, "tokens": ids, "skip_special_tokens": False}
            text = read_text(await probe_call(self.client, DETOKENIZE, asked))
            shown = _first_object(text, TOOL["function"]["name"])
        except (TransportError, ValueError, RecursionError) as error:
            _log.debug("tools_not_shown", error=str(error))
            return {}
        return _added(shown, TOOL)


def _first_object(text: str, name: str) -> Mapping[str, Any]:
    """The object that a text has of the tool of this name. Raises ValueError where there is none."""
    at = text.find("{", max(text.rfind("\n", 0, text.index(name)), 0))
    found = json.JSONDecoder().raw_decode(text, at)[0] if at >= 0 else None
    if not isinstance(found, dict) or not isinstance(found.get("function"), dict):
        raise ValueError("the template writes tools in a form of its own")  # as `index` above
    return found


def _added(shown: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """What one object has and the other lacks, within objects too."""
    added = {}
    for name, value in shown.items():
        if name not in sent:
            added[name] = value
        elif isinstance(value, Mapping) and isinstance(sent[name], Mapping) and (inner := _added(value, sent[name])):
            added[name] = inner
    return added


def _name(what: str) -> str:
    """A name that no other probe of this server has."""
    return f"probe-{what}~{secrets.token_hex(6)}"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _priority_sign(server: dict[str, Any]) -> int:
    """Ours is vLLM's order, in which the lowest is served first."""
    if not server.get("enable_priority_scheduling"):
        return 0
    return 1 if server.get("schedule_low_priority_values_first") else -1


def _whole(defaults: Sampling) -> dict[str, float]:
    """What changes nothing is said, too: `--preferred-sampling-params` would fill it in, for ids alone."""
    found = {name: getattr(defaults, name) for name in Sampling.__struct_fields__}
    return {name: -1 if name == "top_k" and value == 0 else value for name, value in found.items()}
