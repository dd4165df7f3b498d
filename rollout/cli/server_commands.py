"""Commands that ask a server, or are one: `rollout probe`, `bench`, `serve`, `model`.

Heavy imports are inside, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from rollout.cli.command import command_of
from rollout.cli.options import (
    BaseUrls,
    Json,
    KeyEnv,
    Model,
    Processes,
    Reader,
    Renderer,
    Tokenizer,
    TransportName,
    engine_config,
)


def probe(
    context: typer.Context,
    url: Annotated[str | None, typer.Argument(help="The server's address; the embedded model if not given.")] = None,
    model: Model = None,
    transport: TransportName = None,
    tokenizer: Tokenizer = None,
    renderer: Renderer = None,
    reader: Reader = None,
    api_key_env: KeyEnv = None,
    json: Json = False,
) -> None:
    """Tell what a server can do, and the command line to use."""

    the = command_of(context)

    def go() -> int:
        from rollout.cli import progress
        from rollout.cli.logs import EventLog
        from rollout.probe.probe import probe as ask
        from rollout.probe.probe import rows

        config = engine_config(url, model, transport, tokenizer, renderer, reader, api_key_env)

        async def asked() -> int:
            with EventLog():
                found = await ask(config)
            if json:
                the.print_json(msgspec.to_builtins(found))
            else:
                the.output.write(progress.table_text(found.url, rows(found), terminal=the.output.is_terminal))
            return 0

        return the.run(asked)

    the.do(go)


def bench(
    context: typer.Context,
    model: Model = None,
    base_url: BaseUrls = None,
    transport: TransportName = None,
    tokenizer: Tokenizer = None,
    renderer: Renderer = None,
    reader: Reader = None,
    api_key_env: KeyEnv = None,
    turns: Annotated[
        str | None,
        typer.Option(
            help="Turns of a conversation; several with commas.", show_default="8,32,128; 4,16 on the embedded model"
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--concurrency",
            help="Rollouts at once; several with commas.",
            show_default="16,64,256; 16 on the embedded model",
        ),
    ] = None,
    processes: Processes = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="A run's folder: play its environment's side again, with its lengths.", show_default="none"),
    ] = None,
    rollouts: Annotated[
        int | None, typer.Option("-n", "--rollouts", help="Of each run.", show_default="the concurrency")
    ] = None,
    env_chars: Annotated[int, typer.Option(help="Characters of each message of the environment.")] = 400,
    max_tokens: Annotated[int, typer.Option(help="Tokens of every completion.")] = 32,
    repeats: Annotated[int, typer.Option(help="Runs of each mode.")] = 3,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of results.json, results.md, report.html.")
    ] = Path("runs/bench"),
    json: Json = False,
) -> None:
    """Compare token-in with message-in on the same conversations."""

    the = command_of(context)

    def go() -> int:
        from rollout.bench import bench as compare
        from rollout.bench import faults, markdown, said, settings_of
        from rollout.cli.logs import EventLog

        config = engine_config(base_url or None, model, transport, tokenizer, renderer, reader, api_key_env)
        config.processes = 1 if processes is None else processes
        settings = settings_of(
            config,
            turns=turns,
            concurrency=concurrency,
            replay=str(replay) if replay else None,
            rollouts=rollouts,
            env_chars=env_chars,
            max_tokens=max_tokens,
            repeats=repeats,
        )

        async def compared() -> int:
            with EventLog():
                results = await compare(settings, output, lambda run: print(said(run), file=sys.stderr, flush=True))
            if json:
                the.print_json(msgspec.to_builtins(results))
            else:
                the.output.write(markdown(results))
            return 1 if faults(results.runs) else 0

        return the.run(compared)

    the.do(go)


def model(context: typer.Context) -> None:
    """Print the embedded model's folder, ready to be served by vLLM, SGLang or Dynamo."""

    the = command_of(context)

    def go() -> int:
        from rollout.registry import load_entry

        the.output.write(f"{load_entry('rollout.models', 'embedded')}\n")
        return 0

    the.do(go)


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    dialect: Annotated[str, typer.Option(help="vllm, sglang or dynamo.")] = "vllm",
    model_dir: Annotated[
        Path | None, typer.Option(help="The model's folder.", show_default="the embedded model's")
    ] = None,
    served_model_name: Annotated[str, typer.Option(help="The name that clients ask for.")] = "rollout-tiny",
    logprobs_mode: Annotated[
        str | None,
        typer.Option(
            help="Logprobs before temperature and filters (raw_logprobs), or processed_logprobs.",
            show_default="raw_logprobs; processed_logprobs as SGLang",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Clients must send this key.", envvar="ROLLOUT_SERVE_API_KEY", show_default="none is asked for"
        ),
    ] = None,
) -> None:
    """Serve the embedded model on a port, in vLLM's, SGLang's or Dynamo's dialect."""

    the = command_of(context)

    def go() -> int:
        from rollout.registry import load_entry

        serve_embedded = load_entry("rollout.servers", "embedded")
        try:
            serve_embedded(
                host=host,
                port=port,
                dialect=dialect,
                model_dir=model_dir,
                served_name=served_model_name,
                logprobs_mode=logprobs_mode,
                api_key=api_key,
                say=the.say,
            )
        except KeyboardInterrupt:
            the.say("stopped serving")
        return 0

    the.do(go)
