"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rollout.config import EngineConfig

DEFAULT_KEY_ENV = "ROLLOUT_API_KEY"

Model = Annotated[
    str | None, typer.Option("-m", "--model", help="Served model name.", show_default="the server's only one")
]
BaseUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--base-url",
        help="The server's address; give several to share the work.",
        show_default="the embedded model plays",
    ),
]
TransportName = Annotated[
    str | None,
    typer.Option("--transport", help="auto, vllm, sglang, dynamo, or another that is installed.", show_default="auto"),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="Name or folder of the model's tokenizer.", show_default="what the server names, or the model"),
]
Renderer = Annotated[
    str | None, typer.Option(help="A family of `renderers`, template, server, or auto.", show_default="auto")
]
Reader = Annotated[
    str | None,
    typer.Option(help="What reads the model's calls: hermes, llama, mistral and others, or auto.", show_default="auto"),
]
KeyEnv = Annotated[
    str | None,
    typer.Option("--api-key-env", help="Variable that holds the API key.", show_default=f"{DEFAULT_KEY_ENV}"),
]
Processes = Annotated[
    int | None, typer.Option("--processes", help="Processes that play, where one core is not enough.", show_default="1")
]
SamplingArgs = Annotated[
    list[str] | None,
    typer.Option("-s", "--sampling", help="KEY=VALUE for the server.", show_default="its own defaults"),
]
RoutedExperts = Annotated[
    bool | None,
    typer.Option("--routed-experts", help="Keep the experts that each token was routed to.", show_default="no"),
]
SamplingMask = Annotated[
    bool | None,
    typer.Option("--sampling-mask", help="Keep the ids that each token was drawn from.", show_default="no"),
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Completion length per turn at most.", show_default="what fits the context")
]
ServerWait = Annotated[
    float | None,
    typer.Option(
        "--server-wait", help="Seconds to wait where no server is there.", show_default="at the start 0, later 300"
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", help="Where Prometheus finds the numbers; 0: any free port.", show_default="none"),
]
MetricsHost = Annotated[
    str | None, typer.Option("--metrics-host", help="What that listens on.", show_default="127.0.0.1")
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on standard output, and nothing else there.", show_default="a table"),
]


def engine_config(
    base_url: str | Sequence[str] | None,
    model: str | None,
    transport: str | None,
    tokenizer: str | None,
    renderer: str | None,
    reader: str | None,
    api_key_env: str | None,
) -> EngineConfig:
    """What those of these options that were given say of the model, and the defaults of the others."""
    from rollout.config import EngineConfig

    return EngineConfig(
        base_url=base_url,
        model=model,
        transport=transport or "auto",
        tokenizer=tokenizer,
        renderer=renderer or "auto",
        reader=reader or "auto",
        api_key_env=api_key_env or default_key_env(),
    )


def default_key_env() -> str | None:
    """The variable that holds the API key where none was named, if it is set."""
    return DEFAULT_KEY_ENV if os.environ.get(DEFAULT_KEY_ENV) else None
