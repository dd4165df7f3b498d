"""All readers, and by what a model's name, or the family that renders it, tells which is its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rollout.chat.messages import Message
from rollout.codec.readers.atem import ATEM
from rollout.codec.readers.bare import LLAMA, XLAM
from rollout.codec.readers.base import Format
from rollout.codec.readers.blocks import COHERE, GRANITE, HERMES, HUNYUAN, MINIMAX_M1, NEMOTRON, PHI
from rollout.codec.readers.gemma import FUNCTIONGEMMA, GEMMA4
from rollout.codec.readers.harmony import HARMONY, INKLING
from rollout.codec.readers.mistral import MISTRAL
from rollout.codec.readers.pieces import Sampled
from rollout.codec.readers.plain import PLAIN
from rollout.codec.readers.pythonic import GEMMA, LFM2, LLAMA4, OLMO
from rollout.codec.readers.sections import DEEPSEEK, KIMI
from rollout.codec.readers.xml import DSML, GLM, HY3, MINIMAX, QWEN_XML, SEED

#: By name. Where several read a template's call, the first of them is taken: those with signs of their own come first.
FORMATS: dict[str, Format] = {
    reader.name: reader
    for reader in (
        *(
            ATEM,
            QWEN_XML,
            GLM,
            HY3,
            MINIMAX,
            DSML,
            SEED,
            DEEPSEEK,
            KIMI,
            HARMONY,
            INKLING,
            MISTRAL,
            GEMMA4,
            FUNCTIONGEMMA,
        ),
        *(NEMOTRON, COHERE, LFM2, OLMO, HUNYUAN, MINIMAX_M1, PHI, HERMES, GRANITE, LLAMA, LLAMA4, XLAM, GEMMA),
    )
}

#: What a model's name, its `model_type`, or its family in `renderers` tells. The first that fits.
_NAMES: Sequence[tuple[str, Format]] = (
    (r"xlam", XLAM),
    (r"hermes", HERMES),
    (r"deepseek-?(v3\.2|v4)", DSML),
    (r"deepseek", DEEPSEEK),
    (r"kimi|moonlight", KIMI),
    (r"minimax-?(text|m1|vl)", MINIMAX_M1),
    (r"minimax", MINIMAX),
    (r"gpt-?oss", HARMONY),
    (r"inkling", INKLING),
    (r"muse", ATEM),
    (r"laguna|glm|chatglm", GLM),
    (r"nemotron-?(3|nano-?3)|nemotron.*-3-nano|nemotron.*3\.5", QWEN_XML),
    (r"nemotron", NEMOTRON),
    (r"llama-?4", LLAMA4),
    (r"llama-?3|meta-llama|^llama$", LLAMA),
    (r"mistral|mixtral|devstral|codestral|ministral|magistral|pixtral|voxtral", MISTRAL),
    (r"functiongemma", FUNCTIONGEMMA),
    (r"gemma-?4", GEMMA4),
    (r"gemma", GEMMA),
    (r"granite-?(4|moe-?hybrid)", HERMES),
    (r"granite", GRANITE),
    (r"phi-?\d|^phi", PHI),
    # Qwen3.5 is `qwen3_5` as a `model_type`; Qwen3-8B is of 8 billion parameters.
    (r"prime-qwen3|qwen3-?coder|qwen-?3[.-]?[5-9](?![\d.]*b)", QWEN_XML),
    (r"qwen|qwq|smollm|exaone|ernie", HERMES),
    (r"hy3", HY3),
    (r"hunyuan|jamba", HUNYUAN),
    (r"cohere|command-?[ra]|aya", COHERE),
    (r"lfm-?2", LFM2),
    (r"olmo", OLMO),
    (r"seed", SEED),
)


def format_by_name(name: str) -> Format | None:
    """The reader that a name tells of; None where it tells of none."""
    lower = name.lower().replace("_", "-")
    return next((reader for pattern, reader in _NAMES if re.search(pattern, lower)), None)


class Several(Format):
    """A model that has the tokens of several formats: what stands first in an answer tells which it is."""

    def __init__(self, formats: Sequence[Format]) -> None:
        self.name = "+".join(each.name for each in formats)
        self.formats = tuple(formats)
        self.openers = tuple(dict.fromkeys(opener for each in formats for opener in each.openers))

    def read(self, sampled: Sampled) -> Message:
        """See `Reader`."""
        found = [
            (at, order)
            for order, each in enumerate(self.formats)
            for opener in each.openers
            if (at := sampled.text.find(opener)) >= 0
        ]
        return (self.formats[min(found)[1]] if found else self.formats[0]).read(sampled)


__all__ = ["FORMATS", "PLAIN", "Several", "format_by_name"]
