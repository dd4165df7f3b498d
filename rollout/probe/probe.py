"""`rollout probe`: what a server can do, whether prompts made here are the server's, and the flags to use."""

from __future__ import annotations

import shlex

import msgspec

from rollout.address import shown_url
from rollout.chat.messages import user
from rollout.codec.protocol import Codec
from rollout.config import EngineConfig, check_config
from rollout.errors import TransportError
from rollout.play.connect import make_codec, open_fleet
from rollout.play.logprobs import REMEDIES, doubt, told
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.probe.shapes import SPECIAL_TEXT, ShapeCheck, check_shapes, verdict
from rollout.tokens.verify import InvariantBroken
from rollout.transport import ServerInfo, Transport


class Probe(msgspec.Struct, kw_only=True):
    """What a probe saw."""

    url: str
    server: ServerInfo
    bridges: str | None
    """The bridges that would be used; None where every turn would go message-in."""
    reader: str | None
    """What would read the model's tool calls; None where nothing here does."""
    shapes: list[ShapeCheck]
    """What was compared with the server's own prompts; none without a tokenizer here or there."""
    verdict: list[str]
    """The findings in plain sentences."""
    live: str
    """What two real turns did."""
    advice: list[str]
    """What to change, where something is not token-exact."""
    command: str
    """The command line to use."""

    @property
    def token_exact(self) -> bool | None:
        """Whether prompts made here are the server's; None where nothing could be compared."""
        found = [check.exact for check in self.shapes if check.shape != SPECIAL_TEXT and check.exact is not None]
        return all(found) if found else None


async def probe(config: EngineConfig) -> Probe:
    """Asks a server. Raises ServerError, ConfigError."""
    check_config(config)
    transport = await open_fleet(config)
    info = transport.info
    try:
        codec = await make_codec(config, transport, info)
        shapes = await check_shapes(transport, info, codec, config.template_args) if codec is not None else []
        live = await _play(transport, info, codec, config)
    finally:
        await transport.aclose()
    found = Probe(
        url=", ".join(map(shown_url, config.base_urls)) or "in process",
        server=info,
        bridges=codec.description if codec is not None else None,
        reader=codec.reader.name if codec is not None and codec.reader is not None else None,
        shapes=shapes,
        verdict=verdict(shapes),
        live=live,
        advice=[],
        command="",
    )
    flags, found.advice = _advice(config, info, codec, found)
    if (doubts := doubt(info, config)) is not None and doubts.event != "sampling_unknown":
        found.advice.append(f"{doubts.why}: {doubts.remedy}")
    found.command = shlex.join(command_line(config, info, codec) + flags)
    return found


async def _play(transport: Transport, info: ServerInfo, codec: Codec | None, config: EngineConfig) -> str:
    """Plays two turns, verified token for token."""
    # Greedy, so that the same server is told the same of twice.
    settings = msgspec.structs.replace(config, verify=True, max_tokens=16, sampling={"temperature": 0.0})
    session = Session(ServedModel(transport=transport, info=info, codec=codec, config=settings), "probe-live")
    conversation = [user("Hello. Who are you?")]
    try:
        for text in ("And then?", ""):
            conversation += [await session.turn(conversation), user(text)]
    except (TransportError, InvariantBroken) as error:
        return f"turn {len(session.turns) + 1} failed: {error}"
    turn = session.turns[1]
    route = f"token-in by the {turn.bridge} bridge" if turn.fallback is None else f"message-in ({turn.fallback.value})"
    prefix = {False: "its prompt starts with turn 1's ids", True: "its prompt BREAKS turn 1's ids"}
    held = "its prompt is not reported" if turn.prefix_break is None else prefix[turn.prefix_break]
    cached = f", {turn.cached_tokens} of {turn.prompt_tokens} prompt tokens cached" if turn.cached_tokens else ""
    return f"turn 2 went {route}; {held}{cached}"


