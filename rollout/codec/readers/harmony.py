"""Turns made of messages of their own, each with a header that says what it is.

    harmony   <|channel|>analysis<|message|>I add.<|end|><|start|>assistant<|channel|>commentary to=functions.add
              <|constrain|>json<|message|>{"a": 1}<|call|>                                  gpt-oss
    inkling   <|content_thinking|>I add.<|end_message|><|message_model|>add
              <|content_invoke_tool_json|>{"name": "add", "args": {"a": 1}}<|end_message|>

The prompt ends within a header (`<|start|>assistant`, as gpt-oss's own template has it), or has finished one and opened
a channel, as some renderers do: what is read begins where the prompt left off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rollout.codec.readers.base import Format
from rollout.codec.readers.pieces import Piece, Sampled
from rollout.codec.readers.values import (
    INVALID_JSON,
    MALFORMED,
    UNCLOSED,
    Keys,
    NoCall,
    call_of,
    json_arguments,
    make_call,
    read_members,
    skip_space,
)

_START = "<|start|>"
_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_END = re.compile(r"<\|(?:end|call|return)\|>|(?=<\|start\|>)|\Z")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
#: What a header may be that begins where the turn does: the prompt has written `<|start|>assistant`.
_REST_OF_HEADER = re.compile(
    r"(?:assistant)?(?:\s*to=[^\s<]+)?\s*(?:<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?)?<\|message\|>"
)
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


def _next_header(text: str, at: int) -> tuple[int, int] | None:
    """Where the next header begins, at `at` or behind it, and where its message's body does."""
    seen = at
    while (message := text.find(_MESSAGE, seen)) >= 0:
        start = text.rfind(_START, seen, message)
        if start < 0 and at == seen == 0 and _REST_OF_HEADER.match(text):
            start = 0
        if start >= 0 and not any(end in text[start:message] for end in _ENDS):
            return start, message + len(_MESSAGE)
        seen = message + len(_MESSAGE)
    return None


class Harmony(Format):
    """gpt-oss's channels: analysis is reasoning, final is the answer, what has a recipient is a call."""

    name = "harmony"
    signs = ("<|channel|>",)
    tags = ()

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        at, opened = 0, self._open_header(sampled.prompt_end)
        if opened is not None and _MESSAGE in opened:
            pieces, at = self._message(text, 0, 0, opened, sampled)
            yield from pieces
            opened = None
        while (found := _next_header(text, at)) is not None:
            start, body = found
            if start > at:
                yield Piece("text", text[at:start])
            header = text[start:body]
            # At the beginning a header needs no `<|start|>`: the prompt has written it.
            whole = header if header.startswith(_START) else (opened or "") + header
            pieces, at = self._message(text, start, body, whole, sampled)
            yield from pieces
        if at < len(text):
            yield Piece("text", text[at:])

    def _open_header(self, prompt_end: str) -> str | None:
        """What the prompt has written of the header of the turn's first message; None where it has none."""
        return prompt_end.rpartition(_START)[2] if _START in prompt_end else None

    def _message(self, text: str, start: int, body: int, header: str, sampled: Sampled) -> tuple[list[Piece], int]:
        """The pieces of the message whose header begins at `start` and whose body at `body`, and where it ends."""
        end = _END.search(text, body)
        assert end is not None, "the end of the text matches"
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        name = channel[1] if channel is not None else "final"
        if recipient is not None and recipient[1] not in ("assistant", "user"):
            closed = bool(end[0]) or sampled.ended
            return [self._call(text[start : end.end()], text[body : end.start()], recipient[1], closed)], end.end()
        kind = "reasoning" if name == "analysis" else "text"
        pieces = [
            Piece("mark", text[start:body]),
            Piece("reasoning" if kind == "reasoning" else "text", text[body : end.start()]),
            Piece("mark", end[0]),
        ]
        return [piece for piece in pieces if piece.raw], end.end()

    def _call(self, raw: str, body: str, recipient: str, closed: bool) -> Piece:
        if not closed:
            return Piece("broken", raw, reason=UNCLOSED)
        try:
            call = make_call(recipient.removeprefix("functions."), json_arguments(body))
        except NoCall as error:
            return Piece("broken", raw, reason=str(error))
        return Piece("call", raw, (call,))


_SEGMENT = re.compile(r"(?P<body>[\s\S]*?)(?P<end><\|end_message\|>|\Z)")
_INVOKE = re.compile(r"(?P<name>[^<]*)<\|content_invoke_tool_json\|>")
_KEYS = Keys(arguments=("args",))


class Inkling(Format):
    """Inkling's segments: each is reasoning, text, or a call."""

    name = "inkling"
    signs = ("<|content_invoke_tool_json|>",)
    tags = ()

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        at = 0
        thinks = sampled.prompt_end.endswith("<|content_thinking|>")
        while at < len(text):
            segment = _SEGMENT.match(text, at)
            assert segment is not None, "the end of the text matches"
            yield from self._segment(segment["body"], segment["end"], sampled, thinks=thinks and at == 0)
            at = segment.end()

    def _segment(self, body: str, end: str, sampled: Sampled, *, thinks: bool) -> Iterator[Piece]:
        opened = len("<|message_model|>") if body.startswith("<|message_model|>") else 0
        for marker, is_reasoning in (("<|content_thinking|>", True), ("<|content_text|>", False), ("", thinks)):
            if body.startswith(marker, opened) and (marker or thinks):
                opened += len(marker)
                pieces = [
                    Piece("mark", body[:opened]),
                    Piece("reasoning" if is_reasoning else "text", body[opened:]),
                    Piece("mark", end),
                ]
                yield from [piece for piece in pieces if piece.raw]
                return
        invoked = _INVOKE.match(body, opened)
        if invoked is None:
            yield from [piece for piece in (Piece("text", body), Piece("mark", end)) if piece.raw]
        elif not end and not sampled.ended:
            yield Piece("broken", body, reason=UNCLOSED)
        else:
            yield self._call(body + end, body[invoked.end() :])

    def _call(self, raw: str, payload: str) -> Piece:
        try:
            members, at = read_members(payload, skip_space(payload, 0))
            if skip_space(payload, at) != len(payload):
                raise NoCall(INVALID_JSON)
            return Piece("call", raw, (call_of(members, _KEYS),))
        except NoCall as error:
            return Piece("broken", raw, reason=str(error) or MALFORMED)


HARMONY = Harmony()
INKLING = Inkling()
