"""The embedded transport: the real clients against the embedded apps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollout.chat.messages import user
from rollout.errors import ConfigError
from rollout.request import MessagePrompt, Request, TokenPrompt
from rollout.transport import TransportConfig
from tests.log_kit import capture_logs
from transports.embedded.transport import open as open_embedded

PROMPT = MessagePrompt(messages=[user("Guess my number from 1 to 64. 7 guesses left.")])


def request(prompt: Any, number: int) -> Request:
    """One turn's request."""
    return Request(prompt=prompt, request_id=f"r{number}", session_id="s", max_tokens=30, stop_token_ids=[2024])


@pytest.mark.parametrize(
    ("dialect", "route"),
    [("vllm", "/inference/v1/generate"), ("vllm", "/v1/completions"), ("dynamo", None)],
)
async def test_two_turns_by_every_route(dialect: str, route: str | None) -> None:
    """Message-in, then token-in on what came back, by each dialect and route: ids, logprobs and cache agree."""
    transport = await open_embedded(TransportConfig(options={"dialect": dialect}, token_route=route))
    try:
        info = transport.info
        assert (info.dialect, info.model, info.reports_completion_ids) == ("embedded", "rollout-tiny", True)
        first = await transport.generate(request(PROMPT, 1))
        assert first.prompt_ids
        assert first.completion_ids
        longer = [*first.prompt_ids, *first.completion_ids, *first.prompt_ids]
        second = await transport.generate(request(TokenPrompt(longer), 2))
        assert second.completion_ids
        assert second.logprobs is not None
        assert len(second.completion_ids) == len(second.logprobs)
        assert (second.cached_tokens or 0) >= 32
    finally:
        await transport.aclose()
        await transport.aclose()


async def test_it_tokenizes_as_it_prompts() -> None:
    """The server's own ids for messages are those of its prompts."""
    transport = await open_embedded(TransportConfig())
    try:
        tokens = await transport.tokenize(PROMPT, add_generation_prompt=True)
        assert tokens == (await transport.generate(request(PROMPT, 1))).prompt_ids
    finally:
        await transport.aclose()


@pytest.mark.parametrize("options", [{"dialect": "other"}, {"modeldir": "x"}])
async def test_a_wrong_option_is_refused(options: dict[str, str]) -> None:
    """Options that it does not know are named."""
    with pytest.raises(ConfigError, match=r"other|modeldir"):
        await open_embedded(TransportConfig(options=options))


async def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """A wrong folder is one clear sentence."""
    with pytest.raises(ConfigError, match="no embedded model in"):
        await open_embedded(TransportConfig(options={"model_dir": str(tmp_path)}))


async def test_it_is_no_mixture_of_experts() -> None:
    """A run that wants what it has not is told so, in its own name."""
    with capture_logs() as events:
        transport = await open_embedded(TransportConfig(routed_experts=True, sampling_mask=True))
    await transport.aclose()
    told = [event for event in events if event["event"].endswith("_not_reported")]
    assert [event["event"] for event in told] == ["routed_experts_not_reported", "sampling_mask_not_reported"]
    assert {event["server"] for event in told} == {"embedded"}
