"""The embedded model's folder with random weights: every token is about as likely, so its output is never canonical."""

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
