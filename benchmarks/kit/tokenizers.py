"""Small real tokenizers that hold a family's special tokens: no hub is asked, and none is large.

The ordinary tokens are those of the embedded model's tokenizer (byte-level BPE, every byte is one). gpt-oss's
renderer encodes with OpenAI's own library, whose vocabulary file is made here from the package `splintr-rs`.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transports.embedded import MODEL_DIR

#: Ordinary tokens of o200k_base: the special ones follow them.
_O200K_ORDINARY = 199_998


def small_tokenizer(markers: Iterable[str], *, eos: str | None = None, chat_template: str | None = None) -> Any:
    """A Hugging Face tokenizer with these markers. Those with a bar (`<|user|>`) are special, as in real families."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab, merges, pattern = _ordinary()
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [AddedToken(text, special="|" in text or "｜" in text, normalized=False) for text in dict.fromkeys(markers)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template)
    if eos is not None:
        tokenizer.eos_token = eos
    return tokenizer


@functools.cache
def _ordinary() -> tuple[dict[str, int], list[tuple[str, str]], Any]:
    """The embedded tokenizer's vocabulary without its added tokens, its merges, and how it splits text."""
    from tokenizers import Regex

    parts = json.loads((MODEL_DIR / "tokenizer.json").read_bytes())
    added = {token["content"] for token in parts["added_tokens"]}
    vocab = {text: index for text, index in parts["model"]["vocab"].items() if text not in added}
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in parts["model"]["merges"]
    ]
    return vocab, merges, Regex(parts["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"])


class Recorder:
    """Takes a tokenizer's place while a renderer is constructed, and notes the markers that it asks for."""

    name_or_path = ""
    chat_template = None
    unk_token_id = unk_token = None
    eos_token_id = 0
    all_special_tokens: Sequence[str] = ()

    def __init__(self) -> None:
        self.asked: list[str] = []

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        if isinstance(tokens, list):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if tokens not in self.asked:
            self.asked.append(tokens)
        return 100_000 + self.asked.index(tokens)

    def encode(self, text: str, **_: Any) -> list[int]:
        """Some families find a marker's id by encoding it."""
        return [self.convert_tokens_to_ids(text)]

    def decode(self, ids: Any, **_: Any) -> str:
        return ""


class HarmonyTokenizer:
    """OpenAI's own encoding of gpt-oss, with the few methods of a Hugging Face tokenizer that renderers use."""

    chat_template = None
    unk_token_id = None
    name_or_path = "gpt-oss"

    def __init__(self) -> None:
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(_o200k_folder())
        from openai_harmony import HarmonyEncodingName, load_harmony_encoding

        self._encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
        self.added_tokens_decoder = {
            self.convert_tokens_to_ids(text): _Marker(text) for text in self._encoding.special_tokens_set
        }
        self.eos_token_id = self.convert_tokens_to_ids("<|return|>")

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(self._encoding.encode(text, allowed_special="all"))

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return str(self._encoding.decode(list(ids)))

    def byte_token(self, byte: int) -> int:
        """The token of one byte: OpenAI's first 256 tokens are the bytes, in byte-level BPE's order."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        return [*printable, *(other for other in range(256) if other not in printable)].index(byte)

    def convert_tokens_to_ids(self, token: str) -> int:
        (index,) = self._encoding.encode(token, allowed_special="all")
        return int(index)


class _Marker:
    """What transformers' AddedToken says of a token."""

    special = True

    def __init__(self, content: str) -> None:
        self.content = content


@functools.cache
def _o200k_folder() -> Path:
    """A folder with `o200k_base.tiktoken`, which OpenAI's library would fetch from the network."""
    import splintr

    encoding = splintr.Tokenizer.from_pretrained("o200k_base")
    folder = Path(tempfile.mkdtemp(prefix="o200k-"))
    lines = (base64.b64encode(encoding.decode_bytes([i])) + b" %d\n" % i for i in range(_O200K_ORDINARY))
    (folder / "o200k_base.tiktoken").write_bytes(b"".join(lines))
    return folder
