"""Real vocabularies as Hugging Face tokenizers, made at test time from the installed package `splintr-rs`.

It has each vocabulary's ranks and the model's own markers; the markers of its own that it adds behind them are left
out here. How a vocabulary splits text is the model's, too. Nothing of it is copied into this project. The package's
licence is MIT; the vocabularies have their models'.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

#: What is an added token and no special one, in the models that have it: its text is part of an answer.
_NOT_SPECIAL = re.compile(r"</?(think|tool_calls?|tool_response|arg_key|arg_value|answer|response|function_calls)>")

#: DeepSeek splits three times, one after the other. splintr keeps that to itself.
_DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

#: Byte-level vocabularies: how each splits text, by splintr's name of the pattern or as patterns of our own.
BYTE_LEVEL: Mapping[str, str | tuple[str, ...]] = {
    "qwen3": "QWEN2_PATTERN",
    "llama3.2": "LLAMA3_PATTERN",
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": "O200K_BASE_PATTERN",
    "glm4": "LLAMA3_PATTERN",
    "kimi_k2": "KIMI_PATTERN",
    "phi4": "LLAMA3_PATTERN",
    "olmo2": "LLAMA3_PATTERN",
    "mistral_v3": "MISTRAL_V3_PATTERN",
}

#: Vocabularies of sentence pieces, and before what they write a space: nothing, the beginning of a text, or every
#: stretch of text between markers.
PIECES: Mapping[str, Literal["never", "first", "always"]] = {
    "gemma3": "never",
    "llama2": "always",
    "mistral_v2": "first",
}

#: What Mistral's first vocabularies write for an id that is free.
_FREE = re.compile(rb"\[control_\d+\]")

#: `mistral_v3` is Tekken: 1,000 special ids come first, of which three are the vocabulary's own.
_TEKKEN_SPECIAL = 1_000
_TEKKEN_OWN = 3


def real_tokenizer(
    name: str,
    markers: Sequence[str] = (),
    *,
    eos: str,
    bos: str | None = None,
    chat_template: str | None = None,
    placed: Mapping[str, int] | None = None,
    rstrips: bool = False,
) -> Any:
    """A Hugging Face tokenizer over a real vocabulary, with these markers beside the model's own.

    `placed` have ids that the vocabulary keeps free for them. `rstrips` has the markers swallow the space behind them.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    serialized, own = _vocabulary(name, tuple((placed or {}).items()))
    backend = Tokenizer.from_str(serialized)
    names = dict.fromkeys([*own, *markers, eos, *([bos] if bos else [])])
    backend.add_tokens(
        [
            AddedToken(
                text, special=not _NOT_SPECIAL.match(text), normalized=False, rstrip=rstrips and text in (*markers, eos)
            )
            for text in names
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template)
    tokenizer.eos_token = eos
    if bos is not None:
        tokenizer.bos_token = bos
    return tokenizer


def splintr_tokenizer(name: str) -> Any:
    """splintr's own tokenizer of a vocabulary: the measure of what is made of it here."""
    import splintr

    return splintr.Tokenizer.from_pretrained(name)


@functools.cache
def _vocabulary(name: str, placed: tuple[tuple[str, int], ...] = ()) -> tuple[str, list[str]]:
    """A tokenizer's JSON, and its model's own markers in the order of their ids."""
    import splintr

    source, size = splintr_tokenizer(name), splintr.base_vocab_size(name)
    markers = {text: index for text, index in source.special_tokens().items() if index < size}
    first = 0
    if name == "mistral_v3":  # where splintr writes markers of its own over the model's special ids
        first = _TEKKEN_SPECIAL
        markers = {text: index for text, index in markers.items() if index < _TEKKEN_OWN}
    markers |= placed
    taken = set(markers.values())
    tokens = {index: _bytes_of(source, index) for index in range(first, size) if index not in taken}
    tokens = {index: text for index, text in tokens.items() if not _FREE.fullmatch(text)}
    backend = _of_pieces(name, tokens, markers) if name in PIECES else _of_bytes(name, tokens, markers)
    return backend.to_str(), sorted(markers, key=markers.__getitem__)


def _bytes_of(source: Any, index: int) -> bytes:
    """A token's bytes; none for an id that the model keeps free."""
    try:
        return bytes(source.decode_token_bytes(index))
    except ValueError:
        return b""


def _without_holes(vocab: dict[str, int], size: int) -> dict[str, int]:
    """The vocabulary with a name for each free id, so that what is added comes behind all of them."""
    there = set(vocab.values())
    return vocab | {f"<SPECIAL_{index}>": index for index in range(size) if index not in there}


def _of_bytes(name: str, tokens: Mapping[int, bytes], markers: dict[str, int]) -> Any:
    """Byte-level BPE."""
    import splintr
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = _letters()
    vocab = {"".join(map(letters.__getitem__, text)): index for index, text in tokens.items() if text}
    named = BYTE_LEVEL[name]
    patterns = (getattr(splintr, named),) if isinstance(named, str) else named
    # A token that no two others make is never merged, though it stands in the vocabulary: whole words are looked up.
    backend = Tokenizer(
        models.BPE(
            vocab=_without_holes(vocab | markers, splintr.base_vocab_size(name)),
            merges=_merges(vocab),
            ignore_merges=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _of_pieces(name: str, tokens: Mapping[int, bytes], markers: dict[str, int]) -> Any:
    """Sentence pieces: BPE over letters, bytes for what has no piece."""
    import splintr
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    first = next(at for at in tokens if all(tokens.get(at + byte) == bytes([byte]) for byte in range(256)))
    vocab = {f"<0x{byte:02X}>": first + byte for byte in range(256)}
    pieces = {
        text.decode().replace(" ", "▁"): index
        for index, text in tokens.items()
        if text and not first <= index < first + 256
    }
    vocab |= pieces
    spaced = PIECES[name]
    merges = _merges(pieces)
    if spaced != "never":  # whose runs of spaces have the lowest score
        merges.sort(key=lambda pair: not (pair[0] + pair[1]).strip("▁"))
    backend = Tokenizer(
        models.BPE(
            vocab=_without_holes(vocab | markers, splintr.base_vocab_size(name)),
            merges=merges,
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    if spaced == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        prepend = [normalizers.Prepend("▁")] if spaced == "always" else []
        backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if spaced != "never" else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _merges(vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, those that make lower ids first: a rank is an id."""
    pairs = [
        (index, vocab[text[:at]], vocab[text[at:]], text[:at], text[at:])
        for text, index in vocab.items()
        for at in range(1, len(text))
        if text[:at] in vocab and text[at:] in vocab
    ]
    pairs.sort()
    return [(left, right) for *_, left, right in pairs]


def _letters() -> list[str]:
    """Byte-level BPE's letter for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]
