"""The embedded model: a small Qwen3 transformer run by numpy, served as vLLM, Dynamo or SGLang would serve it.

    app            the ASGI app: one engine behind one of their wires
    vllm_routes    vLLM's routes
    vllm_bodies    what they take
    programs       OpenAI Responses, Anthropic Messages, and streams
    reply          a completion's text as a message with calls
    dynamo_routes  Dynamo's
    sglang_routes  SGLang's
    sglang_bodies  what they take
    wire           what all share: bodies, refusals, answers
    chat           text and ids, without transformers
    engine         continuous batching in one thread
    jobs           what the engine is asked for, and what it keeps of it
    model          the transformer
    cache          keys and values, and the blocks that later prompts reuse
    sampling       logits -> tokens and their logprobs
    weights_file   reads safetensors
    metrics        counters, under the names of the server that is played
    transport      the real client against the app, with no socket between
    serve          the app on a port: `rollout serve`

`benchmarks.embedded_train` makes the model folder from nothing.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

#: The shipped model folder: weights, tokenizer and chat template, as vLLM and Dynamo load them.
MODEL_DIR = Path(__file__).resolve().parent / "weights"

#: What reading a folder raises that holds no such model.
NOT_A_MODEL = (OSError, ValueError, KeyError, TypeError, SafetensorError)

__all__ = ["MODEL_DIR", "NOT_A_MODEL"]
