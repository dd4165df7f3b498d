"""Prompts made here are compared with the server's, shape by shape, and what differs is shown where it differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.codec.local import Lane, LocalCodec, load_codec
from rollout.codec.protocol import Codec
from rollout.codec.server import ServerCodec
from rollout.errors import RequestRefused
from rollout.probe.shapes import SHAPES, ShapeCheck, check_shapes, first_difference, verdict
from rollout.transport import ServerInfo, Transport, TransportConfig
from tests.cases.prompt_kit import BODY, CHATML, PROMPT, ShowingServer
from transports.embedded import MODEL_DIR
from transports.embedded.transport import open as open_embedded


@pytest.fixture
async def server() -> AsyncIterator[Transport]:
    carrier = await open_embedded(TransportConfig())
    yield carrier
    await carrier.aclose()


async def checks(server: Transport, codec: Codec, **template_args: Any) -> dict[str, ShapeCheck]:
    found = await check_shapes(server, server.info, codec, template_args)
    return {check.shape: check for check in found}


def drifted(folder: Path, old: str, new: str) -> str:
    """The embedded model's folder with a changed chat template."""
    shutil.copytree(MODEL_DIR, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert old in config["chat_template"]
    config["chat_template"] = config["chat_template"].replace(old, new)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("renderer", ["auto", "template"])
async def test_the_right_folder_is_exact(server: Transport, renderer: str) -> None:
    """Every shape but typed markers, which the server takes for tokens, is the server's id for id."""
    found = await checks(server, load_codec(str(MODEL_DIR), renderer=renderer))
    assert {name for name, check in found.items() if not check.exact} == {"special text"}
    assert set(found) == {shape.name for shape in SHAPES}
    lines = verdict(list(found.values()))
    assert lines[0].startswith("token-exact for user, tool")
    assert any("takes typed markers for tokens" in line for line in lines)


@pytest.mark.slow
async def test_template_arguments_are_compared_too(server: Transport) -> None:
    """The user's chat-template arguments go to both sides."""
    found = await checks(server, load_codec(str(MODEL_DIR)), enable_thinking=False)
    assert found["user"].exact


async def test_a_server_that_strips_reasoning_breaks_its_own_prefix(server: Transport) -> None:
    """The other direction: whether the server's prompt for turn 2 starts with that for turn 1 is told."""
    found = await checks(server, load_codec(str(MODEL_DIR)), enable_thinking=False)
    assert found["user"].keeps_prefix is False
    assert "by the server's template alone for user" in verdict(list(found.values()))[-1]


async def test_drift_is_shown_where_it_begins(server: Transport, tmp_path: Path) -> None:
    """Another revision of the template differs in the shapes that it changes, at the token that it changes."""
    folder = drifted(tmp_path / "other", "<tool_response>\\n", "<tool_response> ")
    found = await checks(server, load_codec(folder, renderer="template"))
    assert found["user"].exact
    drift = found["tool"].drift
    assert drift is not None
    assert drift.here != drift.there
    assert drift.here[:4] == drift.there[:4]
    assert "<tool_response>" in drift.here_text
    assert f"from id {drift.at} on" in found["tool"].why


@pytest.mark.slow
async def test_a_template_that_refuses_is_told(server: Transport, tmp_path: Path) -> None:
    """A local template that raises where the server does not is a difference, not a crash."""
    folder = drifted(tmp_path / "other", "{%- if tools %}", "{%- if tools %}{{ raise_exception('no tools here') }}")
    found = await checks(server, load_codec(folder, renderer="template"))
    assert "no tools here" in found["tool"].why
    assert found["user"].exact


async def test_a_server_that_refuses_a_shape_is_not_compared() -> None:
    """Shapes that the server refuses are told as such, and nothing is claimed of them."""

    class Refusing:
        async def tokenize(self, *args: Any, **kwargs: Any) -> list[int]:
            raise RequestRefused("400: roles must alternate")

    carrier: Any = Refusing()
    info = ServerInfo(dialect="x", model="m", can_tokenize=True)
    found = await check_shapes(carrier, info, ServerCodec(carrier), {})
    assert {check.exact for check in found} == {None}
    assert "roles must alternate" in verdict(found)[0]


async def test_a_prompt_that_is_a_part_of_the_other_differs_at_its_end() -> None:
    """The first difference of a prompt and a longer one is where the shorter one ends."""
    codec = load_codec(str(MODEL_DIR))
    drift = await first_difference([5, 6], [5, 6, 7], codec)
    assert (drift.at, drift.here, drift.there) == (2, [5, 6], [5, 6, 7])


@pytest.mark.parametrize("local", [True, False])
async def test_a_template_that_leaves_a_message_out_is_named(local: bool) -> None:
    """A tool's result that the model would never see is a finding, although both sides render the same."""
    template = "{% for m in messages %}{% if m.role != 'tool' %}" + BODY + "{% endif %}{% endfor %}" + PROMPT
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=template)
    server = ShowingServer(tokenizer, [])
    if local:
        codec: Codec = LocalCodec(lambda: Lane(tokenizer, None, "all", [tokenizer.eos_token_id]), "template")
    else:
        codec = ServerCodec(server)
        codec.stop_token_ids = [tokenizer.eos_token_id]
    found = {check.shape: check for check in await check_shapes(server, server.info, codec, {})}
    for shape in ("tool", "several results", "tool then user", "long result"):
        assert found[shape].exact is False
        assert "the template does not show the tool message" in found[shape].why
    assert found["user"].exact
