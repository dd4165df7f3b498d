"""Every real server, a model that knows its format and one that knows nothing: a thousand live turns of every shape.

Zero breaks, no fallback but those that the agent provoked, and the server's own cache counters confirm the reuse.
Message-in on the same tasks is reported beside it.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rollout.records import Rollout, Route
from rollout.store.folder import read_rollouts
from rollout.tokens.prefix import FallbackReason
from tests.live.random_model import write_random_model
from tests.live.servers import Server, dynamo_mocker, dynamo_vllm, sglang_server, vllm_server
from tests.live.test_run import TOKENIZER, run
from transports.embedded import MODEL_DIR
from transports.vllm.wire import GENERATE

pytestmark = pytest.mark.live

AGENT = str(Path(__file__).with_name("agent.py")) + ":MixedAgent"

#: vLLM takes whole blocks from its cache; small ones, so that prompts of a few hundred tokens have many.
BLOCK = 32

Start = Callable[[Path, Path], contextlib.AbstractContextManager[Server]]

BLOCKS = ["--block-size", str(BLOCK)]
SERVERS: dict[str, Start] = {
    "vllm-0.32": lambda model, logs: vllm_server(model, logs, extra_args=BLOCKS),
    "vllm-0.31": lambda model, logs: vllm_server(model, logs, extra_args=BLOCKS, server="dynamo"),
    "dynamo-mocker": lambda model, logs: dynamo_mocker(model, logs, extra_args=BLOCKS),
    "dynamo-vllm": lambda model, logs: dynamo_vllm(model, logs, extra_args=BLOCKS),
    "dynamo-generate": lambda model, logs: dynamo_vllm(model, logs, extra_args=BLOCKS),
    # Its cache has room for all that is played; it takes single tokens from it.
    "sglang": lambda model, logs: sglang_server(model, logs, extra_args=["--max-total-tokens", "262144"]),
}

#: Routes that are not taken unless they are asked for; they say nothing of cached tokens.
ROUTES = {"dynamo-generate": ["--token-route", GENERATE]}


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "random")


#: What every landing plays: a model that knows nothing on the newest vLLM, Dynamo's own scheduling, and its newest
#: route. The rest of the matrix is `make live-full`, and SGLang's `make live-sglang-full`.
OFTEN = {("vllm-0.32", "random"), ("dynamo-mocker", "embedded"), ("dynamo-generate", "embedded")}


def marks_of(name: str, model: str) -> list[pytest.MarkDecorator]:
    rare = [] if (name, model) in OFTEN else [pytest.mark.full]
    return [*rare, pytest.mark.sglang] if name == "sglang" else rare


MATRIX = [
    pytest.param((name, model), id=f"{name}-{model}", marks=marks_of(name, model))
    for name in SERVERS
    for model in ("embedded", "random")
]


@pytest.fixture(params=MATRIX)
def server(request: pytest.FixtureRequest, random_model: Path, logs: Path) -> Iterator[Server]:
    name, model = request.param
    with SERVERS[name](MODEL_DIR if model == "embedded" else random_model, logs) as running:
        yield running


def cached_share(rollouts: list[Rollout]) -> float:
    """Of the tokens that whole blocks allow, the share that the server took from its cache, by its own count.

    A token-in turn can reuse the prompt and completion that it extends, but for the last sampled id, whose cache
    entry is only made when it is computed upon.
    """
    allowed = taken = 0
    for rollout in rollouts:
        tree = rollout.trajectory
        for turn in rollout.turns:
            above = [node for node in tree.path(turn.node)[:-1] if tree.nodes[node].sampled]
            if turn.route is Route.TOKEN_IN and above:
                reusable = (len(tree.ids(above[-1])) - 1) // BLOCK * BLOCK
                allowed += reusable
                taken += min(turn.cached_tokens or 0, reusable)
    return taken / allowed


def play(server: Server, tmp_path: Path, mode: str, *more: str) -> tuple[dict[str, object], list[Rollout]]:
    args = [
        AGENT,
        "-n",
        "128",
        "--max-tokens",
        "24",
        "-s",
        "temperature=1",
        "--base-url",
        server.url,
        *TOKENIZER,
        "--max-model-len",
        "4096",
        *more,
    ]
    folder = tmp_path / mode
    result = run(*args, "--verify", "--mode", mode, "-o", str(folder), cwd=tmp_path)
    return result, list(read_rollouts(folder))


def test_a_thousand_turns_are_token_exact(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No prefix breaks, no fallback that was not provoked, every token trained on once, and the cache confirms it."""
    route = ROUTES.get(request.node.callspec.params["server"][0], [])
    result, rollouts = play(server, tmp_path, "tito", *route)
    provoked = sum(rollout.metrics["provoked"] for rollout in rollouts)
    reasons = sum((rollout.fallbacks for rollout in rollouts), Counter[FallbackReason]())
    first = reasons.pop(FallbackReason.FIRST_TURN, 0)
    share = math.nan if route else cached_share(rollouts)
    mito, _ = play(server, tmp_path, "mito")
    print(
        f"\n{request.node.callspec.id}: {result['turns']} turns, {result['token_in_turns']} token-in, "
        f"{provoked:g} provoked, {result['prefix_breaks']} broke, cached {share:.0%} of whole blocks; "
        f"message-in: {mito['prefix_breaks']} broke, samples {mito['samples']} against {result['samples']}"
    )
    assert result["failures"] == 0
    assert result["turns"] == 1024
    assert first == 128
    assert result["prefix_breaks"] == 0
    assert set(reasons) <= {FallbackReason.HISTORY_REWRITTEN, FallbackReason.NO_MATCH}
    assert sum(reasons.values()) == provoked > 0
    assert route or share >= 0.9
    assert mito["failures"] == 0
