"""Messages to ids and back, for one model: the bridges in their order, off the event loop when it is long.

A codec has two lanes, each with a tokenizer of its own: short work runs at once on the event loop's
lane, long work in a worker thread on the other, one at a time. What blocks the loop is bounded by
`LONG_CHARS` and `LONG_IDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import structlog

from rollout.chat.canonical import value_digest
from rollout.chat.messages import Message, with_tool_names
from rollout.codec import stand_in
from rollout.codec.reading import parse_text
from rollout.codec.renderer import RendererBridge
from rollout.codec.template import TemplateBridge
from rollout.codec.tokenizer import copy_tokenizer, load_tokenizer, template_ids
from rollout.codec.types import Bridge, Bridged, Context, Declined, Previous
from rollout.door import error_text
from rollout.errors import ConfigError, RequestRefused, TransportError
from rollout.memo import Memo
from rollout.request import MessagePrompt
from rollout.transport import Transport

#: Beyond these the work leaves the event loop: about a millisecond of tokenizing or copying.
LONG_CHARS = 4_000
LONG_IDS = 8_000

_PROMPT_ENDS_KEPT = 1_024

T = TypeVar("T")
_log = structlog.get_logger(__name__)


def make_context(tools: Sequence[Mapping[str, Any]], template_args: Mapping[str, Any]) -> Context:
    return Context(tools=tools, template_args=template_args, key=value_digest([list(tools), dict(template_args)]))


class Lane:
    """The bridges over one copy of the tokenizer, for one thread at a time."""

    def __init__(self, tokenizer: Any, family: str | None, thinking_retention: str, stop_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.renderer = RendererBridge(tokenizer, family, thinking_retention, stop_ids) if family else None
        self.stop_token_ids = self.renderer.stop_token_ids if self.renderer else list(dict.fromkeys(stop_ids))
        self.template = TemplateBridge(tokenizer, self.stop_token_ids) if tokenizer.chat_template else None
        own = self.renderer.stand_in if self.renderer else None
        self._bridges: list[Bridge] = [bridge for bridge in (self.renderer, self.template, own) if bridge is not None]

    def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        """The first bridge that gives ids. A bridge that raises declines, and its cause is logged."""
        reasons = []
        # Renderers such as gpt-oss's write the function's name, which the caller's tool message may lack.
        tail = with_tool_names([previous.message, *tail])[1:] if previous.message is not None else tail
        for bridge in self._bridges:
            try:
                found = bridge.extend(previous, tail, context)
            except Exception as error:  # a renderer's or a template's bug must cost a fallback, not the rollout
                said = f"{type(error).__name__}: {error_text(error)}"
                _log.warning("bridge_raised", bridge=bridge.name, error=said, exc_info=error)
                found = Declined(said)
            if isinstance(found, Bridged):
                return found
            reasons.append(f"{bridge.name}: {found.reason}")
        return Declined("; ".join(reasons) or "no bridge for this model")

    def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        """A whole prompt's ids: by the model's own template where there is one."""
        source = self.template or self.renderer
        if source is None:
            raise ConfigError("the tokenizer has no chat template and no renderer: name one by --renderer")
        return source.render(messages, context)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message:
        """The assistant's message. What the model sampled never raises: the plain reading serves then."""
        if self.renderer is not None:
            try:
                return self.renderer.parse(prompt_ids, completion_ids, context)
            except Exception as error:  # a parser's bug on odd ids must not cost the rollout
                _log.warning("parser_raised", error=f"{type(error).__name__}: {error_text(error)}", exc_info=error)
        if self.template is None:
            raise ConfigError("the tokenizer has no chat template, so its answers cannot be read")
        return self.template.parse(prompt_ids, completion_ids, context)


