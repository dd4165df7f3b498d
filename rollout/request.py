"""What goes to a server and what comes back: prompts, requests and replies, as data. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, Literal

import msgspec

from rollout.chat.messages import Message
from rollout.token_fields import RoutedExperts, SamplingMask

#: How ids are held, here and in a trajectory: 32-bit integers.
IDS = "i"

#: Why a completion ended, in every dialect. "length" includes the context's end; "abort" is a
#: request that the server gave up (a pause in abort mode, a preemption, an abort by name).
FinishReason = Literal["stop", "length", "abort"]

#: What a server's logprobs are of, in vLLM's words: the model's own distribution, before temperature, penalties and
#: filters, or the one that the token was drawn from, after them.
LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The distribution that tokens are drawn from: what the caller asked for, else what the server does by itself.

    The defaults change nothing. None is not known: the caller leaves it to a server that does not say what it does,
    and vLLM takes a model's generation_config unless it is told otherwise.
    """

    temperature: float | None = 1.0
    """0 takes the likeliest token."""
    top_p: float | None = 1.0
    top_k: int | None = 0
    """0: no limit; servers' -1 is 0 here."""
    min_p: float | None = 0.0
    repetition_penalty: float | None = 1.0
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0

    @classmethod
    def of(cls, asked: Mapping[str, Any], defaults: Sampling | None = None) -> Sampling:
        """What a request's parameters come to on a server with these defaults; None where those are not known."""
        found: dict[str, Any] = {}
        for name in cls.__struct_fields__:
            value = asked.get(name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                value = getattr(defaults, name) if defaults is not None else None
            found[name] = max(0, int(value)) if name == "top_k" and value is not None else value
        return cls(**found)

    @property
    def given(self) -> dict[str, float]:
        """What is known and changes something, by the servers' names."""
        return {
            name: value
            for name, default in zip(self.__struct_fields__, self.__struct_defaults__, strict=True)
            if (value := getattr(self, name)) is not None and value != default
        }

    @property
    def unknown(self) -> list[str]:
        """The names of what is not known."""
        return [name for name in self.__struct_fields__ if getattr(self, name) is None]


class Expansion(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the model reads where ids have one placeholder for an image."""

    at: int
    """Where the placeholder stands."""
    runs: tuple[tuple[int, int], ...]
    """The ids that the server puts there, each with how often it stands in a row: one run for most models."""

    @property
    def length(self) -> int:
        return sum(count for _, count in self.runs)


class TokenPrompt:
    """Token-in: the prompt's ids, whole. Never changed once made.

    A conversation's next prompt starts with this one, so it is made from it, and what was encoded for the wire is
    encoded once: a turn costs what is new in it, and a copy.
    """

    __slots__ = ("_before", "_json", "ids", "images", "images_add")

    def __init__(self, ids: Sequence[int], images: tuple[str, ...] = (), images_add: int = 0) -> None:
        self.ids = ids if isinstance(ids, array) else array(IDS, ids)
        """int32. An image is one placeholder, which the server puts as many in place of as the model reads."""
        self.images = images
        """Addresses, one for each placeholder, in their order."""
        self.images_add = images_add
        """How many tokens the model reads beyond these ids, for images of which the server said so."""
        self._json: bytes | None = None
        self._before: tuple[bytes | None, int] = None, 0
        """The JSON of the first so many ids, where a prompt before this one was encoded."""

    def __repr__(self) -> str:
        return f"<TokenPrompt of {len(self.ids)} ids>"

    @property
    def length(self) -> int:
        """Tokens that the model reads, as far as they are known."""
        return len(self.ids) + self.images_add

    def extended(self, new: Sequence[int], images: tuple[str, ...] = ()) -> TokenPrompt:
        """These ids and then the new ones."""
        prompt = TokenPrompt(self.ids + array(IDS, new), self.images + images, self.images_add)
        prompt._before = (self._json, len(self.ids)) if self._json is not None else self._before
        return prompt

    def read_as(self, images_add: int) -> TokenPrompt:
        """The same, once the server has said how many tokens its images add."""
        if images_add == self.images_add:
            return self
        prompt = TokenPrompt(self.ids, self.images, images_add)
        prompt._json, prompt._before = self._json, self._before
        return prompt

    def json(self) -> msgspec.Raw:
        """The ids as JSON's array, to be put into a body as it is."""
        if self._json is None:
            known, length = self._before
            self._json = _appended(known, msgspec.json.encode(self.ids[length:].tolist()))
            self._before = None, 0
        return msgspec.Raw(self._json)


class MessagePrompt:
    """Message-in: the server's chat template makes the prompt. Never changed once made."""

    __slots__ = ("_before", "_json", "messages", "template_args", "tools")

    def __init__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        template_args: Mapping[str, Any] | None = None,
        *,
        before: MessagePrompt | None = None,
    ) -> None:
        """`template_args` are chat-template arguments (`chat_template_kwargs` on the wire).

        `before` is an earlier prompt: where this one starts with the very same messages, they are not encoded again.
        """
        self.messages, self.tools, self.template_args = messages, tools, template_args or {}
        self._json: bytes | None = None
        self._before: tuple[bytes | None, int] = None, 0
        count = len(before.messages) if before is not None else 0
        if before is not None and count <= len(messages) and all(map(is_, before.messages, messages)):
            self._before = before._json, count if before._json is not None else 0

    def __repr__(self) -> str:
        return f"<MessagePrompt of {len(self.messages)} messages>"

    @property
    def has_media(self) -> bool:
        """Whether a message has a part that is not text."""
        return any(message.is_multimodal for message in self.messages)

    @property
    def size(self) -> int:
        """Bytes of `json`."""
        return len(memoryview(self.json()))

    def added_to(self, earlier: MessagePrompt) -> tuple[int, int] | None:
        """(messages, bytes) that this prompt has behind an earlier one's; None where it does not start with that."""
        count = len(earlier.messages)
        same = count <= len(self.messages) and all(map(is_, earlier.messages, self.messages))
        if not same or earlier.tools != self.tools or earlier.template_args != self.template_args:
            return None
        return len(self.messages) - count, self.size - earlier.size

    def json(self) -> msgspec.Raw:
        """The messages in OpenAI's form as JSON's array, to be put into a body as it is."""
        if self._json is None:
            known, count = self._before
            self._json = _appended(known, msgspec.json.encode([one.as_openai() for one in self.messages[count:]]))
            self._before = None, 0
        return msgspec.Raw(self._json)


def _appended(known: bytes | None, new: bytes) -> bytes:
    """Two JSON arrays as one."""
    if known is None or known == b"[]":
        return new
    return known if new == b"[]" else known[:-1] + b"," + new[1:]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to complete."""

    prompt: TokenPrompt | MessagePrompt
    request_id: str
    session_id: str
    """One per trajectory: what a router keeps on one server."""
    group_id: str = ""
    """One per group, whose members are kept together where there are several servers."""
    group_size: int = 1
    """Members that the group has: a server that has the first will have the others."""
    max_tokens: int | None = None
    """Completion length at most; None leaves it to the server."""
    sampling: Mapping[str, Any] = {}
    """The caller's sampling parameters and any other body fields, by OpenAI's or vLLM's names.
    Sent as they are on both routes; a server's refusal of one is shown, not worked around."""
    stop_token_ids: Sequence[int] = ()
    """Ids that end the turn, from the local renderer; beside, not instead of, the caller's own."""
    priority: int | None = None
    """Lower is sooner, as vLLM has it."""
    cache_salt: str | None = None
    echo_prompt: bool = False
    """Ask for the prompt's ids on token-in too, so that they can be checked (`--verify`)."""
    routed_experts_from: int | None = None
    """Ask for the experts of the positions from here on; those before are known. None does not ask for any."""
    sampling_mask: bool = False
    """Ask for the ids that each sampled token was drawn from."""
    trace: Mapping[str, str] = {}
    """Headers that carry a trace on to the server (`traceparent`), where there is one."""


class WeightSpan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The weight version under which completion tokens [start, end) were sampled."""

    version: str
    start: int
    end: int


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the server sampled. `completion_ids` and `logprobs` have one length and one source."""

    completion_ids: list[int] | None
    """Sampled ids, stop token included where the server keeps it; from the engine, never
    re-tokenized. None where the server reports no ids at all."""
    logprobs: list[float] | None
    """Natural log of each sampled token's probability; None only where `completion_ids` is."""
    without_logprobs: bool = False
    """Whether nothing computes logprobs there (Dynamo's mocker): each is NaN, which no loss can use unseen."""
    prompt_ids: Sequence[int] | None = None
    """The prompt as the server had it; None where it does not say."""
    image_spans: tuple[tuple[int, int], ...] | None = None
    """Where images stand in `prompt_ids`: the start and the length of each. None where the server does not say."""
    expansions: tuple[Expansion, ...] | None = None
    """The same, once `prompt_ids` has one placeholder for each: see `rollout.tokens.images`."""
    finish_reason: FinishReason = "stop"
    message: Message | None = None
    """The server's own reading of the answer; used only where there is no local tokenizer."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens that the server took from its prefix cache; None where it does not say."""
    weight_versions: tuple[WeightSpan, ...] = ()
    """Empty where the server reports none."""
    routed_experts: RoutedExperts | None = None
    """Of the positions from `Request.routed_experts_from` to the last but one of prompt and completion; None where the
    server reports none."""
    sampling_mask: SamplingMask | None = None
    """One entry a sampled token; None where the server reports none."""
    request_s: float = 0.0
    """From the first byte sent to the last received, seconds; retries and their waits included."""

    @property
    def images_add(self) -> int:
        """Tokens that the model read beyond `prompt_ids`, where those have placeholders."""
        return sum(one.length - 1 for one in self.expansions or ())
