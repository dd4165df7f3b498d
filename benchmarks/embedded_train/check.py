"""`python -m benchmarks.embedded_train.check [DIR]`: numpy, our torch and transformers agree on the logprobs.

With `--write FILE` it stores what transformers says on fixed ids, for the tests that run without torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.embedded_train.torch_model import load_weights, next_logprobs
from transports.embedded import MODEL_DIR
from transports.embedded.model import Chunk, Model
from transports.embedded.sampling import log_softmax

#: The largest difference that float32 explains.
TOLERANCE = 1e-4


def reference_ids(vocab_size: int, length: int = 160) -> list[int]:
    """Fixed ids that use the whole vocabulary."""
    return [int(i) for i in np.random.default_rng(7).integers(0, vocab_size, length)]


def by_transformers(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    """Logprob of each id but the first, (length - 1,), as transformers computes it in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    return _chosen(logprobs, ids)


def by_numpy(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    """The same from the embedded engine's forward pass."""
    model = Model.load(folder)
    return _chosen(log_softmax(model.forward([Chunk(ids, model.new_kv())], every=True)), ids)


def by_torch(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    """The same from the model that is trained."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    with torch.no_grad():
        logprobs: NDArray[np.float32] = next_logprobs(load_weights(folder), config, torch.tensor([ids]))[0].numpy()
    return logprobs


def main(argv: list[str] | None = None) -> int:
    """Compares the three and answers 0 where they agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedded_train.check", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--write", type=Path, help="store transformers' logprobs in this JSON file")
    arguments = parser.parse_args(argv)
    ids = reference_ids(Model.load(arguments.folder).config.vocab_size)
    expected = by_transformers(arguments.folder, ids)
    worst = 0.0
    for name, found in (("numpy", by_numpy(arguments.folder, ids)), ("torch", by_torch(arguments.folder, ids))):
        difference = float(np.abs(found - expected).max())
        worst = max(worst, difference)
        print(f"{name} and transformers differ by at most {difference:.1e}")
    if arguments.write:
        content = {"token_ids": ids, "logprobs": [round(float(value), 6) for value in expected]}
        arguments.write.write_text(json.dumps(content) + "\n", "utf-8")
    return 0 if worst <= TOLERANCE else 1


def _chosen(logprobs: NDArray[np.float32], ids: list[int]) -> NDArray[np.float32]:
    chosen: NDArray[np.float32] = logprobs[np.arange(len(ids) - 1), ids[1:]]
    return chosen


if __name__ == "__main__":
    sys.exit(main())
