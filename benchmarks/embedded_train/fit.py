"""Supervised training on dialogues: the loss is on what the assistant says, in one pass over fresh samples."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.embedded_train.dialogues import Segment, samples
from benchmarks.embedded_train.torch_model import Weights, hidden_states

#: Token ids of one sample, and for each whether it is to be learned.
Sample = tuple[list[int], list[bool]]

#: A batch: ids (rows, length) int64, right-padded with 0, and what is learned (rows, length) bool.
Batch = tuple[torch.Tensor, torch.Tensor]


def encoder(tokenizer: Tokenizer) -> Callable[[list[Segment]], Sample]:
    """Encodes segments one by one (as the engine does), remembering those seen before."""

    @functools.lru_cache(maxsize=200_000)
    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(segments: list[Segment]) -> Sample:
        out: list[int] = []
        learned: list[bool] = []
        for segment in segments:
            piece = ids(segment.text)
            out += piece
            learned += [segment.sampled] * len(piece)
        return out, learned

    return encode


def batches(tokenizer: Tokenizer, seed: int, tokens: int, longest: int) -> Iterator[Batch]:
    """Endless batches of about `tokens` ids, of samples of similar length and at most `longest` ids."""
    encode = encoder(tokenizer)
    stream = samples(seed)
    shuffle = random.Random(seed)
    while True:
        pool = sorted((encode(next(stream)) for _ in range(1024)), key=lambda sample: len(sample[0]))
        groups: list[list[Sample]] = [[]]
        for sample in pool:
            size = min(len(sample[0]), longest)
            if groups[-1] and (len(groups[-1]) + 1) * size > tokens:
                groups.append([])
            groups[-1].append(sample)
        shuffle.shuffle(groups)
        yield from (_pad(group, longest) for group in groups)


def fit(
    weights: Weights,
    config: Mapping[str, Any],
    stream: Iterator[Batch],
    *,
    steps: int,
    peak_lr: float,
    log: Callable[[str], None],
) -> None:
    """Trains `weights` in place, with a short warm-up and a cosine to zero."""
    parameters = [weight.requires_grad_() for weight in weights.values()]
    optimizers = _optimizers(weights)
    started, seen, recent = time.monotonic(), 0, 0.0
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak_lr * _schedule(step, steps)
        ids, learned = next(stream)
        # bfloat16 products: several times faster on CPUs that have them, and good enough to train.
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(weights, config, ids, learned)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        recent = float(loss.detach()) if step == 0 else 0.98 * recent + 0.02 * float(loss.detach())
        if step % 100 == 99 or step == 0:
            wall_s = time.monotonic() - started
            log(f"step {step + 1}/{steps} loss {recent:.4f} {seen / wall_s:,.0f} tokens/s {wall_s:.0f} s")
    for parameter in parameters:
        parameter.requires_grad_(False)


def to_numpy(weights: Weights) -> dict[str, NDArray[np.float32]]:
    """The weights as float32 arrays."""
    return {name: weight.detach().float().numpy() for name, weight in weights.items()}


def _optimizers(weights: Weights) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which learns this task in half of AdamW's steps; AdamW for the rest."""
    matrices = [weight for name, weight in weights.items() if weight.ndim > 1 and "embed" not in name]
    rest = [weight for name, weight in weights.items() if weight.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=0.0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.0, weight_decay=0.0, betas=(0.9, 0.97), fused=True),
    ]


def _loss(weights: Weights, config: Mapping[str, Any], ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    hidden = hidden_states(weights, config, ids[:, :-1])
    target = learned[:, 1:]
    # Only learned positions reach the vocabulary: most of a conversation is the environment's.
    logits = F.linear(hidden[target], weights["model.embed_tokens.weight"])
    return F.cross_entropy(logits.float(), ids[:, 1:][target])


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / min(100, max(steps // 10, 1)))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _pad(group: list[Sample], longest: int) -> Batch:
    length = min(max(len(ids) for ids, _ in group), longest)
    ids = torch.zeros(len(group), length, dtype=torch.int64)
    learned = torch.zeros(len(group), length, dtype=torch.bool)
    for row, (sample_ids, sample_learned) in enumerate(group):
        size = min(len(sample_ids), length)
        ids[row, :size] = torch.tensor(sample_ids[:size])
        learned[row, :size] = torch.tensor(sample_learned[:size])
    return ids, learned
