"""Models as people train them: the real chat template or one in its style, a real vocabulary, and what reads them.

Templates named `trl:` are read at test time from the installed package `trl` (Apache-2.0), where they stand as their
models ship them. Those named `ours:` are in `chat_templates` beside this file, written in their models' style from what
these document. Vocabularies are those of `benchmarks.kit.vocabularies`; `small` is the kit's own, for models whose
vocabulary no package has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

PACKAGES = Path(__file__).resolve().parent.parent.parent / "build" / "real"
"""Where `make real` installs the packages, without what they need for other things than these."""

OURS = Path(__file__).resolve().parent / "chat_templates"

THINK = ("<think>\n", "\n</think>\n\n")


#: Templates that vLLM 0.32 hands parts, by its own detection (`_detect_content_format`).
_PARTS = frozenset(
    [
        *("diffusion_gemma", "gemma3", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "glm4moe"),
        *("granite-4", "idefics3", "kimi-k2", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "llama-4", "llava_next"),
        *(
            "muse_glimmer",
            "qwen2_5_vl",
            "qwen3_5_nothink",
            "qwen3_5_think",
            "qwen3_6",
            "qwen3_8",
            "qwen3_vl",
            "smolvlm",
        ),
    ]
)


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model, and how it is tried."""

    name: str
    """Its name on the hub, or the part of it that tells its kind."""
    template: str
    """`trl:NAME` or `ours:NAME`."""
    vocabulary: str
    """A name of `vocabularies`, or `small`."""
    reader: str | None
    """The reader that is right; None where the model writes no calls in any format of its own."""
    stops: Sequence[str]
    """Tokens that end a turn, as generation_config has them; the first is the tokenizer's eos."""
    bos: str | None = None
    markers: Sequence[str] = ()
    """Added tokens beside the vocabulary's own."""
    rstrips: bool = False
    """Whether its markers swallow the space behind them, as Phi-3's do."""
    args: Mapping[str, Any] = {}
    """Arguments of the template."""
    writes: tuple[str, str] | None = None
    """How it writes calls, for a template that renders none: (reader, variant), as the readers' tests write them."""
    thinks: tuple[str, str] | None = None
    """What it writes around reasoning."""
    arguments_as_text: bool = False
    """Whether its template joins arguments to text."""
    unwritable: Sequence[str] = ()
    """Arguments of the kit's calls whose values its template writes so that nobody could read them."""
    system: bool = True
    """Whether its template takes a system message."""
    placed: Mapping[str, int] = {}
    """Markers on ids that its vocabulary keeps free for them."""
    mistral: str | None = None
    """The version of Mistral's own encoder, which is then the measure in the template's place."""

    @property
    def takes_parts(self) -> bool:
        """Whether servers hand its template content as a list of parts, tools' results excepted."""
        return self.template.partition(":")[2] in _PARTS

    @property
    def jinja(self) -> str:
        """The template."""
        where, _, name = self.template.partition(":")
        folder = OURS if where == "ours" else PACKAGES / "trl" / "chat_templates"
        return (folder / f"{name}.jinja").read_text()


