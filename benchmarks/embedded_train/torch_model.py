"""The same transformer in torch, with gradients: a function of its weights, by Hugging Face's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]


def load_weights(folder: Path) -> Weights:
    """The folder's weights in float32, ready for gradients."""
    return {name: value.float() for name, value in load_file(str(folder / "model.safetensors")).items()}


def hidden_states(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Final hidden states, normalized. `ids` is (batch, length), right-padded; answers (batch, length, hidden)."""
    eps, head_dim = config["rms_norm_eps"], config["head_dim"]
    cos, sin = _rope(ids.shape[1], head_dim, config["rope_theta"])
    x = F.embedding(ids, weights["model.embed_tokens.weight"])
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = _norm(x, weights[at + "input_layernorm.weight"], eps)
        q, k, v = (
            F.linear(h, weights[f"{at}self_attn.{name}_proj.weight"]).unflatten(-1, (-1, head_dim)).transpose(1, 2)
            for name in "qkv"
        )
        q = _rotate(_norm(q, weights[at + "self_attn.q_norm.weight"], eps), cos, sin)
        k = _rotate(_norm(k, weights[at + "self_attn.k_norm.weight"], eps), cos, sin)
        attended = _attend(q, k, v.float()).transpose(1, 2).flatten(2)
        x = x + F.linear(attended, weights[at + "self_attn.o_proj.weight"])
        h = _norm(x, weights[at + "post_attention_layernorm.weight"], eps)
        gate = F.silu(F.linear(h, weights[at + "mlp.gate_proj.weight"]))
        x = x + F.linear(gate * F.linear(h, weights[at + "mlp.up_proj.weight"]), weights[at + "mlp.down_proj.weight"])
    return _norm(x, weights["model.norm.weight"], eps)


def next_logprobs(weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Logprob of each id given those before it: (batch, length - 1), entry t for ids[:, t + 1]."""
    hidden = hidden_states(weights, config, ids[:, :-1])
    logprobs = F.linear(hidden, weights["model.embed_tokens.weight"]).float().log_softmax(-1)
    return logprobs.gather(-1, ids[:, 1:, None])[..., 0]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention over (batch, heads, length, head_dim), a key head shared by a group of query heads."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    # In float32 also under autocast: torch's bfloat16 attention has a backward pass four times slower.
    # Right padding needs no mask: a real token never looks at what comes after it.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x.float(), weight.shape, weight, eps)


def _rope(length: int, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin
