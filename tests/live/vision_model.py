"""A LLaVA around the embedded model, which is shown images by a tiny vision tower of random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from transports.embedded import MODEL_DIR

#: The tokenizer's `<|image_pad|>`, which stands for an image in what a client sends.
IMAGE = 2034

#: Pixels of an image's side, and of a patch's: 16 tokens an image.
SIDE, PATCH = 56, 14
HIDDEN, LAYERS, INNER, HEADS = 32, 2, 64, 2

_PLAIN = """{%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}"""
_PARTS = """{%- set content = message.content if message.content is string else '' %}
    {%- if message.content is not string and message.content %}
        {%- set shown = namespace(text='') %}
        {%- for part in message.content %}
            {%- if part.type == 'text' %}
                {%- set shown.text = shown.text + part.text %}
            {%- elif part.type == 'image' %}
                {%- set shown.text = shown.text + '<|vision_start|><|image_pad|><|vision_end|>' %}
            {%- endif %}
        {%- endfor %}
        {%- set content = shown.text %}
    {%- endif %}"""


def write_vision_model(folder: Path, seed: int = 0) -> Path:
    """Writes the folder; the same weights for the same seed."""
    shutil.copytree(MODEL_DIR, folder)
    text = json.loads((folder / "config.json").read_text())
    _write(folder / "config.json", _config(text))
    _write(folder / "preprocessor_config.json", _preprocessor())
    _write(folder / "processor_config.json", _processor())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert _PLAIN in tokenizer["chat_template"]
    tokenizer["chat_template"] = tokenizer["chat_template"].replace(_PLAIN, _PARTS)
    _write(folder / "tokenizer_config.json", tokenizer)
    weights = {f"language_model.{name}": value for name, value in load_file(MODEL_DIR / "model.safetensors").items()}
    weights |= _vision_weights(np.random.default_rng(seed), text["hidden_size"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2))


def _config(text: dict[str, Any]) -> dict[str, Any]:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": HIDDEN,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": IMAGE,
        "image_token_id": IMAGE,
        "image_seq_length": (SIDE // PATCH) ** 2,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": vision,
        "dtype": "float16",
    }


def _processor() -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<|image_pad|>",
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }


def _preprocessor() -> dict[str, Any]:
    side = {"height": SIDE, "width": SIDE}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "do_convert_rgb": True,
        "resample": 3,
    }


def _vision_weights(chance: np.random.Generator, text_hidden: int) -> dict[str, Any]:
    """CLIP's tower and LLaVA's projector."""
    tower = "vision_tower.vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}.embeddings.class_embedding": (HIDDEN,),
        f"{tower}.embeddings.patch_embedding.weight": (HIDDEN, 3, PATCH, PATCH),
        f"{tower}.embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2 + 1, HIDDEN),
        "multi_modal_projector.linear_1.weight": (text_hidden, HIDDEN),
        "multi_modal_projector.linear_1.bias": (text_hidden,),
        "multi_modal_projector.linear_2.weight": (text_hidden, text_hidden),
        "multi_modal_projector.linear_2.bias": (text_hidden,),
    }
    norms = [f"{tower}.pre_layrnorm", f"{tower}.post_layernorm"]
    for layer in range(LAYERS):
        at = f"{tower}.encoder.layers.{layer}"
        norms += [f"{at}.layer_norm1", f"{at}.layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{at}.self_attn.{name}.weight": (HIDDEN, HIDDEN), f"{at}.self_attn.{name}.bias": (HIDDEN,)}
        shapes |= {f"{at}.mlp.fc1.weight": (INNER, HIDDEN), f"{at}.mlp.fc1.bias": (INNER,)}
        shapes |= {f"{at}.mlp.fc2.weight": (HIDDEN, INNER), f"{at}.mlp.fc2.bias": (HIDDEN,)}
    weights = {name: chance.normal(0, 0.2, shape).astype(np.float16) for name, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.weight"] = np.ones(HIDDEN, np.float16)
        weights[f"{name}.bias"] = np.zeros(HIDDEN, np.float16)
    return weights
