"""Mistral's own encoder, from the installed package `mistral-common` (Apache-2.0): the measure of its prompts."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit.models import PACKAGES, Model

#: Files of the package for versions whose vocabulary is sentence pieces.
_PIECES = {"v3": "mistral_instruct_tokenizer_240323.model.v3", "v7": "mistral_instruct_tokenizer_241114.model.v7"}
_TEKKEN = "tekken_240911.json"


class Encoder:
    """Encodes conversations as Mistral does."""

    def __init__(self, model: Model) -> None:
        self._encoder = _encoder(model.mistral or "", model.vocabulary, tuple(model.placed))

    def __call__(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """A prompt's ids. Raises what the package raises."""
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        request = ChatCompletionRequest.from_openai(messages=list(messages), tools=list(tools) or None)
        return list(self._encoder.encode_chat_completion(request).tokens)


@functools.cache
def _encoder(version: str, vocabulary: str, markers: Sequence[str]) -> Any:
    if str(PACKAGES) not in sys.path:  # behind everything else: nothing that is installed is taken from there
        sys.path.append(str(PACKAGES))
    from mistral_common.protocol.instruct.normalize import get_normalizer
    from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
    from mistral_common.tokens.tokenizers import instruct
    from mistral_common.tokens.tokenizers.base import TokenizerVersion
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    data = PACKAGES / "mistral_common" / "data"
    if vocabulary != "mistral_v3":
        return MistralTokenizer.from_file(str(data / _PIECES[version]), mode=ValidationMode.test)
    parts = json.loads(Path(data / _TEKKEN).read_bytes())
    # The package has this vocabulary's file for v3 only; those of later versions differ in their special tokens.
    special = [
        {"rank": at, "token_str": text, "is_control": True}
        for at, text in enumerate(("<unk>", "<s>", "</s>", *markers))
    ]
    config = parts["config"]
    tekken = Tekkenizer(
        parts["vocab"],
        special,
        config["pattern"],
        config["default_vocab_size"],
        config["default_num_special_tokens"],
        TokenizerVersion(version),
    )
    made = getattr(instruct, f"InstructTokenizer{version.upper()}")(tekken)
    validator = get_validator(tekken.version, mode=ValidationMode.test)
    return MistralTokenizer(made, validator=validator, request_normalizer=get_normalizer(tekken.version, None))
