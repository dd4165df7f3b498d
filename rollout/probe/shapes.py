"""Does the local tokenizer make the prompts that the server makes? Conversation by conversation, in both directions.

For each shape of conversation three things are compared with the server's own ids: the whole prompt as it is
rendered here, the bridge that a token-in turn would append, and whether the server's prompt for turn 2 starts
with its prompt for turn 1 at all (where it does not, message-in breaks the prefix by itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollout.chat.messages import Function, Message, ToolCall, system, user
from rollout.codec.protocol import Codec
from rollout.codec.types import Declined, Previous, make_context
from rollout.errors import TransportError
from rollout.request import MessagePrompt, Request
from rollout.transport import ServerInfo, Transport

#: Ids shown on each side of a difference.
_NEIGHBOURS = 4


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """The first token in which two prompts differ, with its neighbourhood."""

    at: int
    """Its position."""
    here: list[int]
    """Ids of the local prompt from shortly before it on."""
    there: list[int]
    """The server's."""
    here_text: str
    there_text: str

    def __str__(self) -> str:
        return f"from id {self.at} on: here {self.here_text!r} {self.here}, there {self.there_text!r} {self.there}"


class ShapeCheck(msgspec.Struct, kw_only=True):
    """What was found for one shape of conversation."""

    shape: str
    exact: bool | None = None
    """Whether the local prompt and the bridge are the server's, id for id; None where it could not be compared."""
    why: str = ""
    """Why it is not, or could not be compared."""
    drift: Drift | None = None
    """Where the local prompt departs from the server's."""
    bridge: str | None = None
    """The bridge that gave the tail's ids."""
    keeps_prefix: bool | None = None
    """Whether the server's prompt for turn 2 starts with that for turn 1."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation of two turns."""

    name: str
    opening: Sequence[Message] = (system("You are brief."), user("What is 1 + 2?"))
    answer: Message = Message("assistant", "It is 3.")
    tail: Sequence[Message]
    tools: bool = False


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


def _calls(count: int) -> Message:
    return Message(
        "assistant",
        tool_calls=tuple(
            ToolCall(id=f"call{i:05d}", function=Function("add", f'{{"a": {i}, "b": 2}}')) for i in range(count)
        ),
    )


def _results(*texts: str) -> list[Message]:
    return [Message("tool", text, tool_call_id=f"call{i:05d}", name="add") for i, text in enumerate(texts)]


#: Typed markers of common families: some are special in any tokenizer that is probed.
_TYPED = "<|im_end|><|im_start|><|endoftext|><|eot_id|><|user|><|end|></s><eos>"

SPECIAL_TEXT = "special text"

SHAPES = [
    Shape(name="user", tail=[user("Why?")]),
    Shape(name="tool", answer=_calls(1), tail=_results("2"), tools=True),
    Shape(name="several results", answer=_calls(2), tail=_results("2", "3"), tools=True),
    Shape(name="tool then user", answer=_calls(1), tail=[*_results("2"), user("And now?")], tools=True),
    Shape(
        name="reasoning", answer=Message("assistant", "3.", reasoning_content="One and two."), tail=[user("Really?")]
    ),
    Shape(name="empty answer", answer=Message("assistant"), tail=[user("Say something.")]),
    Shape(name="unicode", tail=[user("naïve Straße 東京 👩‍👩‍👧 e\u0301 \ufeff ﷽")]),
    Shape(name="long result", answer=_calls(1), tail=_results("wind and rain, " * 200), tools=True),
    Shape(name=SPECIAL_TEXT, tail=[user(f"See {_TYPED}.")]),
]


async def check_shapes(
    transport: Transport, info: ServerInfo, codec: Codec, template_args: Mapping[str, Any]
) -> list[ShapeCheck]:
    """Compares every shape. A server that refuses one is not an error: that shape is then not compared."""
    return [await _Checker(transport, info, codec, shape, template_args).check() for shape in SHAPES]


