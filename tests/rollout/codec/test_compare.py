"""The local tokenizer is found to be the server's, or what differs is named."""

from __future__ import annotations

import tempfile
from typing import Any

import msgspec
import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.codec.compare import Difference, compare
from rollout.codec.local import Lane, LocalCodec
from rollout.config import EngineConfig
from rollout.errors import TransportError
from rollout.play.connect import TokenizerDiffers, make_codec
from rollout.transport import ServerInfo, TransportConfig
from tests.cases.prompt_kit import CHATML, PLAIN, ShowingServer
from transports.embedded import transport as embedded


def tokenizer(*more: str, template: str = PLAIN) -> Any:
    return small_tokenizer((*more, *CHATML), eos="<|im_end|>", chat_template=template)


async def compared(here: Any, there: Any, **info: Any) -> Difference | None:
    """What is found between two tokenizers."""
    server = ShowingServer(there, [])
    codec = LocalCodec(lambda: Lane(here, None, "all", [here.eos_token_id]), "template")
    return await compare(codec, server, msgspec.structs.replace(server.info, **info), {})


async def test_the_same_tokenizer_is_the_same() -> None:
    """Also beside a template that takes no such conversation here."""
    assert await compared(tokenizer(), tokenizer()) is None
    assert await compared(tokenizer(template="{{ raise_exception('no') }}"), tokenizer()) is None


async def test_another_tokenizer_is_named_by_a_token() -> None:
    """A token of its own shifts the others: the same ids spell something else."""
    found = await compared(tokenizer(), tokenizer("<|new|>"))
    assert found is not None
    assert found.of == "tokenizer"
    assert "is '<|im_end|>' here" in found.detail or "is '<|im_start|>' here" in found.detail


async def test_another_template_is_told_from_another_tokenizer() -> None:
    """Its ids mean the same, so it is only said."""
    found = await compared(tokenizer(), tokenizer(template="Be brief. " + PLAIN))
    assert found is not None
    assert found.of == "template"
    assert "Be brief." in found.detail


async def test_a_vocabulary_larger_than_the_models_is_another() -> None:
    """A few tokens more are usual; hundreds are another tokenizer's."""
    size = 1 + max(tokenizer().get_vocab().values())
    assert await compared(tokenizer(), tokenizer(), can_tokenize=False, vocab_size=size - 1) is None
    found = await compared(tokenizer(), tokenizer(), can_tokenize=False, vocab_size=size - 500)
    assert found is not None
    assert str(size) in found.detail


async def test_a_server_that_fails_when_asked_refutes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turns will show what it is."""

    async def broken(*_: Any, **__: Any) -> list[int]:
        raise TransportError("down")

    monkeypatch.setattr(ShowingServer, "tokenize", broken)
    assert await compared(tokenizer(), tokenizer("<|new|>")) is None


@pytest.mark.slow
async def test_a_named_tokenizer_that_is_not_the_servers_is_refused(tmp_path: Any) -> None:
    """At connect, in one line with the way out; one that was only guessed gives way to the server's own."""
    tokenizer().save_pretrained(tmp_path)
    server = ShowingServer(tokenizer("<|new|>"), [])
    with pytest.raises(TokenizerDiffers, match="--tokenizer"):
        await make_codec(EngineConfig(tokenizer=str(tmp_path), renderer="template"), server, server.info)
    guessed: ServerInfo = msgspec.structs.replace(server.info, tokenizer=str(tmp_path))
    codec = await make_codec(EngineConfig(), server, guessed)
    assert codec is not None
    assert "server" in codec.description


async def test_a_tokenizer_larger_than_the_served_model_is_refused_where_the_server_cannot_tokenize() -> None:
    """The transport finds the model's size by itself, and connecting looks at it before any ids are sent."""
    transport = await embedded.open(TransportConfig(options={"dialect": "dynamo"}))
    assert (transport.info.vocab_size, transport.info.can_tokenize) == (2048, False)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer(*(f"<|more_{number}|>" for number in range(100))).save_pretrained(folder)
        with pytest.raises(TokenizerDiffers, match=r"it has 21\d\d tokens, and the server's model 2048.*--tokenizer"):
            await make_codec(EngineConfig(tokenizer=folder, renderer="template"), transport, transport.info)
    await transport.aclose()
