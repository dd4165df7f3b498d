"""Carries prompts to vLLM: finds its routes by asking, and takes the best.

`vllm_wire` has what goes over the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from rollout.chat.messages import Message, user
from rollout.errors import ConfigError, RequestRefused, ServerError, TransportError
from rollout.log import get_logger
from rollout.request import MessagePrompt, Reply, Request, Sampling, TokenPrompt
from rollout.transport import InFlight, ServerInfo, TransportConfig
from transports import folder
from transports.fields import tell_unreported
from transports.http.answers import UNREADABLE
from transports.http.client import Answer, HttpClient, decode
from transports.logprobs import ALTERNATIVES, find_mode
from transports.openai import (
    PROBE_RETRIES,
    ServedTransport,
    choose_model,
    choose_route,
    list_models,
    opening,
    probe_call,
    probe_image,
    probe_request,
    read_tokens,
)
from transports.vllm.wire import (
    CHAT,
    GENERATE,
    RENDER,
    TOKEN_ROUTES,
    Detokenized,
    Rendered,
    TokenRoute,
    chat_body,
    generate_body,
    image_spans,
    read_chat,
    read_generate,
    render_body,
)

_RENDERED = msgspec.json.Decoder(Rendered)
_DETOKENIZED = msgspec.json.Decoder(Detokenized)

#: Seconds for what a server does at once, such as a pause that waits for nothing.
CONTROL_S = 30.0
CONTROL_RETRIES = 2

#: Seconds for ids of a text, retries included, behind the work of a busy server.
TOKENIZE_S = 60.0

#: The second needs VLLM_SERVER_DEV_MODE=1, the first --enable-scale-out.
ABORT_ROUTES = ("/inference/v1/abort_requests", "/abort_requests")

#: What vLLM 0.32 calls a request of each route, as its source says; tests/live aborts one of the generate route.
_NAMED = ("{}", "generate-tokens-{}", "cmpl-{}-0", "cmpl-{}", "chatcmpl-{}")


#: What vLLM started with --return-sampling-mask says to a request at temperature 0, or without a top_k.
_MASKS_ONLY = "sampling distribution replay"

#: The likeliest token, as such a server has it.
_FIRST_OF_ONE = {"temperature": 1.0, "top_k": 1}


class _Paths(msgspec.Struct):
    """A part of /openapi.json."""

    paths: dict[str, Any] = {}


_OPENAPI = msgspec.json.Decoder(_Paths)

_log = get_logger(__name__)


class VllmTransport(ServedTransport):
    """Carries prompts to a vLLM server."""

    def __init__(self, client: HttpClient, info: ServerInfo, *, weights_timeout_s: float = 600.0) -> None:
        super().__init__(client, info, weights_timeout_s=weights_timeout_s)
        self._route = next((route for route in TOKEN_ROUTES if route.path == info.token_route), None)
        # The generate route leaves out the server's defaults, which turn 1 was sampled with: they are sent.
        defaults = info.sampling_defaults if info.token_route == GENERATE else None
        self._defaults = defaults.given if defaults is not None else {}

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`."""
        info = self.info
        headers = {"x-request-id": request.request_id, "x-session-id": request.session_id, **request.trace}
        if isinstance(request.prompt, MessagePrompt):
            body = chat_body(request, info.model)
            reply = await self._read(read_chat, await self.client.post(CHAT, body, headers=headers), request)
            if info.image_token is not None and request.prompt.has_media:
                reply = await self._with_image_spans(reply, body)
            return reply
        if self._route is None:
            raise ConfigError(f"{self.client.base_url} has no token-in route")
        if self._defaults:
            given = {name: value for name, value in request.sampling.items() if value is not None}
            request = msgspec.structs.replace(request, sampling={**self._defaults, **given})
        body = self._route.body(request, info.model)
        return await self._read(
            self._route.read, await self.client.post(self._route.path, body, headers=headers), request
        )

    async def _with_image_spans(self, reply: Reply, body: dict[str, Any]) -> Reply:
        """Chat completions do not say where the images stand; how messages are rendered says it, of the same ids."""
        try:
            rendered: Rendered = decode(_RENDERED, await self._asked(RENDER, render_body(body)), RENDER)
        except TransportError as error:
            _log.warning("images_not_placed", path=RENDER, error=str(error))
            return reply
        if rendered.features is None or rendered.token_ids != reply.prompt_ids:
            return reply
        return msgspec.structs.replace(reply, image_spans=image_spans(rendered.features.mm_placeholders))

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """See `rollout.transport.Transport`."""
        body: dict[str, Any] = {
            "model": self.info.model,
            "messages": prompt.json(),
            "add_generation_prompt": add_generation_prompt,
        }
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        if prompt.template_args:
            body["chat_template_kwargs"] = dict(prompt.template_args)
        return read_tokens(await self._asked("/tokenize", body), "/tokenize")

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `rollout.transport.Transport`."""
        answer = await self._asked("/detokenize", {"model": self.info.model, "tokens": list(ids)})
        text: str = decode(_DETOKENIZED, answer, "/detokenize").prompt
        return text

    async def _asked(self, path: str, body: dict[str, Any]) -> Answer:
        """What needs no decoding is answered soon, also by a server that is paused."""
        return await self.client.post(path, body, timeout_s=TOKENIZE_S)

    async def pause(self, mode: InFlight = "keep") -> None:
        """Stops decoding: `keep` freezes what runs, `wait` lets it end, `abort` ends it.

        This and the next two need a server started with VLLM_SERVER_DEV_MODE=1.
        """
        await self._control(f"/pause?mode={mode}", {}, self._weights_timeout_s if mode == "wait" else CONTROL_S)

    async def resume(self) -> None:
        """Goes on after `pause`."""
        await self._control("/resume", {})

    async def update_weights(self, version: str, path: str | None) -> None:
        """Loads the weights of a folder that the server can read, and names their version.

        A load whose answer was lost is asked for again: it may have been done, and may be done twice.
        """
        if path is not None:
            body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
            await self._control("/collective_rpc", body, self._weights_timeout_s)
        await self._control("/update_weight_version", {"new_version": version})

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `rollout.transport.Transport`. Does nothing where the server has no such route."""
        if not request_ids:
            return  # an empty list means all of them to some servers
        # vLLM names a request by its route and our id; names that it does not know are passed over.
        names = [form.format(one) for one in request_ids for form in _NAMED]
        for path in ABORT_ROUTES:
            try:
                await self.client.tell(path, {"request_ids": names}, timeout_s=CONTROL_S, retries=CONTROL_RETRIES)
                return
            except RequestRefused as error:
                _log.debug("abort_refused", path=path, error=str(error))

    async def _control(
        self, path: str, body: dict[str, Any], timeout_s: float = CONTROL_S, *, retries: int = CONTROL_RETRIES
    ) -> None:
        """Raises ConfigError where the server has no such route, and TransportError."""
        try:
            await self.client.tell(path, body, timeout_s=timeout_s, retries=retries)
        except RequestRefused as error:
            if error.status not in (404, 405):
                raise
            raise ConfigError(
                f"{self.client.base_url} has no {path.partition('?')[0]}: start vLLM with VLLM_SERVER_DEV_MODE=1"
            ) from error


