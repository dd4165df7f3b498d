"""What a probe found is said in rows for people: what logprobs are of, and how the server samples by itself."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollout.config import EngineConfig
from rollout.probe.probe import Probe, command_line, probe, rows
from rollout.request import Sampling
from rollout.transport import ServerInfo


def said(**server: Any) -> dict[str, str]:
    info = ServerInfo(dialect="vllm", model="m", **server)
    found = Probe(
        url="u", server=info, bridges=None, reader=None, shapes=[], verdict=[], live="", advice=[], command=""
    )
    return dict(rows(found))


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (
            "raw_logprobs",
            "before temperature and filters (raw_logprobs); to train at another temperature than 1, start",
        ),
        ("processed_logprobs", "after temperature and filters"),
        (None, "unknown"),
    ],
)
def test_what_logprobs_are_of_is_said(mode: Any, words: str) -> None:
    """With the server's flag where they are the model's own, and `unknown` where it could not be told."""
    row = said(logprobs_mode=mode)["logprobs"]
    assert row.startswith(words)
    assert ("--logprobs-mode processed_logprobs" in row) == (mode == "raw_logprobs")


def test_how_the_server_samples_is_said() -> None:
    """Its own settings, that it has none, or that it does not say."""
    own = Sampling(temperature=0.6, top_k=20)
    assert said(sampling_defaults=own)["samples"] == "temperature 0.6, top_k 20, where a request says nothing"
    assert said(sampling_defaults=Sampling())["samples"].startswith("as the model is")
    assert said()["samples"].startswith("not said: give temperature")


async def test_the_embedded_model_is_told() -> None:
    """In one go, with nothing to advise: at temperature 1 its logprobs are what was drawn from."""
    found = await probe(EngineConfig())
    assert found.server.logprobs_mode == "raw_logprobs"
    assert found.server.sampling_defaults == Sampling()
    assert found.advice == []


def test_the_command_to_use_asks_as_the_probe_did() -> None:
    """With the same transport, reader, tokenizer and key's variable, where they are not the usual ones."""
    info = ServerInfo(dialect="vllm", model="m", max_model_len=4096)
    plain = EngineConfig(base_url="http://gpu-7:8000", tokenizer="folder")
    given = msgspec.structs.replace(plain, transport="vllm", reader="hermes", api_key_env="GPU_KEY")
    codec: Any = object()
    usual = "rollout run guess_number --base-url http://gpu-7:8000 -m m --tokenizer folder"
    assert " ".join(command_line(plain, info, codec)) == usual
    more = "--transport vllm --reader hermes --api-key-env GPU_KEY"
    assert " ".join(command_line(given, info, codec)) == f"{usual} {more}"