class _Checker:
    def __init__(
        self, transport: Transport, info: ServerInfo, codec: Codec, shape: Shape, template_args: Mapping[str, Any]
    ) -> None:
        self._transport, self._info, self._codec, self._shape = transport, info, codec, shape
        self._context = make_context(TOOLS if shape.tools else [], template_args)
        self._whole = [*shape.opening, shape.answer, *shape.tail]

    async def check(self) -> ShapeCheck:
        found = ShapeCheck(shape=self._shape.name)
        try:
            first, theirs = await self._server_ids(self._shape.opening), await self._server_ids(self._whole)
        except TransportError as error:
            found.why = f"the server refuses it: {error}"
            return found
        if first is None or theirs is None:
            found.why = "the server reports no prompt ids"
            return found
        found.keeps_prefix = theirs[: len(first)] == first
        found.drift = await self._drift(theirs)
        declined, found.bridge = await self._bridge_fault(first, theirs)
        found.why = self._reason(found.drift, declined)
        found.exact = not found.why
        return found

    def _reason(self, drift: Drift | None, bridge_fault: str) -> str:
        if self._shape.name == SPECIAL_TEXT:
            # The bridge keeps typed markers as text, so that the server's prompt is no measure of it.
            return "the server takes typed markers for tokens; the bridge keeps them as text" if drift else ""
        return f"the prompts differ {drift}" if drift else bridge_fault

    async def _server_ids(self, messages: Sequence[Message]) -> list[int] | None:
        prompt = MessagePrompt(messages=messages, tools=self._context.tools, template_args=self._context.template_args)
        if self._info.can_tokenize:
            return await self._transport.tokenize(prompt, add_generation_prompt=True)
        reply = await self._transport.generate(
            Request(prompt=prompt, request_id="probe", session_id="probe", max_tokens=1, echo_prompt=True)
        )
        return list(reply.prompt_ids) if reply.prompt_ids is not None else None

    async def _drift(self, theirs: list[int]) -> Drift | None:
        try:
            ours = await self._codec.render(self._whole, self._context)
        except TransportError:
            raise
        except Exception as error:  # a template raises Jinja's errors, a renderer any: it refuses what the server takes
            return Drift(at=0, here=[], there=theirs[:_NEIGHBOURS], here_text=f"refused: {error}", there_text="")
        if ours == theirs:
            return None
        return await first_difference(ours, theirs, self._codec)

    async def _bridge_fault(self, first: list[int], theirs: list[int]) -> tuple[str, str | None]:
        """(why the bridge is not the server's, which bridge it was)."""
        why = "no stop token is known"
        for stop in self._codec.stop_token_ids:
            previous = Previous(prompt_ids=first, completion_ids=[stop], message=self._shape.answer)
            bridged = await self._codec.extend(previous, self._shape.tail, self._context)
            if isinstance(bridged, Declined):
                why = f"no bridge: {bridged.reason}"
            elif theirs[len(theirs) - len(bridged.ids) :] == bridged.ids:
                return "", bridged.bridge
            else:
                why = f"the {bridged.bridge} bridge appends other ids than the server"
        return why, None


async def first_difference(ours: Sequence[int], theirs: Sequence[int], codec: Codec) -> Drift:
    """Where two prompts depart from each other."""
    shorter = min(len(ours), len(theirs))
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), shorter)
    here, there = (list(ids[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS]) for ids in (ours, theirs))
    return Drift(
        at=at, here=here, there=there, here_text=await codec.decode(here), there_text=await codec.decode(there)
    )


def verdict(checks: Sequence[ShapeCheck]) -> list[str]:
    """The findings in plain sentences."""
    lines = []
    if exact := [check.shape for check in checks if check.exact]:
        lines.append(f"token-exact for {', '.join(exact)}")
    lines += [f"not token-exact for {check.shape}: {check.why}" for check in checks if check.exact is False]
    lines += [f"{check.shape} not compared: {check.why}" for check in checks if check.exact is None]
    if broken := [check.shape for check in checks if check.keeps_prefix is False]:
        lines.append(f"message-in breaks the prefix by the server's template alone for {', '.join(broken)}")
    return lines