def _advice(config: EngineConfig, info: ServerInfo, codec: Codec | None, found: Probe) -> tuple[list[str], list[str]]:
    """(flags for the command line, what to do in words)."""
    if codec is None:
        return [], ["name the model's tokenizer by --tokenizer: without it every turn goes message-in"]
    wrong = [check for check in found.shapes if check.exact is False and check.shape != SPECIAL_TEXT]
    if not wrong or not codec.has_tokenizer:
        return [], []
    if any(check.drift for check in wrong):
        source = f"{config.tokenizer or info.tokenizer} is not what the server was started with (another revision?)"
        if info.can_tokenize:
            return ["--renderer", "server"], [f"{source}: name its folder by --tokenizer, or use --renderer server"]
        return [], [f"{source}: name its folder by --tokenizer"]
    if config.renderer in ("auto", "template"):
        return [], ["the bridge falls back where it is not exact; each fallback is counted with its reason"]
    return ["--renderer", "template"], [f"renderer {config.renderer} is not this model's: use --renderer template"]


def command_line(config: EngineConfig, info: ServerInfo, codec: Codec | None) -> list[str]:
    """What to run against this server."""
    words = ["rollout", "run", "guess_number"]
    for url in config.base_urls:
        words += ["--base-url", shown_url(url)]
    if config.base_urls:
        words += ["-m", info.model]
    for option, value, usual in (
        ("--tokenizer", config.tokenizer, None),
        ("--transport", config.transport, "auto"),
        ("--reader", config.reader, "auto"),
        ("--api-key-env", config.api_key_env, None),
    ):
        words += [option, value] if value and value != usual else []
    if codec is None:
        words += ["--tokenizer", "NAME_OR_DIR"]
    if info.max_model_len is None:
        words += ["--max-model-len", "TOKENS"]
    return words


def rows(found: Probe) -> list[tuple[str, str]]:
    """The probe for people."""
    info = found.server
    routes = ", ".join(info.token_routes) or "none: every turn would go message-in"
    return [
        ("dialect", f"{info.dialect} {info.version or ''}".strip()),
        ("models", ", ".join(info.models)),
        ("context", f"{info.max_model_len} tokens" if info.max_model_len else "not said: give --max-model-len"),
        ("token-in", routes),
        *([("images", f"go with ids, each as token {info.image_token}")] if info.image_token is not None else []),
        ("ids", f"from {info.ids_source}" if info.ids_source else "not reported on message-in"),
        ("prompt ids", _yes(info.reports_prompt_ids)),
        (
            "stop token",
            {True: "kept in the ids", False: "not in the ids", None: "could not tell"}[info.keeps_stop_token],
        ),
        ("cached tokens", "reported" if info.reports_cached_tokens else "not reported"),
        ("logprobs", _logprobs(info)),
        ("samples", _samples(info)),
        ("weight versions", "reported" if info.reports_weight_versions else "not reported"),
        ("/tokenize", _yes(info.can_tokenize)),
        ("bridges", found.bridges or "none: name the tokenizer by --tokenizer"),
        ("reader", found.reader or "none: tool calls would be text; name one by --reader"),
        *[("prompts", line) for line in found.verdict],
        ("live", found.live),
        *[("advice", line) for line in found.advice],
        ("use", found.command),
    ]


def _logprobs(info: ServerInfo) -> str:
    if info.logprobs_mode == "processed_logprobs" and info.dialect == "sglang":
        return "after temperature and penalties, before top_k, top_p and min_p"
    if info.logprobs_mode == "processed_logprobs":
        return "after temperature and filters: of what was drawn from (processed_logprobs)"
    if info.logprobs_mode is None:
        return "unknown whether before or after temperature and filters"
    remedy = REMEDIES.get(info.dialect, REMEDIES["vllm"])
    return f"before temperature and filters (raw_logprobs); to train at another temperature than 1, {remedy}"


def _samples(info: ServerInfo) -> str:
    """How the server samples where a request says nothing."""
    if info.sampling_defaults is None:
        return "not said: give temperature, top_p and top_k by -s"
    return f"{told(info.sampling_defaults)}, where a request says nothing"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
