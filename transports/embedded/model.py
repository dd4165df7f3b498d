"""A Qwen3 transformer in numpy: weights from safetensors, a forward pass over many sequences at once.

Root-mean-square norms, rotary positions, grouped-query attention with normed queries and keys, a
gated feed-forward layer: the architecture as Hugging Face and vLLM run it, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transports.embedded.cache import Float32, KeyValues
from transports.embedded.weights_file import read_weights

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ModelConfig:
    """The parts of config.json and generation_config.json that the forward pass and sampling need."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    context: int
    """Positions at most, prompt and completion together."""
    eos_ids: tuple[int, ...]
    """Ids that end a completion unless a request ignores them."""

    @classmethod
    def load(cls, folder: Path) -> ModelConfig:
        """Reads the folder's configuration. Raises ValueError for another architecture."""
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        if config.get("model_type") != "qwen3" or config.get("attention_bias") or config.get("use_sliding_window"):
            raise ValueError(f"{folder} holds no plain Qwen3 model (model_type {config.get('model_type')!r})")
        generation = folder / "generation_config.json"
        eos = json.loads(generation.read_text("utf-8")).get("eos_token_id") if generation.exists() else None
        eos = config["eos_token_id"] if eos is None else eos
        rope = config.get("rope_parameters") or config
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_theta=rope["rope_theta"],
            context=config["max_position_embeddings"],
            eos_ids=tuple(int(token) for token in (eos if isinstance(eos, list) else [eos])),
        )


@dataclass(frozen=True)
class Chunk:
    """Further ids of one sequence: a piece of its prompt, or the token that was sampled last."""

    ids: Sequence[int]
    kv: KeyValues
    """The sequence's keys and values so far; the forward pass adds those of `ids`."""


@dataclass(frozen=True)
class _Layer:
    input_norm: Float32
    qkv: Float32
    """(hidden, (heads + 2 kv heads) * head_dim): three projections in one product."""
    q_norm: Float32
    k_norm: Float32
    out: Float32
    ffn_norm: Float32
    gate_up: Float32
    """(hidden, 2 ffn)."""
    down: Float32