class Codec:
    """A model's messages and ids. `LocalCodec` has a tokenizer, `ServerCodec` asks the server."""

    stop_token_ids: list[int]
    """Ids that end a turn; sent with every request."""
    description: str
    """For people: which bridges are in use."""

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        """The ids that follow the completion, or why there are none. Never raises for what was sampled."""
        raise NotImplementedError

    async def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        """A whole prompt's ids, the generation prompt included."""
        raise NotImplementedError

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message | None:
        """The assistant's message; None where only the server can read it."""
        raise NotImplementedError

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, for people."""
        raise NotImplementedError


class LocalCodec(Codec):
    """Bridges over a local tokenizer."""

    def __init__(self, make_lane: Callable[[], Lane], description: str) -> None:
        self._here = make_lane()
        # Made now: copying a tokenizer lets no other thread run, and would stop a loop that plays for a second.
        self._there = make_lane()
        self._there_limit = anyio.CapacityLimiter(1)
        self.stop_token_ids = self._here.stop_token_ids
        self.description = description

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        long = len(previous.completion_ids) > LONG_IDS or sum(len(message.text) for message in tail) > LONG_CHARS
        return await self._run(lambda lane: lane.extend(previous, tail, context), long=long)

    async def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        long = sum(len(message.text) for message in messages) > LONG_CHARS
        return await self._run(lambda lane: lane.render(messages, context), long=long)

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message:
        long = len(completion_ids) > LONG_IDS
        return await self._run(lambda lane: lane.parse(prompt_ids, completion_ids, context), long=long)

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._run(lambda lane: lane.decode(ids), long=len(ids) > LONG_IDS)

    async def _run(self, work: Callable[[Lane], T], *, long: bool) -> T:
        if not long:
            return work(self._here)
        return await anyio.to_thread.run_sync(lambda: work(self._there), limiter=self._there_limit)


class ServerCodec(Codec):
    """The server's /tokenize in the place of a tokenizer. Stop tokens are learnt from what it samples."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._shapes = stand_in.ShapeCache()
        self.stop_token_ids = []
        self._prompt_ends = Memo[tuple[int, ...], bool](_PROMPT_ENDS_KEPT)
        self.description = "server (/tokenize)"

    def saw_stop(self, token: int) -> None:
        """Notes the token that ended a completion with finish reason `stop`."""
        if token not in self.stop_token_ids:
            self.stop_token_ids.append(token)

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        if not self.stop_token_ids:
            return Declined("server: no stop token seen yet")
        end = previous.completion_ids[-1] if previous.completion_ids else None
        steps = self._shapes.steps(previous.message, tail, context.key, end, self.stop_token_ids)
        try:
            conversation = next(steps)
            while True:
                try:
                    ids = await self._tokenize(conversation, context)
                except RequestRefused as error:
                    conversation = steps.throw(stand_in.NotRendered(f"the server's template refuses: {error}"))
                else:
                    conversation = steps.send(ids)
        except StopIteration as stop:
            return Bridged(stop.value, "server")
        except stand_in.NotExtendable as error:
            return Declined(f"server: {error}")
        except TransportError as error:
            _log.warning("bridge_raised", bridge="server", error=str(error))
            return Declined(f"server: {error}")

    async def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        return await self._tokenize(stand_in.Conversation(messages), context)

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message | None:
        stopped = bool(completion_ids) and completion_ids[-1] in self.stop_token_ids
        try:
            text = await self._transport.detokenize(completion_ids[: len(completion_ids) - stopped])
            in_reasoning = await self._ends_in_reasoning(tuple(prompt_ids[-8:]))
        except TransportError as error:
            _log.warning("parser_raised", error=str(error))
            return None
        return parse_text(text, in_reasoning=in_reasoning)

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._transport.detokenize(ids)

    async def _ends_in_reasoning(self, prompt_end: tuple[int, ...]) -> bool:
        """Whether a prompt leaves `<think>` open. Prompts end alike, so the server is asked once."""
        if prompt_end not in self._prompt_ends:
            text = await self._transport.detokenize(prompt_end)
            self._prompt_ends[prompt_end] = text.rstrip().endswith("<think>")
        return self._prompt_ends[prompt_end]

    async def _tokenize(self, conversation: stand_in.Conversation, context: Context) -> list[int]:
        prompt = MessagePrompt(messages=conversation.messages, tools=context.tools, template_args=context.template_args)
        return await self._transport.tokenize(prompt, add_generation_prompt=conversation.add_generation_prompt)


def load_codec(tokenizer_name: str, *, renderer: str = "auto", thinking_retention: str = "all") -> LocalCodec:
    """The codec of a tokenizer. Blocks for seconds: call it in a thread. Raises ConfigError."""
    tokenizer = load_tokenizer(tokenizer_name)
    family = choose_family(tokenizer, renderer)
    if family is None and not tokenizer.chat_template:
        raise ConfigError(f"tokenizer {tokenizer_name!r} has no chat template; name a family by --renderer")
    stops = configured_stop_ids(tokenizer, tokenizer_name)
    description = f"renderer {family}, then template" if family else "template"

    def make_lane() -> Lane:
        return Lane(copy_tokenizer(tokenizer), family, thinking_retention, stops)

    return LocalCodec(make_lane, description)


def configured_stop_ids(tokenizer: Any, name: str) -> list[int]:
    """The ids that end a turn by the model's own files: the tokenizer's end token, and generation_config.json's."""
    import msgspec

    stops = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    path = Path(name).expanduser() / "generation_config.json"
    if path.is_file():
        eos = msgspec.json.decode(path.read_bytes(), type=dict[str, Any]).get("eos_token_id") or []
        stops += eos if isinstance(eos, list) else [eos]
    return list(dict.fromkeys(stops))


def choose_family(tokenizer: Any, renderer: str) -> str | None:
    """The `renderers` family to use; None for the template bridge alone.

    `auto` takes a family only where it renders the model's own chat template id for id: a name proves
    nothing, since fine-tunes change their templates. Without a chat template the name must do.
    """
    from renderers.base import MODEL_RENDERER_MAP

    if renderer == "template":
        return None
    known = families()
    if renderer != "auto":
        if renderer not in known:
            raise ConfigError(f"no renderer {renderer!r}; there are: auto, template, server, {', '.join(known)}")
        if not _constructs(tokenizer, renderer):
            raise ConfigError(f"renderer {renderer!r} does not fit this tokenizer: its special tokens are missing")
        return renderer
    named: str | None = MODEL_RENDERER_MAP.get(getattr(tokenizer, "name_or_path", ""))
    if not tokenizer.chat_template:
        return named
    candidates = dict.fromkeys([*([named] if named else []), *known])
    return next((family for family in candidates if _agrees(tokenizer, family)), None)


def families() -> list[str]:
    """The hand-written families of the installed `renderers`."""
    from renderers import base

    base._populate_registry()
    return [name for name in base.RENDERER_REGISTRY if name != "default"]


def _constructs(tokenizer: Any, family: str) -> RendererBridge | None:
    try:
        return RendererBridge(tokenizer, family, "all")
    except Exception:  # each family states its needs in its own way: AssertionError, KeyError, ValueError
        return None


def _agrees(tokenizer: Any, family: str) -> bool:
    """Whether a family renders some conversations exactly as the chat template does."""
    bridge = _constructs(tokenizer, family)
    if bridge is None:
        return False
    for messages, tools in _SAMPLES:
        try:
            ours = bridge.render(messages, make_context(tools, {}))
            theirs = template_ids(tokenizer, messages, tools, {}, add_generation_prompt=True)
        except Exception:  # a template may refuse a sample, which then proves nothing for this family
            return False
        if ours != theirs:
            return False
    return True


_TOOLS: list[Mapping[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
]
_CALL = Message.of(
    {"role": "assistant", "tool_calls": [{"id": "call00001", "function": {"name": "add", "arguments": '{"a": 1}'}}]}
)
_SAMPLES: list[tuple[list[Message], list[Mapping[str, Any]]]] = [
    ([Message("user", "Hi.")], []),
    ([Message("system", "Be kind."), Message("user", "1+1?"), Message("assistant", "2"), Message("user", "Why?")], []),
    (
        [
            Message("system", "Be kind."),
            Message("user", "1+1?"),
            _CALL,
            Message("tool", "2", tool_call_id="call00001", name="add"),
        ],
        _TOOLS,
    ),
]