class _Probe:
    """Sees what a server does."""

    def __init__(self, config: TransportConfig, client: HttpClient) -> None:
        self._config = config
        self.client = client
        self._completes = False
        """Whether it answers messages."""
        self._refusal: str | None = None
        """Why not."""
        self._masks = False
        """Whether it refuses what it could report no sampling mask of."""

    async def run(self) -> ServerInfo:
        """Raises ServerError, ConfigError."""
        card = choose_model(await list_models(self.client), self._config.model, self.client.base_url)
        if await self._is_paused():
            url = self.client.base_url
            raise ServerError(
                f"{url} is paused and samples nothing: whoever paused it must resume it (POST {url}/resume)"
            )
        info = ServerInfo(dialect="vllm", model=card.id, models=[card.id], max_model_len=card.max_model_len)
        info.tokenizer, info.owned_by = card.root, card.owned_by
        info.vocab_size = await folder.vocab_size(card.root)
        info.version = await self._version()
        paths = await self._paths()
        info.can_tokenize = {"/tokenize", "/detokenize"} <= paths
        await self._probe_messages(info)
        for route in TOKEN_ROUTES:
            if (not paths or route.path in paths) and await self._probe_route(route, info):
                info.token_routes.append(route.path)
        if not self._completes and not info.token_routes:
            raise ServerError(f"{self.client.base_url} lists {card.id!r} but completes nothing: {self._refusal}")
        info.token_route = choose_route(info, self._config.token_route, self.client.base_url)
        if info.token_route != GENERATE:
            info.reports_sampling_mask = info.masks_by_ids_only = False
        if self._completes:
            prompt = self._request(MessagePrompt(messages=[user("Hi.")]))
            body = chat_body(prompt, info.model)
            if self._masks:
                body["top_k"] = ALTERNATIVES  # it refuses none, and says of what is filtered that it cannot be
            info.logprobs_mode = await find_mode(self.client, CHAT, body)
        info.sampling_defaults = await self._sampling_defaults(info, paths)
        if info.token_route == GENERATE and RENDER in paths and self._completes:
            info.image_token = await self._image_token(info)
        return info

    async def _image_token(self, info: ServerInfo) -> int | None:
        """What stands for an image in ids: the first id of what the server makes of one, if it makes the same of that.

        An older server passes over what it does not know, and reads a prompt without its images: so it is asked what
        it read.
        """
        shown = Message("user", ({"type": "image_url", "image_url": {"url": probe_image()}},))
        try:
            body = render_body(chat_body(probe_request(MessagePrompt(messages=[shown])), info.model))
            rendered: Rendered = decode(_RENDERED, await probe_call(self.client, RENDER, body), RENDER)
            spans = image_spans(rendered.features.mm_placeholders) if rendered.features is not None else None
            if not spans or len(spans) != 1:
                return None
            ((start, length),) = spans
            ids = rendered.token_ids
            prompt = TokenPrompt([*ids[: start + 1], *ids[start + length :]], (probe_image(),))
            answer = await probe_call(self.client, GENERATE, generate_body(probe_request(prompt), info.model))
            reply = read_generate(answer)
        except TransportError as error:
            _log.debug("no_images", path=GENERATE, error=str(error))
            return None
        return ids[start] if (reply.prompt_ids, reply.image_spans) == (ids, spans) else None

    async def _sampling_defaults(self, info: ServerInfo, paths: frozenset[str]) -> Sampling | None:
        """How it samples by itself: by its own word, else by the model's folder, which it reads by default."""
        if RENDER in paths:
            body = {"model": info.model, "messages": [user("Hi.").as_openai()], "max_tokens": 1}
            try:
                rendered: Rendered = decode(_RENDERED, await probe_call(self.client, RENDER, body), RENDER)
                return Sampling.of(rendered.sampling_params, Sampling())
            except TransportError as error:
                _log.debug("route_absent", path=RENDER, error=str(error))
        config = await folder.read_json(info.tokenizer, "generation_config.json")
        return None if config is None else Sampling.of(config, Sampling())

    async def _version(self) -> str | None:
        try:
            answer = await self.client.get("/version", retries=PROBE_RETRIES)
            version = msgspec.json.decode(answer.body, type=dict[str, Any]).get("version")
        except (TransportError, *UNREADABLE):
            return None
        return str(version) if version else None

    async def _is_paused(self) -> bool:
        """A client that was killed in the middle of an update leaves a server so."""
        try:
            answer = await self.client.get("/is_paused")
            return msgspec.json.decode(answer.body, type=dict[str, Any]).get("is_paused") is True
        except (TransportError, *UNREADABLE):
            return False

    async def _paths(self) -> frozenset[str]:
        """The server's routes; empty where it does not list them."""
        try:
            answer = await self.client.get("/openapi.json", retries=PROBE_RETRIES)
            return frozenset(decode(_OPENAPI, answer, "/openapi.json").paths)
        except TransportError:
            return frozenset()

    async def _probe_messages(self, info: ServerInfo) -> None:
        prompt = MessagePrompt(messages=[user("Hi.")])
        try:
            request = self._request(prompt)
            reply = read_chat(await probe_call(self.client, CHAT, chat_body(request, info.model)), request)
        except TransportError as error:
            if _MASKS_ONLY in str(error) and not self._masks:
                self._masks = True
                await self._probe_messages(info)
                return
            _log.warning("probe_failed", path=CHAT, error=str(error))
            self._refusal = self._refusal or str(error)
            return
        self._completes = True
        info.reports_prompt_ids = reply.prompt_ids is not None
        info.reports_completion_ids = reply.completion_ids is not None
        info.reports_cached_tokens = reply.cached_tokens is not None
        info.ids_source = "choice" if reply.completion_ids is not None else None
        info.reports_routed_experts = reply.routed_experts is not None

    async def _probe_route(self, route: TokenRoute, info: ServerInfo) -> bool:
        prompt = TokenPrompt([1, 2, 1])
        try:
            reply = await self._call(route, self._request(prompt), info.model)
            if info.keeps_stop_token is None and reply.completion_ids:
                info.keeps_stop_token = await self._keeps_stop(route, prompt, reply.completion_ids[0], info.model)
        except TransportError as error:
            # Newer servers list the generate route but answer 403 unless it is enabled.
            _log.debug("route_absent", path=route.path, error=str(error))
            return False
        if reply.weight_versions:
            info.reports_weight_versions, info.weight_version = True, reply.weight_versions[-1].version
        info.reports_cached_tokens = info.reports_cached_tokens or reply.cached_tokens is not None
        info.reports_routed_experts = info.reports_routed_experts or reply.routed_experts is not None
        if reply.sampling_mask is not None:
            info.reports_sampling_mask = info.masks_by_ids_only = True
        return reply.completion_ids is not None

    async def _keeps_stop(self, route: TokenRoute, prompt: TokenPrompt, token: int, model: str) -> bool:
        """Whether a stop token is among the ids: the greedy token is asked for again, as a stop token."""
        reply = await self._call(route, self._request(prompt, stop_token_ids=[token], max_tokens=2), model)
        return reply.completion_ids == [token]

    async def _call(self, route: TokenRoute, request: Request, model: str) -> Reply:
        return route.read(await probe_call(self.client, route.path, route.body(request, model)), request)

    def _request(self, prompt: TokenPrompt | MessagePrompt, **changes: Any) -> Request:
        """A tiny request of the likeliest token, which asks for all that a server may report."""
        sampling = _FIRST_OF_ONE if self._masks else {"temperature": 0}
        return probe_request(prompt, sampling=sampling, routed_experts_from=0, sampling_mask=True, **changes)


async def open(config: TransportConfig, client: HttpClient | None = None) -> VllmTransport:
    """Entry point `vllm`. See `rollout.transport.Open`. `client` takes the place of one of its own."""
    async with opening(config, client) as client:
        info = await _Probe(config, client).run()
        tell_unreported(
            config,
            info,
            routed_experts="start vLLM with --enable-return-routed-experts, on a mixture of experts",
            sampling_mask="start vLLM with --return-sampling-mask --logprobs-mode processed_logprobs",
        )
        return VllmTransport(client, info, weights_timeout_s=config.weights_timeout_s)
