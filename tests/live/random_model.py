"""The embedded model's folder with random weights: every token is about as likely, so its output is never canonical.

Dense as the embedded model is, or a mixture of experts (Qwen3-MoE): the same attention, a router before the experts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from transports.embedded import MODEL_DIR


def write_random_model(folder: Path, seed: int = 0, positions: int | None = None) -> Path:
    """Writes the folder; the same weights for the same seed. Its longest context is the embedded's, or `positions`."""
    shutil.copytree(MODEL_DIR, folder)
    if positions is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    chance = np.random.default_rng(seed)
    weights = load_file(MODEL_DIR / "model.safetensors")
    drawn = {
        # Norms stay ones, so that the activations are of the usual size.
        name: np.ones_like(value) if value.ndim == 1 else chance.normal(0, 0.05, value.shape).astype(value.dtype)
        for name, value in weights.items()
    }
    save_file(drawn, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


#: Of the mixture: what its router has to choose from, and how many it chooses.
EXPERTS, TOP_K, LAYERS = 4, 2, 2

_EXPERT_SIZE = 64


def write_random_mixture(folder: Path, seed: int = 0) -> Path:
    """Writes the folder of a mixture of experts of two layers; the same weights for the same seed."""
    shutil.copytree(MODEL_DIR, folder)
    config = json.loads((MODEL_DIR / "config.json").read_text())
    config |= {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": LAYERS}
    config |= {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "moe_intermediate_size": _EXPERT_SIZE}
    config |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "max_window_layers": LAYERS}
    config |= {"tie_word_embeddings": False}  # SGLang ties none of a mixture
    (folder / "config.json").write_text(json.dumps(config))
    chance, hidden = np.random.default_rng(seed), config["hidden_size"]
    shapes = {
        name: value.shape
        for name, value in load_file(MODEL_DIR / "model.safetensors").items()
        if ".mlp." not in name and not any(f"layers.{layer}." in name for layer in range(LAYERS, 64))
    }
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    for layer in range(LAYERS):
        mlp = f"model.layers.{layer}.mlp"
        shapes[f"{mlp}.gate.weight"] = (EXPERTS, hidden)
        for expert in range(EXPERTS):
            shapes[f"{mlp}.experts.{expert}.gate_proj.weight"] = (_EXPERT_SIZE, hidden)
            shapes[f"{mlp}.experts.{expert}.up_proj.weight"] = (_EXPERT_SIZE, hidden)
            shapes[f"{mlp}.experts.{expert}.down_proj.weight"] = (hidden, _EXPERT_SIZE)
    drawn = {
        name: np.ones(shape, np.float16) if len(shape) == 1 else chance.normal(0, 0.05, shape).astype(np.float16)
        for name, shape in shapes.items()
    }
    save_file(drawn, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
