"""The model folder in Hugging Face's layout, as vLLM, Dynamo and transformers load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer


def model_config(
    tokenizer: Tokenizer, *, hidden: int, layers: int, heads: int, kv_heads: int, ffn: int
) -> dict[str, Any]:
    """config.json of a Qwen3 model with heads of 32 dimensions (the smallest that vLLM's CPU kernels take)."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "dtype": "float16",
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 8192,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def write_config(config: Mapping[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes config.json and generation_config.json (plain sampling at temperature 1)."""
    generation = {
        "bos_token_id": config["bos_token_id"],
        "do_sample": True,
        "eos_token_id": [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")],
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def write_weights(weights: Mapping[str, NDArray[np.float32]], folder: Path) -> None:
    """Writes model.safetensors in float16. Weights by Hugging Face's names."""
    half = {name: np.ascontiguousarray(value, dtype=np.float16) for name, value in weights.items()}
    save_file(half, str(folder / "model.safetensors"), metadata={"format": "pt"})


def random_weights(config: Mapping[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """Weights to start training from: normal with `initializer_range`, smaller where a residual is written."""
    draw = np.random.default_rng(seed)
    hidden, ffn, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    wide, narrow = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    scale = config["initializer_range"]
    residual = scale / (2 * config["num_hidden_layers"]) ** 0.5

    def normal(std: float, *shape: int) -> NDArray[np.float32]:
        return draw.normal(0.0, std, shape).astype(np.float32)

    def ones(size: int) -> NDArray[np.float32]:
        return np.ones(size, np.float32)

    weights = {
        "model.embed_tokens.weight": normal(scale, config["vocab_size"], hidden),
        "model.norm.weight": ones(hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights |= {
            at + "input_layernorm.weight": ones(hidden),
            at + "post_attention_layernorm.weight": ones(hidden),
            at + "self_attn.q_norm.weight": ones(head_dim),
            at + "self_attn.k_norm.weight": ones(head_dim),
            at + "self_attn.q_proj.weight": normal(scale, wide, hidden),
            at + "self_attn.k_proj.weight": normal(scale, narrow, hidden),
            at + "self_attn.v_proj.weight": normal(scale, narrow, hidden),
            at + "self_attn.o_proj.weight": normal(residual, hidden, wide),
            at + "mlp.gate_proj.weight": normal(scale, ffn, hidden),
            at + "mlp.up_proj.weight": normal(scale, ffn, hidden),
            at + "mlp.down_proj.weight": normal(residual, hidden, ffn),
        }
    return weights