class Model:
    """Weights and the forward pass. Immutable: an update makes another model."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Float32]) -> None:
        self.config = config
        self.embedding = np.ascontiguousarray(weights["model.embed_tokens.weight"])
        head = weights.get("lm_head.weight", self.embedding)
        self._head = np.ascontiguousarray(head.T)
        self._norm = weights["model.norm.weight"]
        self._layers = [_layer(weights, f"model.layers.{index}.") for index in range(config.layers)]
        if self.embedding.shape != (config.vocab_size, config.hidden_size):
            raise ValueError(f"embedding of shape {self.embedding.shape} does not fit config.json")
        frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim)
        angle = np.outer(np.arange(config.context, dtype=np.float32), frequency.astype(np.float32))
        self._cos, self._sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Reads config.json and model.safetensors (float32, float16 or bfloat16)."""
        return cls(ModelConfig.load(folder), read_weights(folder / "model.safetensors"))

    def __repr__(self) -> str:
        c = self.config
        return f"<Model {c.layers} layers of {c.hidden_size}, {c.vocab_size} tokens, context {c.context}>"

    def new_kv(self) -> KeyValues:
        """Empty keys and values for one sequence."""
        return KeyValues(self.config.layers, self.config.kv_heads, self.config.head_dim)

    def forward(self, chunks: Sequence[Chunk], *, every: bool = False) -> Float32:
        """Logits after each chunk's last id, (chunks, vocabulary); with `every`, after each id, (ids, vocabulary).

        Adds the chunks' keys and values to their sequences, each at most once per call.
        """
        sizes = [len(chunk.ids) for chunk in chunks]
        ends = np.cumsum(sizes)
        for chunk, size in zip(chunks, sizes, strict=True):
            chunk.kv.reserve(chunk.kv.length + size)
        ids = np.concatenate([np.asarray(chunk.ids, np.int64) for chunk in chunks])
        positions = np.concatenate(
            [np.arange(c.kv.length, c.kv.length + size) for c, size in zip(chunks, sizes, strict=True)]
        )
        cos, sin = self._cos[positions], self._sin[positions]
        x = self.embedding[ids]
        for index, layer in enumerate(self._layers):
            x = x + self._attention(layer, index, x, cos, sin, chunks, ends)
            x = x + self._feed_forward(layer, x)
        for chunk, size in zip(chunks, sizes, strict=True):
            chunk.kv.length += size
        x = x if every else x[ends - 1]
        logits: Float32 = _rms(x, self._norm, self.config.rms_norm_eps) @ self._head
        return logits

    def _attention(
        self, layer: _Layer, index: int, x: Float32, cos: Float32, sin: Float32, chunks: Sequence[Chunk], ends: Ids
    ) -> Float32:
        c = self.config
        mixed = _rms(x, layer.input_norm, c.rms_norm_eps) @ layer.qkv
        mixed = mixed.reshape(len(x), c.heads + 2 * c.kv_heads, c.head_dim)
        q = _rotate(_rms(mixed[:, : c.heads], layer.q_norm, c.rms_norm_eps), cos, sin)
        q *= np.float32(c.head_dim**-0.5)
        k = _rotate(_rms(mixed[:, c.heads : c.heads + c.kv_heads], layer.k_norm, c.rms_norm_eps), cos, sin)
        v = mixed[:, c.heads + c.kv_heads :]
        attended = np.empty((len(x), c.kv_heads, c.heads // c.kv_heads, c.head_dim), np.float32)
        q = q.reshape(attended.shape)
        single: list[tuple[int, Chunk]] = []
        for chunk, end in zip(chunks, ends.tolist(), strict=True):
            size, have = len(chunk.ids), chunk.kv.length
            keys, values = chunk.kv.data[0, index], chunk.kv.data[1, index]
            if size == 1:
                keys[:, have], values[:, have] = k[end - 1], v[end - 1]
                single.append((end - 1, chunk))
                continue
            here = slice(end - size, end)
            keys[:, have : have + size] = k[here].swapaxes(0, 1)
            values[:, have : have + size] = v[here].swapaxes(0, 1)
            attended[here] = _attend_chunk(q[here], keys[:, : have + size], values[:, : have + size])
        if single:
            _attend_single(q, attended, index, single)
        result: Float32 = attended.reshape(len(x), -1) @ layer.out
        return result

    def _feed_forward(self, layer: _Layer, x: Float32) -> Float32:
        gate_up = _rms(x, layer.ffn_norm, self.config.rms_norm_eps) @ layer.gate_up
        half = gate_up.shape[1] // 2
        gate, up = gate_up[:, :half], gate_up[:, half:]
        # x * sigmoid(x) by tanh, which overflows for no input.
        gated = gate * (np.tanh(gate * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5))
        gated *= up
        result: Float32 = gated @ layer.down
        return result


def _attend_chunk(q: Float32, keys: Float32, values: Float32) -> Float32:
    """Causal attention of n new ids, q (n, kv heads, group, dim), over t positions of which they are the last."""
    n, kv_heads, group, dim = q.shape
    t = keys.shape[1]
    rows = q.transpose(1, 2, 0, 3).reshape(kv_heads, group * n, dim)
    scores: Float32 = (rows @ keys.swapaxes(1, 2)).reshape(kv_heads, group, n, t)
    # What was there before is seen by all of the new ids; these see each other up to themselves.
    scores[..., t - n :] += np.triu(np.full((n, n), -np.inf, np.float32), 1)
    _softmax(scores)
    attended: Float32 = scores.reshape(kv_heads, group * n, t) @ values
    return attended.reshape(kv_heads, group, n, dim).transpose(2, 0, 1, 3)


def _attend_single(q: Float32, attended: Float32, index: int, single: list[tuple[int, Chunk]]) -> None:
    """Attention of one new id for each of many sequences, written to `attended`.

    The products run sequence by sequence, on views, without padding; only the softmax, which is
    many small calls otherwise, runs on one padded array.
    """
    lengths = [chunk.kv.length + 1 for _, chunk in single]
    scores = np.full((len(single), *q.shape[1:3], max(lengths)), -np.inf, np.float32)
    for row, ((at, chunk), length) in enumerate(zip(single, lengths, strict=True)):
        scores[row, :, :, :length] = q[at] @ chunk.kv.data[0, index, :, :length].swapaxes(1, 2)
    _softmax(scores)
    for row, ((at, chunk), length) in enumerate(zip(single, lengths, strict=True)):
        attended[at] = scores[row, :, :, :length] @ chunk.kv.data[1, index, :, :length]


def _softmax(scores: Float32) -> None:
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)


def _rms(x: Float32, weight: Float32, eps: float) -> Float32:
    scale = np.einsum("...i,...i->...", x, x)[..., None]
    scale *= np.float32(1 / x.shape[-1])
    scale += np.float32(eps)
    np.sqrt(scale, out=scale)
    result: Float32 = x / scale
    result *= weight
    return result


def _rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """Rotary positions: x (ids, heads, dim), cos and sin (ids, 1, dim / 2)."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    out = np.empty_like(x)
    np.subtract(low * cos, high * sin, out=out[..., :half])
    np.add(high * cos, low * sin, out=out[..., half:])
    return out


def _layer(weights: Mapping[str, Float32], at: str) -> _Layer:
    def columns(*names: str) -> Float32:
        return np.ascontiguousarray(np.concatenate([weights[f"{at}{name}.weight"] for name in names]).T)

    return _Layer(
        input_norm=weights[at + "input_layernorm.weight"],
        qkv=columns("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        q_norm=weights[at + "self_attn.q_norm.weight"],
        k_norm=weights[at + "self_attn.k_norm.weight"],
        out=columns("self_attn.o_proj"),
        ffn_norm=weights[at + "post_attention_layernorm.weight"],
        gate_up=columns("mlp.gate_proj", "mlp.up_proj"),
        down=columns("mlp.down_proj"),
    )
