"""Which reader is in use is found out, said, and may be required."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.codec.local import Lane, LocalCodec
from rollout.codec.readers import Sampled
from rollout.codec.server import ServerCodec
from rollout.codec.tokenizer import load_tokenizer, template_ids
from rollout.codec.types import make_context
from rollout.config import EngineConfig
from rollout.errors import ConfigError, RequestRefused
from rollout.play.connect import make_codec
from rollout.request import MessagePrompt, Reply, Request
from rollout.transport import ServerInfo, Transport
from tests.cases.token_kit import CHATML_TEMPLATE
from tests.log_kit import capture_logs
from tests.rollout.codec.readers.kit import ADD, calls_of
from transports.embedded import MODEL_DIR

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class Tokenizing(Transport):
    """A server that renders and tokenizes, and does nothing else."""

    def __init__(self, tokenizer: Any, *, model: str = "served", refuses_tools: bool = False) -> None:
        self.info = ServerInfo(dialect="kit", model=model, token_route="kit", can_tokenize=True)
        self._tokenizer, self._refuses = tokenizer, refuses_tools
        self.asked = 0

    async def generate(self, request: Request) -> Reply:
        raise NotImplementedError

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        self.asked += 1
        if prompt.tools and self._refuses:
            raise RequestRefused("this template takes no tools", status=400)
        args = prompt.template_args
        return template_ids(
            self._tokenizer, prompt.messages, prompt.tools, args, add_generation_prompt=add_generation_prompt
        )

    async def detokenize(self, ids: Any) -> str:
        return str(self._tokenizer.decode(list(ids)))

    async def aclose(self) -> None:
        pass


def toolless(folder: Path) -> str:
    """A folder with a tokenizer whose template and tokens tell nothing of calls."""
    small_tokenizer(("<|im_start|>", "<|im_end|>"), eos="<|im_end|>", chat_template=CHATML_TEMPLATE).save_pretrained(
        folder
    )
    return str(folder)


async def test_a_server_that_tokenizes_shows_how_calls_are_written() -> None:
    """Its own template is asked, once, and the answers are read so."""
    server = Tokenizing(load_tokenizer(str(MODEL_DIR)))
    codec = await make_codec(EngineConfig(renderer="server"), server, server.info)
    assert isinstance(codec, ServerCodec)
    assert codec.reader is not None
    assert codec.reader.name == "hermes"
    asked = server.asked
    ids = load_tokenizer(str(MODEL_DIR)).encode(CALL)
    for _ in range(2):
        message = await codec.parse([1], ids, make_context([ADD], {}))
        assert message is not None
        assert calls_of(message) == [("add", {"a": 1})]
    assert server.asked == asked


async def test_a_server_whose_template_takes_no_tools_is_known_by_its_name() -> None:
    """Which may tell nothing."""
    tokenizer = load_tokenizer(str(MODEL_DIR))
    for model, name in (("mistralai/Mistral-7B-Instruct-v0.3", "mistral"), ("my-model", None)):
        server = Tokenizing(tokenizer, model=model, refuses_tools=True)
        codec = await make_codec(EngineConfig(renderer="server"), server, server.info)
        assert codec is not None
        assert (codec.reader.name if codec.reader is not None else None) == name


async def test_a_named_reader_is_taken() -> None:
    """On either route."""
    server = Tokenizing(load_tokenizer(str(MODEL_DIR)))
    for renderer in ("server", "auto"):
        config = EngineConfig(renderer=renderer, tokenizer=str(MODEL_DIR), reader="glm")
        codec = await make_codec(config, server, server.info)
        assert codec is not None
        assert codec.reader is not None
        assert codec.reader.name == "glm"


async def test_an_unknown_reader_is_refused_with_those_that_there_are() -> None:
    """And the nearest."""
    server = Tokenizing(load_tokenizer(str(MODEL_DIR)))
    with pytest.raises(ConfigError, match=r"reader must be auto.*hermes.*not 'hermess'; did you mean 'hermes'"):
        await make_codec(EngineConfig(reader="hermess"), server, server.info)


@pytest.mark.slow
async def test_a_model_that_nothing_reads_is_refused_where_a_reader_is_required(tmp_path: Path) -> None:
    """The refusal names the model and the readers; one that is named satisfies it."""
    server = Tokenizing(load_tokenizer(str(MODEL_DIR)), model="my-model")
    config = {"tokenizer": toolless(tmp_path), "mode": "mito", "require_reader": True}
    with pytest.raises(ConfigError, match=r"'my-model'.*--reader \(auto.*hermes.*--require-reader"):
        await make_codec(EngineConfig(**config), server, server.info)  # type: ignore[arg-type]  # settings by name
    codec = await make_codec(EngineConfig(**config, reader="hermes"), server, server.info)  # type: ignore[arg-type]
    assert codec is not None


async def test_bridges_and_reader_are_logged() -> None:
    """Once, when a model is connected to."""
    server = Tokenizing(load_tokenizer(str(MODEL_DIR)))
    with capture_logs() as logged:
        await make_codec(EngineConfig(tokenizer=str(MODEL_DIR)), server, server.info)
    (found,) = [event for event in logged if event["event"] == "codec"]
    assert (found["reader"], found["bridges"]) == ("hermes", "renderer qwen3, then template")


async def test_that_nothing_reads_a_models_calls_is_said_once(tmp_path: Path) -> None:
    """Where tools are offered: else nobody waits for calls."""
    tokenizer = load_tokenizer(toolless(tmp_path))
    codec = LocalCodec(lambda: Lane(tokenizer, None, "all", [tokenizer.eos_token_id]), "template")
    ids = tokenizer.encode(f"So: {CALL}", add_special_tokens=False)
    with capture_logs() as logged:
        assert (await codec.parse([1], ids, make_context([], {}))).content == f"So: {CALL}"
        assert logged == []
        for _ in range(3):
            assert (await codec.parse([1], ids, make_context([ADD], {}))).content == f"So: {CALL}"
    assert [event["event"] for event in logged] == ["no_reader"]
    assert "--reader" in logged[0]["hint"]


def test_a_readers_bug_costs_the_message_its_calls_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """What was sampled is text then, and the cause is logged."""
    from rollout.codec.readers import read

    class Broken:
        name = "broken"

        def read(self, sampled: Sampled) -> Any:
            raise RuntimeError("boom")

    assert read(Broken(), Sampled(text=CALL, tools=[ADD])).content == CALL
    assert "boom" in caplog.text
