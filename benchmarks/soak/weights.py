"""Model folders that differ, and the proof that a token was sampled by the one that its version names.

The proof is a calculation: the embedded model in numpy gives the logprob of each sampled token under a version's
weights, and the server's must be that. A token that was sampled under other weights than its version names, or over
keys and values that other weights left in a cache, is off by far more than rounding.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rollout.records import Rollout, Turn
from transports.embedded import MODEL_DIR
from transports.embedded.model import Chunk, Model
from transports.embedded.weights_file import read_weights

#: How much the weights of two versions differ: enough that a logprob tells them apart, little enough to speak alike.
NOISE = 0.01

#: What rounding may make of it: vLLM and numpy add in another order.
CLOSE = 5e-3


def write_folders(where: Path, count: int) -> list[Path]:
    """Model folders v0, v1, ...; v0 has the embedded model's weights.

    The output layer has weights of its own in each: vLLM on CPU does not reload that of tied embeddings
    (vLLM 0.32, vllm/model_executor/model_loader/reload, limitation 2).
    """
    weights = read_weights(MODEL_DIR / "model.safetensors")
    config = json.loads((MODEL_DIR / "config.json").read_text("utf-8"))
    folders = []
    for version in range(count):
        folder = where / f"v{version}"
        shutil.copytree(MODEL_DIR, folder)
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}, indent=2), "utf-8")
        chance = np.random.default_rng(version)
        arrays = {
            name: value + np.float32(NOISE if version else 0.0) * chance.standard_normal(value.shape, np.float32)
            for name, value in weights.items()
        }
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    return folders


class Proof:
    """Compares sampled turns with what the weights of their versions give. Holds one model a version."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._models: dict[str, Model] = {}
        self.tokens = 0
        """Tokens that were compared."""
        self.worst = 0.0
        """The largest difference of logprobs."""

    def check(self, rollout: Rollout, turn: Turn) -> bool:
        """Whether every token of a turn has the logprob of its version's weights."""
        tree = rollout.trajectory
        node = tree.nodes[turn.node]
        ids = tree.ids(turn.node).tolist()
        logprobs = np.asarray(node.logprobs, np.float64)
        start = len(ids) - len(node.ids)
        right = True
        for span in turn.weight_versions:
            given = self._logprobs(span.version, ids)[start - 1 :]
            apart = np.abs(given - logprobs)[span.start : span.end]
            self.tokens += len(apart)
            self.worst = max(self.worst, float(apart.max(initial=0.0)))
            right = right and bool((apart < CLOSE).all())
        return right

    def _logprobs(self, version: str, ids: list[int]) -> NDArray[np.float64]:
        """Of each id but the first, under a version's weights."""
        model = self._models.get(version)
        if model is None:
            model = self._models[version] = Model.load(self._folders[int(version) % len(self._folders)])
        logits = model.forward([Chunk(ids[:-1], model.new_kv())], every=True).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        found: NDArray[np.float64] = logits[np.arange(len(ids) - 1), ids[1:]]
        return found
