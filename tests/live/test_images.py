"""Images on token-in with a real vLLM: a tiny LLaVA on a CPU, whose processor makes tokens of one placeholder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollout.request import TokenPrompt
from rollout.store.folder import read_rollouts
from rollout.tokens.images import expanded, expansions_of
from rollout.transport import Transport, TransportConfig
from tests.live.picture_env import picture
from tests.live.servers import Server, vllm_server
from tests.live.test_run import run
from tests.live.vision_model import IMAGE, PATCH, SIDE, write_vision_model
from tests.transports.contract import request_of
from transports.vllm import transport as vllm
from transports.vllm.wire import GENERATE

pytestmark = pytest.mark.live

PICTURES = str(Path(__file__).with_name("picture_env.py")) + ":Pictures"
TURNS, TOKENS = 8, (SIDE // PATCH) ** 2

#: Behind a prompt that failed vLLM may not have an image where it thinks that it has: that is a 500, once.
TRIES = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision_model(tmp_path_factory.mktemp("models") / "seeing")


@pytest.fixture(scope="module")
def seeing(model: Path, logs: Path) -> Iterator[Server]:
    with vllm_server(model, logs, extra_args=["--limit-mm-per-prompt", '{"image": 32}']) as server:
        yield server


async def test_ids_with_an_image_are_read_as_messages_are(seeing: Server) -> None:
    """One placeholder becomes what chat completions make of the image, and what is sampled is the same."""
    transport = await vllm.open(TransportConfig(base_url=seeing.url))
    async with contextlib.aclosing(transport):
        await read_as_messages_are(seeing, transport)


async def read_as_messages_are(seeing: Server, transport: Transport) -> None:
    assert transport.info.image_token == IMAGE
    parts = [{"type": "text", "text": "look: "}, {"type": "image_url", "image_url": {"url": picture((250, 20, 20))}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, "temperature": 0}
    asked = {**body, "logprobs": True, "return_token_ids": True}
    async with httpx.AsyncClient(timeout=60) as client:
        said = (await client.post(f"{seeing.url}/v1/chat/completions", json=asked)).json()
    whole: list[int] = said["prompt_token_ids"]
    assert whole.count(IMAGE) == TOKENS
    at = whole.index(IMAGE)
    logical = [*whole[: at + 1], *whole[at + TOKENS :]]
    replies = {}
    for name, color in {"same": (250, 20, 20), "other": (10, 20, 250)}.items():
        prompt = TokenPrompt(logical, (picture(color),))
        replies[name] = await transport.generate(request_of(prompt, max_tokens=8))
        assert replies[name].prompt_ids == whole
        assert replies[name].image_spans == ((at, TOKENS),)
    assert replies["same"].completion_ids == said["choices"][0]["token_ids"]
    logprobs = [entry["logprob"] for entry in said["choices"][0]["logprobs"]["content"]]
    assert replies["same"].logprobs == pytest.approx(logprobs, abs=1e-4)
    assert replies["other"].logprobs != pytest.approx(logprobs, abs=1e-4)


def generated(server: Server, ids: list[int], images: list[str]) -> dict[str, Any]:
    """What the server makes of ids and images that nobody checked."""
    parts = [{"type": "image_url", "url": url} for url in images]
    body = {"model": "tiny", "token_ids": ids, "sampling_params": {"max_tokens": 1}, "return_token_ids": True}
    for _ in range(TRIES):
        answer = httpx.post(f"{server.url}{GENERATE}", json={**body, "content_parts": parts}, timeout=60)
        if answer.status_code < 500:
            break
    return {"status": answer.status_code, **answer.json()}


def test_what_was_expanded_is_expanded_again(seeing: Server) -> None:
    """Why logical ids are kept, and counted: each placeholder takes the next image, and one too many passes unsaid."""
    again = generated(seeing, [1, *[IMAGE] * TOKENS, 2], [picture((1, 2, 3))])
    assert len(again["prompt_token_ids"]) == 2 + TOKENS + TOKENS - 1
    fewer = generated(seeing, [1, IMAGE, 2, IMAGE, 3], [picture((1, 2, 3))])
    assert len(fewer["prompt_token_ids"]) == 5 + TOKENS - 1
    more = generated(seeing, [1, IMAGE, 2], [picture((1, 2, 3)), picture((3, 2, 1))])
    assert more["status"] == 500


@pytest.mark.parametrize("first", [True, False])
def test_conversations_with_images_are_token_exact(seeing: Server, model: Path, first: bool, tmp_path: Path) -> None:
    """Checked while they run: every later turn extended, none broke, and samples are what the server read."""
    args = ["-n", "4", "-r", "2", "-a", f"first={first}", "--max-tokens", "16", "-s", "temperature=1", "--verify"]
    where = ["--base-url", seeing.url, "--tokenizer", str(model), "-o", str(tmp_path / "run")]
    result = run(PICTURES, *args, *where, cwd=tmp_path)
    assert result["failures"] == 0
    assert result["turns"] == 8 * TURNS
    assert result["token_in_turns"] == 8 * (TURNS - 1)
    assert result["fallbacks"] == {"first_turn": 8}
    assert result["prefix_breaks"] == 0
    assert result["samples"] == 8
    assert result["cached_tokens"] > 0
    for rollout in read_rollouts(tmp_path / "run"):
        (sample,) = rollout.samples()
        tree, leaf = rollout.trajectory, rollout.turns[-1].node
        assert sample.token_ids == expanded(tree.ids(leaf), expansions_of(tree, leaf))
        images = [url for message in tree.messages(leaf) for url in message.images or ()]
        assert len(sample.images) == len(images) == tree.ids(leaf).count(IMAGE) >= 7
        prompt = tree.ids(leaf)[: -len(tree.nodes[leaf].ids)].tolist()
        assert (
            generated(seeing, prompt, images)["prompt_token_ids"]
            == sample.token_ids.tolist()[: -rollout.turns[-1].completion_tokens]
        )