_CHATML = ("<|im_end|>", "<|endoftext|>")
_QWEN_TOOLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_LLAMA = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_DEEPSEEK = "<｜end▁of▁sentence｜>"
_GEMMA = ("<end_of_turn>", "<eos>")
_GEMMA4 = ("<turn|>", "<eos>", "<|tool_response>")
_GEMMA4_MARKERS = (
    *("<|turn>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<tool_response|>"),
    *("<|channel>", "<channel|>", "<|think|>", '<|"|>'),
)
_LFM2_MARKERS = (
    *("<|startoftext|>", "<|im_start|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>"),
    *("<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>"),
)
_COHERE_MARKERS = (
    *("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>"),
    *("<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
)
_PHI_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")
_TEKKEN = (
    "[INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> "
    "[IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)
_TEKKEN_11 = f"{_TEKKEN} [ARGS] [CALL_ID] [AUDIO] [BEGIN_AUDIO] [TRANSCRIBE] [THINK] [/THINK]"
_LARGE = {"[SYSTEM_PROMPT]": 16, "[/SYSTEM_PROMPT]": 17, "[TOOL_CONTENT]": 18}


def _qwen(name: str, template: str, reader: str | None, **more: Any) -> Model:
    return Model(name=name, template=f"trl:{template}", vocabulary="qwen3", reader=reader, stops=_CHATML, **more)


def _gemma(name: str, template: str, stops: Sequence[str] = _GEMMA, **more: Any) -> Model:
    return Model(name=name, template=f"trl:{template}", vocabulary="gemma3", stops=stops, bos="<bos>", **more)


def _llama(name: str, template: str, **more: Any) -> Model:
    more = {"reader": "llama", "stops": _LLAMA, **more}
    return Model(name=name, template=template, vocabulary="llama3.2", bos="<|begin_of_text|>", **more)


def _nemotron_3(name: str, template: str, **more: Any) -> Model:
    return Model(
        name=f"nvidia/NVIDIA-Nemotron-{name}",
        template=f"trl:{template}",
        vocabulary="mistral_v3",
        reader="qwen-xml",
        stops=("<|im_end|>", "</s>"),
        markers=("<|im_start|>", *_QWEN_TOOLS),
        **{"thinks": THINK, **more},
    )


def _lfm2(name: str, template: str, **more: Any) -> Model:
    markers = (*_LFM2_MARKERS, "<think>", "</think>", "<image>")
    return Model(
        name=f"LiquidAI/{name}",
        template=f"trl:{template}",
        vocabulary="small",
        reader="lfm2",
        stops=("<|im_end|>",),
        bos="<|startoftext|>",
        markers=markers,
        **more,
    )


def _tekken(markers: str) -> Mapping[str, int]:
    """Tekken's special ids behind its first three, in their order."""
    return {text: 3 + at for at, text in enumerate(markers.split())}


def _mistral(name: str, version: str, vocabulary: str, **more: Any) -> Model:
    template = "mistral-v3-tekken" if version == "v3" and vocabulary == "mistral_v3" else f"mistral-{version}"
    return Model(
        name=f"mistralai/{name}",
        template=f"ours:{template}",
        vocabulary=vocabulary,
        reader="mistral",
        stops=("</s>",),
        bos="<s>",
        mistral=version,
        **more,
    )


MODELS: Sequence[Model] = (
    _qwen("Qwen/Qwen2.5-7B-Instruct", "qwen2_5", "hermes"),
    _qwen("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", "hermes", writes=("hermes", "")),
    _qwen("Qwen/Qwen3-8B", "qwen3", "hermes", thinks=THINK),
    _qwen("Qwen/Qwen3-8B, no thinking", "qwen3", "hermes", args={"enable_thinking": False}),
    _qwen("Qwen/Qwen3-4B-Instruct-2507", "qwen3_instruct_2507", "hermes"),
    _qwen("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl", "hermes"),
    _qwen("Qwen/Qwen3.5-2B", "qwen3_5_nothink", "qwen-xml"),
    _qwen("Qwen/Qwen3.5-9B", "qwen3_5_think", "qwen-xml", thinks=THINK),
    _qwen("Qwen/Qwen3.5-9B, no thinking", "qwen3_5_think", "qwen-xml", args={"enable_thinking": False}),
    _qwen("Qwen/Qwen3.6-35B-A3B", "qwen3_6", "qwen-xml", thinks=THINK),
    _qwen("Qwen/Qwen3.8-27B", "qwen3_8", "qwen-xml", thinks=THINK),
    _qwen(
        "Qwen/Qwen3.8-27B, thinking preserved", "qwen3_8", "qwen-xml", thinks=THINK, args={"preserve_thinking": True}
    ),
    _llama("meta-llama/Meta-Llama-3-8B-Instruct", "trl:llama3", writes=("llama", "")),
    _llama("meta-llama/Llama-3.1-8B-Instruct", "trl:llama3_1"),
    _llama("meta-llama/Llama-3.1-8B-Instruct, own tools", "trl:llama3_1", args={"builtin_tools": ["brave_search"]}),
    _llama("meta-llama/Llama-3.2-3B-Instruct", "trl:llama3_2"),
    _llama("meta-llama/Llama-3.2-3B-Instruct, tools first", "trl:llama3_2", args={"tools_in_user_message": False}),
    _llama("Salesforce/Llama-xLAM-2-8b-fc-r", "ours:xlam-2", reader="xlam"),
    _llama(
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "ours:llama-4",
        reader="llama4",
        stops=("<|eot|>", "<|eom|>", "<|end_of_text|>"),
        markers=("<|header_start|>", "<|header_end|>", "<|python_start|>", "<|python_end|>"),
    ),
    Model(
        name="deepseek-ai/DeepSeek-V3",
        template="trl:deepseekv3",
        vocabulary="deepseek_v3",
        reader="deepseek",
        stops=(_DEEPSEEK,),
        bos="<｜begin▁of▁sentence｜>",
        thinks=THINK,
        arguments_as_text=True,
    ),
    Model(
        name="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        template="trl:deepseek_r1_distill",
        vocabulary="qwen3",
        reader="deepseek",
        stops=(_DEEPSEEK,),
        bos="<｜begin▁of▁sentence｜>",
        markers=("<｜User｜>", "<｜Assistant｜>"),
        thinks=THINK,
        writes=("deepseek", "V3"),
        arguments_as_text=True,
    ),
    Model(
        name="moonshotai/Kimi-K2-Instruct",
        template="ours:kimi-k2",
        vocabulary="kimi_k2",
        reader="kimi",
        stops=("<|im_end|>", "[EOS]"),
        bos="[BOS]",
    ),
    Model(
        name="zai-org/GLM-4.5-Air",
        template="trl:glm4moe",
        vocabulary="glm4",
        reader="glm",
        stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
        thinks=("<think>", "</think>\n"),
    ),
    Model(
        name="zai-org/GLM-4.5-Air, no thinking",
        template="trl:glm4moe",
        vocabulary="glm4",
        reader="glm",
        stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
        args={"enable_thinking": False},
    ),
    Model(
        name="MiniMaxAI/MiniMax-M2",
        template="ours:minimax-m2",
        vocabulary="small",
        reader="minimax",
        stops=("[e~[",),
        markers=("]~!b[", "]~b]", "<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"),
        thinks=THINK,
    ),
    Model(
        name="MiniMaxAI/MiniMax-M1-40k",
        template="ours:minimax-m1",
        vocabulary="small",
        reader="minimax-m1",
        stops=("<end_of_sentence>",),
        markers=("<begin_of_document>", "<beginning_of_sentence>"),
    ),
    Model(
        name="openai/gpt-oss-20b",
        template="trl:gptoss",
        vocabulary="gpt_oss",
        reader="harmony",
        stops=("<|return|>", "<|call|>", "<|endoftext|>"),
        thinks=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    ),
    Model(
        name="openai/gpt-oss-20b, high effort",
        template="trl:gptoss",
        vocabulary="gpt_oss",
        reader="harmony",
        stops=("<|return|>", "<|call|>", "<|endoftext|>"),
        args={"reasoning_effort": "high"},
        thinks=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    ),
    _gemma("google/gemma-2-9b-it", "gemma", reader="gemma", writes=("gemma", "fence"), system=False),
    _gemma("google/gemma-3-4b-it", "gemma3", reader="gemma", writes=("gemma", "fence")),
    *(
        _gemma(
            f"google/gemma-4-E2B-it, {name}",
            template,
            _GEMMA4,
            reader="gemma4",
            markers=_GEMMA4_MARKERS,
            thinks=("<|channel>thought\n", "\n<channel|>"),
        )
        for name, template in (
            ("first", "gemma4_v2"),
            ("second", "gemma4_v3"),
            ("third", "gemma4"),
            ("fourth", "gemma4_v4"),
            ("fifth", "gemma4_v5"),
        )
    ),
    _gemma(
        "google/gemma-4-E2B-it, thinking",
        "gemma4_v5",
        _GEMMA4,
        reader="gemma4",
        markers=_GEMMA4_MARKERS,
        thinks=("<|channel>thought\n", "\n<channel|>"),
        args={"enable_thinking": True},
    ),
    _gemma("google/diffusiongemma-26B-A4B-it", "diffusion_gemma", _GEMMA4, reader="gemma4", markers=_GEMMA4_MARKERS),
    Model(
        name="ibm-granite/granite-3.3-8b-instruct",
        template="ours:granite-3.3",
        vocabulary="small",
        reader="granite",
        stops=("<|end_of_text|>",),
        markers=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
    ),
    Model(
        name="ibm-granite/granite-3.3-8b-instruct, thinking",
        template="ours:granite-3.3",
        vocabulary="small",
        reader="granite",
        stops=("<|end_of_text|>",),
        args={"thinking": True},
        markers=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
    ),
    Model(
        name="ibm-granite/granite-4.0-h-small",
        template="ours:granite-4",
        vocabulary="phi4",
        reader="hermes",
        stops=("<|end_of_text|>",),
        markers=("<|start_of_role|>", "<|end_of_role|>", *_QWEN_TOOLS[:4]),
    ),
    Model(
        name="microsoft/Phi-3-mini-4k-instruct",
        template="trl:phi3",
        vocabulary="llama2",
        reader="phi",
        stops=("<|end|>", "<|endoftext|>", "<|assistant|>"),
        bos="<s>",
        markers=_PHI_MARKERS,
        rstrips=True,
        writes=("phi", "functools"),
    ),
    Model(
        name="microsoft/Phi-3.5-mini-instruct",
        template="trl:phi3_5",
        vocabulary="llama2",
        reader="phi",
        stops=("<|end|>", "<|endoftext|>", "<|assistant|>"),
        bos="<s>",
        markers=_PHI_MARKERS,
        rstrips=True,
        writes=("phi", "functools"),
    ),
    Model(
        name="microsoft/Phi-4-mini-instruct",
        template="ours:phi-4-mini",
        vocabulary="gpt_oss",
        reader="phi",
        stops=("<|end|>", "<|endoftext|>"),
        markers=(*_PHI_MARKERS, "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"),
    ),
    Model(
        name="microsoft/phi-4",
        template="ours:phi-4",
        vocabulary="phi4",
        reader="phi",
        stops=("<|im_end|>", "<|endoftext|>"),
        writes=("phi", "functools"),
    ),
    _nemotron_3("3-Nano-30B-A3B-BF16", "nemotron_3_nano"),
    _nemotron_3("3-Nano-30B-A3B-BF16, no thinking", "nemotron_3_nano", args={"enable_thinking": False}, thinks=None),
    _nemotron_3("3-Super-120B-A12B-BF16", "nemotron_3_super"),
    _nemotron_3("3-Super-120B-A12B-BF16, low effort", "nemotron_3_super", args={"low_effort": True}),
    _nemotron_3("3-Ultra-550B-A55B-BF16", "nemotron_3_ultra"),
    _nemotron_3("3.5-Lightning-30B-A3B-BF16", "nemotron_3_5_lightning"),
    Model(
        name="nvidia/NVIDIA-Nemotron-Nano-9B-v2",
        template="ours:nemotron-nano-v2",
        vocabulary="mistral_v3",
        reader="nemotron",
        stops=("<SPECIAL_12>", "</s>"),
        bos="<s>",
        markers=("<SPECIAL_10>", "<SPECIAL_11>", "<think>", "</think>"),
        thinks=THINK,
    ),
    _mistral("Mistral-7B-Instruct-v0.3", "v3", "mistral_v2"),
    _mistral("Mistral-Nemo-Instruct-2407", "v3", "mistral_v3", placed=_tekken(_TEKKEN)),
    _mistral("Mistral-Large-Instruct-2411", "v7", "mistral_v2", placed=_LARGE),
    _mistral("Mistral-Small-3.2-24B-Instruct-2506", "v11", "mistral_v3", placed=_tekken(_TEKKEN_11)),
    _mistral("Magistral-Small-2509", "v13", "mistral_v3", placed=_tekken(_TEKKEN_11), thinks=("[THINK]", "[/THINK]")),
    Model(
        name="allenai/Olmo-3-7B-Instruct",
        template="ours:olmo-3",
        vocabulary="olmo2",
        reader="olmo",
        stops=("<|endoftext|>", "<|im_end|>"),
        markers=("<functions>", "</functions>", "<function_calls>", "</function_calls>"),
    ),
    Model(
        name="CohereLabs/aya-expanse-8b",
        template="trl:cohere",
        vocabulary="small",
        reader="cohere",
        stops=("<|END_OF_TURN_TOKEN|>",),
        bos="<BOS_TOKEN>",
        markers=_COHERE_MARKERS,
        writes=("cohere", ""),
    ),
    Model(
        name="CohereLabs/tiny-aya-earth",
        template="trl:cohere2",
        vocabulary="small",
        reader="cohere",
        stops=("<|END_OF_TURN_TOKEN|>",),
        bos="<BOS_TOKEN>",
        markers=_COHERE_MARKERS,
        writes=("cohere", ""),
    ),
    _lfm2("LFM2-1.2B", "lfm2", writes=("lfm2", "")),
    _lfm2("LFM2-1.2B, later", "lfm2_v2"),
    _lfm2("LFM2.5-230M", "lfm2_2_5", unwritable=("text",), thinks=("<think>", "</think>")),
    _lfm2("LFM2.5-230M, later", "lfm2_2_5_v2", unwritable=("text",), thinks=("<think>", "</think>")),
    _lfm2("LFM2.5-VL-3B", "lfm2_2_5_vl", thinks=("<think>", "</think>")),
    Model(
        name="HuggingFaceTB/SmolVLM-Instruct",
        template="trl:smolvlm",
        vocabulary="small",
        reader=None,
        stops=("<end_of_utterance>",),
        markers=("<|im_start|>", "<image>"),
    ),
    Model(
        name="HuggingFaceM4/Idefics3-8B-Llama3",
        template="trl:idefics3",
        vocabulary="llama3.2",
        reader="llama",
        stops=("<end_of_utterance>", "<|eot_id|>"),
        writes=("llama", ""),
        markers=("<image>",),
    ),
    Model(
        name="llava-hf/llava-v1.6-mistral-7b-hf",
        template="trl:llava_next",
        vocabulary="mistral_v2",
        reader="mistral",
        writes=("mistral", "v3"),
        stops=("</s>",),
        bos="<s>",
        markers=("<image>",),
    ),
    Model(
        name="meta-models/Muse-Glimmer-30B",
        template="trl:muse_glimmer",
        vocabulary="small",
        reader="atem",
        thinks=(" to=self<|message|>", "<|eom|><|start|>assistant"),
        stops=("<|eot|>",),
        bos="<|begin_of_text|>",
        markers=("<|start|>", "<|message|>", "<|eom|>", "<|patch|>", "<|video|>"),
    ),
)
