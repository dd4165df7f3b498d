"""Settings -> a transport and a codec: what an engine and a probe open before anything is played."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from rollout.address import shown_url
from rollout.checks import choice
from rollout.codec.compare import compare
from rollout.codec.local import load_codec
from rollout.codec.protocol import Codec
from rollout.codec.readers import named_reader, reader_names
from rollout.codec.server import ServerCodec
from rollout.config import EngineConfig
from rollout.errors import ConfigError
from rollout.log import get_logger
from rollout.moved import forward_names
from rollout.registry import find_transport
from rollout.servers.fleet import Fleet
from rollout.servers.server import Server
from rollout.servers.weights import Weights
from rollout.transport import ServerInfo, Transport, TransportConfig, opened

#: How long a run waits for a server that it has lost, where nothing is said.
DEFAULT_WAIT_S = 300.0

_log = get_logger(__name__)


class TokenizerDiffers(ConfigError):
    """The tokenizer here is not the one that the server has."""


async def open_fleet(config: EngineConfig, given: Transport | None = None, weights: Weights | None = None) -> Fleet:
    """The servers that a configuration names, or that a given transport is. Raises ConfigError, ServerError."""
    if isinstance(given, Fleet):
        fleet = given
    else:
        lost_s = DEFAULT_WAIT_S if config.server_wait_s is None else config.server_wait_s
        fleet = Fleet(_servers(config, given), wait_s=lost_s, start_wait_s=config.server_wait_s)
    fleet.weights = weights or fleet.weights
    fleet.request_timeout_s = config.request_timeout_s
    await opened(fleet)
    return fleet


def _servers(config: EngineConfig, given: Transport | None) -> list[Server]:
    if given is not None:
        return [Server(type(given).__name__, given)]
    name = "embedded" if config.transport == "auto" and not config.base_urls else config.transport
    try:
        open_it = find_transport(name)
    except ConfigError as error:
        raise (
            ConfigError(f"{error}; or name a server by base_url") if name == "embedded" else error
        ) from error.__cause__
    if not config.base_urls:
        return [Server(name, partial(open_it, transport_config(config, None)))]
    return [Server(shown_url(url), partial(open_it, transport_config(config, url))) for url in config.base_urls]


def transport_config(config: EngineConfig, url: str | None) -> TransportConfig:
    """What one server's transport is opened with. Raises ConfigError."""
    return TransportConfig(
        base_url=url,
        model=config.model,
        api_key=api_key(config.api_key_env),
        timeout_s=None,  # it stands still while we paused the server: `rollout.servers.fleet` has it
        retries=config.http_retries,
        # A rollout may have several requests in flight, and none is to wait for a connection.
        max_connections=max(256, 2 * config.most_at_once),
        weights_timeout_s=config.weights_timeout_s,
        token_route=config.token_route,
        headers=config.headers,
        routed_experts=config.routed_experts,
        sampling_mask=config.sampling_mask,
    )


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable. Raises ConfigError where it was named and is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"environment variable {variable} is not set; it was to hold the API key")
    return key


async def make_codec(config: EngineConfig, transport: Transport, info: ServerInfo) -> Codec | None:
    """The codec for a served model.

    Raises ConfigError where the tokenizer that the user named cannot be used, and under `require_reader` where nothing
    here reads the model's calls.
    """
    choice("reader", config.reader, reader_names())
    codec = await _make_codec(config, transport, info)
    if isinstance(codec, ServerCodec):
        await codec.find_reader(info.tokenizer, info.model)
    reader = codec.reader if codec is not None else None
    if config.require_reader and reader is None:
        why = "how it writes calls is not known" if codec is not None else "without a tokenizer only the server can"
        raise ConfigError(
            f"nothing here reads the tool calls of {info.model!r}: {why}; name its reader by --reader "
            f"({', '.join(reader_names())}), or drop --require-reader"
        )
    if codec is not None:
        _log.info("codec", model=info.model, bridges=codec.description, reader=reader.name if reader else None)
    return codec


async def _make_codec(config: EngineConfig, transport: Transport, info: ServerInfo) -> Codec | None:
    if config.renderer != "server":
        names = [config.tokenizer] if config.tokenizer else _tokenizer_guesses(info)
        for name in names:
            try:
                codec = await anyio.to_thread.run_sync(
                    lambda name=name: load_codec(  # type: ignore[misc]  # mypy infers no type for a default
                        name,
                        renderer=config.renderer,
                        thinking_retention=config.thinking_retention,
                        literal=config.special_tokens_in_text == "text",
                        reader=config.reader,
                    )
                )
                codec.tool_fields = info.tool_fields
                await _check_tokenizer(name, codec, config, transport, info)
                return codec
            except ConfigError as error:
                if config.tokenizer or config.renderer != "auto":
                    raise
                if isinstance(error, TokenizerDiffers):
                    _log.warning("tokenizer_not_used", name=name, reason=str(error))
    if info.can_tokenize:
        return ServerCodec(transport, named_reader(config.reader) if config.reader != "auto" else None)
    _log.warning("no_tokenizer", hint="every turn goes message-in; name the model's tokenizer by --tokenizer")
    return None


async def _check_tokenizer(
    name: str, codec: Codec, config: EngineConfig, transport: Transport, info: ServerInfo
) -> None:
    """Raises ConfigError where a tokenizer is not the server's. Another template is only said: ids mean the same."""
    if config.mode == "mito":
        return
    found = await compare(codec, transport, info, config.template_args)
    if found is None:
        return
    if found.of == "tokenizer":
        raise TokenizerDiffers(
            f"tokenizer {name!r} is not the server's: {found.detail}; name the model's own by --tokenizer, "
            "or leave it to the server by --renderer server"
        )
    _log.warning("template_differs", tokenizer=name, detail=found.detail, hint="rollout probe compares more of them")


def _tokenizer_guesses(info: ServerInfo) -> list[str]:
    """Names to try, the server's own word first. A bare served name is no hub name, so it is not looked up."""
    named = [name for name in (info.tokenizer, info.model) if name]
    return list(dict.fromkeys(name for name in named if Path(name).is_dir() or "/" in name))


forward_names("rollout.play.connect")
