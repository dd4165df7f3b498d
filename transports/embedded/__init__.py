"""The embedded model: a small Qwen3 transformer run by numpy, served as vLLM or Dynamo would serve it.

`app.create_app` makes the ASGI app, `engine.Engine` samples, `model.Model` computes. `train` makes
the model folder from nothing.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

#: The shipped model folder: weights, tokenizer and chat template, as vLLM and Dynamo load them.
MODEL_DIR = Path(__file__).resolve().parent / "weights"

#: What reading a folder raises that holds no such model.
NOT_A_MODEL = (OSError, ValueError, KeyError, TypeError, SafetensorError)

__all__ = ["MODEL_DIR", "NOT_A_MODEL"]
