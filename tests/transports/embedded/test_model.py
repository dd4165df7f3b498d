"""The forward pass against transformers, and against itself in other batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from transports.embedded import MODEL_DIR
from transports.embedded.cache import Float32
from transports.embedded.model import Chunk, Model
from transports.embedded.sampling import log_softmax
from transports.embedded.weights_file import read_weights

FIXTURE = Path(__file__).parents[2] / "fixtures" / "embedded_logprobs.json"


def logprobs(model: Model, ids: list[int], pieces: list[int]) -> Float32:
    """Logprobs (ids, vocabulary) of one prompt, computed in pieces of these lengths."""
    kv, rows, start = model.new_kv(), [], 0
    for size in pieces:
        rows.append(model.forward([Chunk(ids[start : start + size], kv)], every=True))
        start += size
    return log_softmax(np.concatenate(rows))


def some_ids(model: Model, count: int, seed: int = 1) -> list[int]:
    """Ids over the whole vocabulary."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, model.config.vocab_size, count)]


def test_logprobs_are_those_of_transformers(model: Model) -> None:
    """On fixed ids numpy says what Hugging Face's Qwen3ForCausalLM said (stored by `train.check --write`)."""
    stored = json.loads(FIXTURE.read_text("utf-8"))
    ids = stored["token_ids"]
    found = logprobs(model, ids, [len(ids)])[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found, stored["logprobs"], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [[50] + [1] * 14, [1] * 64, [16, 16, 16, 16], [63, 1]])
def test_a_prompt_in_pieces_gives_the_same(model: Model, pieces: list[int]) -> None:
    """However a prompt is cut, every position has the same logprobs."""
    ids = some_ids(model, 64)
    np.testing.assert_allclose(logprobs(model, ids, pieces), logprobs(model, ids, [64]), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_sequence_does_not_feel_its_neighbours(model: Model) -> None:
    """In a batch of prompts and single tokens of many lengths each row is what it is alone."""
    prompts = [some_ids(model, count, seed) for seed, count in enumerate((3, 40, 17, 200, 1, 90))]
    caches = [model.new_kv() for _ in prompts]
    batched = model.forward([Chunk(ids, kv) for ids, kv in zip(prompts, caches, strict=True)])
    alone = [model.forward([Chunk(ids, model.new_kv())])[0] for ids in prompts]
    np.testing.assert_allclose(batched, np.stack(alone), atol=1e-4, rtol=0)
    batched = model.forward([Chunk([7], kv) for kv in caches])
    alone = [model.forward([Chunk([*ids, 7], model.new_kv())])[0] for ids in prompts]
    np.testing.assert_allclose(batched, np.stack(alone), atol=1e-4, rtol=0)


def test_the_folder_is_small() -> None:
    """What ships of the model is under 4 MB, and under 2 million parameters."""
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) < 4_000_000
    assert sum(value.size for value in read_weights(MODEL_DIR / "model.safetensors").values()) < 2_000_000


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    """The upper halves of float32 numbers come back as those numbers."""
    values = np.array([[1.0, -2.5, 3.140625, 0.0]], np.float32)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1, 4], "data_offsets": [0, 8]}}).encode()
    body = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + body)
    np.testing.assert_array_equal(read_weights(tmp_path / "m.safetensors")["w"], values)


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    """Half and single precision written by the library come back with their values and shapes."""
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}
    save_file(tensors, tmp_path / "m.safetensors")
    found = read_weights(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(found["a"], tensors["a"])
    assert found["b"].dtype == np.float32


@pytest.mark.parametrize("keep", [0, 5, 30, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, keep: int) -> None:
    """A torn file is an error that names it, not a model."""
    path = tmp_path / "m.safetensors"
    save_file({"a": np.ones(64, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        read_weights(path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """A folder that is not Qwen3 says so."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="no plain Qwen3"):
        Model.load(tmp_path)
