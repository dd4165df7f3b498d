"""Real vocabularies encode as the package that has them does."""

from __future__ import annotations

import pytest

from benchmarks.kit.shapes import UNICODE
from benchmarks.kit.vocabularies import BYTE_LEVEL, PIECES, real_tokenizer, splintr_tokenizer

TEXTS = [
    "hello world",
    "a  b\n\n",
    "def f(x):\n        return x + 1  # don't\n\n\nEND",
    "東京 é naïve Straße 12345 3.14 中文字符 https://x.y/z?q=1&b=2 <div> \r\n x",
    'user\n\nHi there!!! `code` {"a": [1, 2, null]}',
    "I'LL go'S we'Ve " + "a" * 50,
    "rain,  weather    and   more     spaces",
    UNICODE,
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [each for each in PIECES if each != "gemma3"])
def test_sentence_pieces_are_the_vocabularys_own(name: str) -> None:
    """The ids of texts of many kinds, and the text of the ids."""
    _is_the_packages_own(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BYTE_LEVEL, "gemma3"])
def test_ids_are_the_vocabularys_own(name: str) -> None:
    """The same for those that take a second or more to make."""
    _is_the_packages_own(name)


def _is_the_packages_own(name: str) -> None:
    tokenizer, theirs = real_tokenizer(name, ["<|more|>"], eos="<|more|>"), splintr_tokenizer(name)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == theirs.encode_ordinary(text), text
        assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_markers_are_tokens_behind_the_vocabulary() -> None:
    """And those that the vocabulary keeps ids for stand on these."""
    tokenizer = real_tokenizer("mistral_v2", ["<|more|>"], eos="</s>", placed={"[SYSTEM_PROMPT]": 16})
    ids = tokenizer.encode("[INST]a[SYSTEM_PROMPT]<|more|></s>", add_special_tokens=False)
    assert (ids[0], ids[-3:]) == (3, [16, 32_768, 2])
