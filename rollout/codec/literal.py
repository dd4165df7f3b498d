"""Special-token text that a user or a tool typed stays text.

A tokenizer turns the characters `<|im_end|>` into the token that ends a turn, wherever they stand: a web page
that a tool fetched could end its own message and open the assistant's. Renderers and templates hand over
their markers and the message's text in one string, where the two cannot be told apart any more. So each
marker's text inside a message is replaced by one private character before rendering, and put back when the
rendered text is encoded, cut after its first character: neither piece is a marker, both together are the text.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.memo import Memo

#: Plane 15 is for private use: no tokenizer has a token for it, and no text should have these characters.
_FIRST_STAND_IN = 0xF0000
_STAND_IN = re.compile("[\U000f0000-\U000ffffd]")

#: What stands in a marker's place where only the template's own tokens are of interest.
_HARMLESS = "x"

#: Texts up to this long are encoded once: role headers and newlines, of which renderers ask several a turn.
_SHORT_CHARS = 32
_REMEMBERED = 1_024

#: What a fast encoder is tried on, beside some markers: spaces at the ends, newlines, other scripts, nothing.
_TRIALS = ("", " a ", "user\nHello,  world!\n", "\n\n", "Grüße, 世界 👋\tx", "a" * 50, "wörd 12\n" * 600)

_MARKERS_TRIED = 64

#: Whose texts come from outside: what the others say is the run's own, and may hold markers on purpose.
_TYPED_BY = ("user", "tool")

#: Written before a piece that goes on within a text, by tokenizers that begin each text with a space of their own.
_CARRIER = "\n"

#: What sentence pieces write for a space, and cannot tell from one.
_SPACE = "▁"

#: What our own parser reads (`rollout.codec.readers`), whether or not the template writes it.
_PARSED = ("<think>", "</think>", "<tool_call>", "</tool_call>")


class NotLiteral(Exception):
    """Special-token text cannot be kept as text here; the message says why."""


class LiteralTokenizer:
    """A Hugging Face tokenizer that can keep markers in messages as text. Everything else is passed on.

    A marker is a token that the tokenizer's files call special, or an added token that the chat template or
    the renderer writes itself or that our parser reads: Qwen's `<think>` is one, HTML tags among Gemma's are not.
    """

    __call__ = None
    """No offsets: renderers ask for them to mark what is content, at twice the cost, and nobody here reads that."""

    def __init__(self, tokenizer: Any, *, literal: bool = True) -> None:
        """`literal` keeps typed markers as text; else they become the tokens that they name."""
        self._tokenizer = tokenizer
        self._literal = literal
        self.unk_token_id: int | None = tokenizer.unk_token_id  # here, since transformers looks it up anew each time
        self._encoded = Memo[str, list[int]](_REMEMBERED)
        self._watched: list[tuple[str, list[int]]] | None = None
        self._reveals = False
        """Whether private characters stand for markers now; else they are text like any other."""
        self._ids = Memo[str, Any](_REMEMBERED)
        self._added: dict[str, int] = {}
        self._markers: dict[str, int] = {}
        self._strips: dict[str, tuple[bool, bool]] = {}
        """Added tokens that swallow the space before them, behind them."""
        template = str(tokenizer.chat_template or "")
        for index, token in tokenizer.added_tokens_decoder.items():
            self._added[token.content] = index
            if getattr(token, "lstrip", False) or getattr(token, "rstrip", False):
                self._strips[token.content] = token.lstrip, token.rstrip
            if token.special or token.content in template or token.content in _PARSED:
                self._markers[token.content] = index
        self._encoder, self._decoder = _fast_ways(tokenizer, list(self._markers)[:_MARKERS_TRIED])
        self._begins_with_space = self._decoder([*self._encoder("a"), *self._encoder("b")]) != "ab"
        """Whether each text that is encoded gets a space in front, as sentence pieces do."""
        self._loses_bars = self._decoder(self._encoder(f"a{_SPACE}b")) == "a b"
        """Whether `▁` is a space."""
        self._compile()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        if self._watched is not None:
            ids = self._encode_any(text, add_special_tokens, kwargs)
            self._watched.append((text, ids))
            return ids
        return self._encode_any(text, add_special_tokens, kwargs)

    def plain_ids(self, text: str) -> list[int]:
        """The ids of a text in which there are no stand-ins, no special tokens added."""
        return self._encoder(text) if text else []

    def is_plain(self, text: str) -> bool:
        """Whether a text has no marker in it."""
        return not self._pattern.search(text)

    def has_typed_markers(self, messages: Sequence[Message]) -> bool:
        """Whether a text holds a marker that is to stay text."""
        return self._literal and any(
            message.role in _TYPED_BY and not self.is_plain(message.text) for message in messages
        )

    @contextlib.contextmanager
    def revealing(self) -> Iterator[None]:
        """Private characters in what is encoded meanwhile stand for the markers that `hide` took out."""
        self._reveals = True
        try:
            yield
        finally:
            self._reveals = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[tuple[str, list[int]]]]:
        """Gives a list that fills with every text that is encoded meanwhile, and its ids."""
        self._watched = []
        try:
            yield self._watched
        finally:
            self._watched = None

    def markers_in(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The markers among ids, in their order."""
        return tuple(filter(self._marker_ids.__contains__, ids))

    def _encode_any(self, text: str, add_special_tokens: bool, kwargs: dict[str, Any]) -> list[int]:
        if self._reveals and _STAND_IN.search(text):
            return self._encode_literal(text)
        self._saw(text)
        if add_special_tokens or kwargs:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, **kwargs))
        if len(text) > _SHORT_CHARS:
            return self._encoder(text)
        if (known := self._encoded.get(text)) is None:
            known = self._encoded[text] = self._encoder(text)
        return known.copy()  # whoever asked may change it

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """The ids' text. Renderers that would find each token's place by it are told that they cannot.

        Where a text has U+FFFD in it they decode every beginning of it: a minute for 30,000 tokens that a tool fetched.
        """
        if "clean_up_tokenization_spaces" in kwargs:
            raise NotImplementedError("no offsets: see `__call__`")
        if skip_special_tokens or kwargs:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, **kwargs))
        return self._decoder(list(ids))

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if tokens not in self._ids:
            self._saw(tokens)
            self._ids[tokens] = self._tokenizer.convert_tokens_to_ids(tokens)
        return self._ids[tokens]

    def hide(self, messages: Sequence[Message], but: Collection[str] = ()) -> list[Message] | None:
        """The messages with private characters for markers, but for some; None where they hold none.

        Raises NotLiteral where a text has such characters itself.
        """
        if not self._literal:
            return None
        by = {**self._stand_ins, **{marker: marker for marker in but}} if but else self._stand_ins
        found = [self._replaced(message, by) if message.role in _TYPED_BY else message for message in messages]
        if all(new is old for new, old in zip(found, messages, strict=True)):
            return None
        if any(_STAND_IN.search(message.text) for message in messages):
            raise NotLiteral("a text has both special-token text and characters of Unicode's plane 15")
        return found

    def harmless(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with a letter for each marker."""
        by = dict.fromkeys(self._stand_ins, _HARMLESS)
        return [self._replaced(message, by) if message.role in _TYPED_BY else message for message in messages]

    def markers_with(self, texts: Collection[str]) -> frozenset[str]:
        """The markers in which one of these texts stands."""
        return frozenset(marker for marker in self._markers if any(text in marker for text in texts))

    def is_literal(self, ids: Sequence[int], harmless_ids: Sequence[int]) -> bool:
        """Whether ids have the markers of the same messages without special text, and no other."""
        return self.markers_in(ids) == self.markers_in(harmless_ids)

    def check(self, ids: Sequence[int], harmless_ids: Sequence[int]) -> None:
        """Proves that every special text is there, and as text. Raises NotLiteral."""
        if _STAND_IN.search(self._tokenizer.decode(ids)):
            raise NotLiteral("the renderer encodes text by another tokenizer")
        if not self.is_literal(ids, harmless_ids):
            raise NotLiteral("special-token text in a message would become a special token")

    def is_same_text(self, ids: Sequence[int], other: Sequence[int]) -> bool:
        """Whether two lists of ids are of one text. Whitespace does not count: a marker's token may swallow it."""
        one, two = ("".join(self._decoder(list(each)).replace(_SPACE, " ").split()) for each in (ids, other))
        return one == two or ((made := self._normal(one)) is not None and made == self._normal(two))

    def _saw(self, text: str) -> None:
        """Notes a marker that a renderer uses."""
        if text in self._added and text not in self._markers:
            self._markers[text] = self._added[text]
            self._compile()

    def _compile(self) -> None:
        self._stand_ins = {text: chr(_FIRST_STAND_IN + i) for i, text in enumerate(self._markers)}
        self._texts = {char: text for text, char in self._stand_ins.items()}
        self._marker_ids = frozenset(self._markers.values())
        longest_first = sorted(self._markers, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _replaced(self, message: Message, by: dict[str, str]) -> Message:
        def replace(text: str) -> str:
            return self._pattern.sub(lambda match: by[match[0]], text)

        content: Any = message.content
        if isinstance(content, str):
            content = replace(content)
        elif content is not None:
            content = tuple(
                {**part, "text": replace(part["text"])} if isinstance(part.get("text"), str) else part
                for part in content
            )
        return message if content == message.content else msgspec.structs.replace(message, content=content)

    def _encode_literal(self, text: str) -> list[int]:
        plain = _STAND_IN.sub(_HARMLESS, text)
        whole = self._encoder(plain)
        # Encoding piece by piece must not change the text around the pieces. Behind a marker some begin with a space.
        for goes_on in (False, True):
            if self._by_pieces(plain, goes_on) == whole:
                return self._by_pieces(text, goes_on)
        raise NotLiteral("this tokenizer's special tokens change the text around them")

    def _by_pieces(self, text: str, goes_on: bool) -> list[int]:
        """Ids of a rendered text: the template's markers as tokens, what lies between as text.

        `goes_on` has what stands behind a marker encoded as what goes on, not as what begins.
        """
        out: list[int] = []
        at = 0
        for match in self._pattern.finditer(text):
            before, behind = self._strips.get(match[0], (False, False))
            piece = text[at : match.start()]
            out += self._plain(piece.rstrip() if before else piece, goes_on and at > 0)
            out.append(self._markers[match[0]])
            at = match.end()
            if behind:
                at = len(text) - len(text[at:].lstrip())
        return out + self._plain(text[at:], goes_on and at > 0)

    def _plain(self, text: str, goes_on: bool) -> list[int]:
        """Ids of a text in which no marker is a token."""
        out: list[int] = []
        piece, at = "", 0
        for match in _STAND_IN.finditer(text):
            marker = self._texts[match[0]]
            out += self._piece(piece + text[at : match.start()] + marker[0], goes_on or at > 0)
            piece, at = marker[1:], match.end()
        ids = out + self._piece(piece + text[at:], goes_on or at > 0)
        if out and not self._is_text_of(ids, _STAND_IN.sub(lambda match: self._texts[match[0]], text)):
            raise NotLiteral("this tokenizer does not give back a text that it encoded in two pieces")
        return ids

    def _piece(self, text: str, goes_on: bool) -> list[int]:
        """Ids of a piece of a text. One that goes on has no space in front that is not its own."""
        if not (goes_on and self._begins_with_space and text):
            return self.plain_ids(text)
        carrier, ids = self.plain_ids(_CARRIER), self.plain_ids(_CARRIER + text)
        if ids[: len(carrier)] != carrier:
            raise NotLiteral("this tokenizer joins a newline to the text behind it")
        return ids[len(carrier) :]

    def _is_text_of(self, ids: list[int], text: str) -> bool:
        """Whether ids are of a text, or of what the tokenizer itself makes of it.

        Qwen's composes characters (NFC), and to sentence pieces `▁` is a space.
        """
        wanted = text.replace(_SPACE, " ") if self._loses_bars else text
        if self._begins_with_space:  # and the first is taken off what is decoded: so it stands behind something here
            given = self._decoder([*self.plain_ids(_CARRIER), *ids]).removeprefix(_CARRIER)
            return given in (wanted, f" {wanted}")
        given = self._decoder(ids)
        return given == wanted or given == self._normal(text)

    def _normal(self, text: str) -> str | None:
        """What the tokenizer makes of a text before it encodes it; None where it makes nothing of it."""
        normalizer = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "normalizer", None)
        return None if normalizer is None else str(normalizer.normalize_str(text))


def _fast_ways(tokenizer: Any, markers: Sequence[str]) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    """text -> ids without special tokens added, and ids -> text, past transformers' wrapper where that changes nothing.

    The wrapper takes 40 µs a call, the tokenizer under it 3 for a short text. Tokenizers that are not `tokenizers`
    underneath, or whose classes do something of their own, keep their wrapper.
    """

    def slow(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def slow_text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return slow, slow_text

    def fast(text: str) -> list[int]:
        # A batch of one: by itself a text would be encoded without letting any other thread run (0.26 s for 100,000
        # tokens), and with the places of its tokens, which takes a sixth more.
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def fast_text(ids: list[int]) -> str:
        text: str = backend.decode(ids, skip_special_tokens=False)
        return text

    slow("a")  # the wrapper sets what the tokenizer is left with: no truncation, no padding
    trials = [*_TRIALS, *(f"a {marker} b" for marker in markers)]
    try:
        encoded = [slow(text) for text in trials]
        same = all(fast(text) == ids for text, ids in zip(trials, encoded, strict=True))
        same_text = all(fast_text(ids) == slow_text(ids) for ids in encoded)
    except Exception:  # a backend with an interface of its own
        return slow, slow_text
    return fast if same else slow, fast_text if same_text else slow_text
