"""The command line: argv and TOML -> settings -> engine -> exit status (see `rollout.cli.command`).

Heavy imports are inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

from rollout.cli import command
from rollout.cli.command import command_of
from rollout.errors import UsageError

app = typer.Typer(
    name="rollout",
    help="Multi-turn rollouts for reinforcement learning, token-in from turn 2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
    typer.Option("--transport", help="auto, vllm, dynamo, or another that is installed.", show_default="auto"),
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
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on standard output, and nothing else there.", show_default="a table"),
]

EXIT_STATUS = (
    "Exit status: 0 all was played; 1 a rollout failed, the run was stopped, or it left nothing to train on; 2 wrong "
    "use; 3 the server could not be reached, or refused; 4 too many rollouts failed (--fail-fast, --max-failures). "
    "Control-C once lets running turns end, twice ends at once, three times leaves; SIGTERM and SIGHUP do the same."
)


def _version(asked: bool) -> None:
    if asked:
        from rollout import __version__

        typer.echo(f"rollout {__version__}")
        raise typer.Exit


@app.callback()
def _rollout(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say the version, and end.", show_default="no"
        ),
    ] = False,
) -> None:
    """Multi-turn rollouts for reinforcement learning, token-in from turn 2."""


@app.command(epilog=EXIT_STATUS)
def run(
    context: typer.Context,
    env: Annotated[str | None, typer.Argument(help="Name, package.module:Name, or path/to/file.py:Name.")] = None,
    model: Model = None,
    base_url: BaseUrls = None,
    transport: TransportName = None,
    tokenizer: Tokenizer = None,
    renderer: Renderer = None,
    reader: Reader = None,
    api_key_env: KeyEnv = None,
    num_tasks: Annotated[
        int | None, typer.Option("-n", "--num-tasks", help="Tasks to play.", show_default="8; all of --tasks")
    ] = None,
    rollouts_per_task: Annotated[
        int | None,
        typer.Option("-r", "--rollouts-per-task", help="How often each task is played: a group.", show_default="1"),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "-c", "--concurrency", help="Rollouts at once, or auto: as the servers keep up.", show_default="64"
        ),
    ] = None,
    processes: Processes = None,
    env_args: Annotated[
        list[str] | None,
        typer.Option("-a", "--env-arg", help="KEY=VALUE for the environment.", show_default="its own defaults"),
    ] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option("-s", "--sampling", help="KEY=VALUE for the server.", show_default="its own defaults"),
    ] = None,
    template_args: Annotated[
        list[str] | None, typer.Option("--template-arg", help="KEY=VALUE for the chat template.", show_default="none")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="A JSONL file with one task per line.", show_default="the environment's own tasks"),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Completion length per turn at most.", show_default="what fits the context")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="The same as -s temperature=...", show_default="the server's own")
    ] = None,
    max_turns: Annotated[int | None, typer.Option(help="Turns of a rollout at most.", show_default="no limit")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Context length in tokens.", show_default="what the server says")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="tito (token-in) or mito (message-in).", show_default="tito")] = None,
    token_route: Annotated[
        str | None,
        typer.Option(help="Force a token-in route by its path.", show_default="the best that the server has"),
    ] = None,
    thinking_retention: Annotated[
        str | None, typer.Option(help="What is kept of earlier reasoning: all or tool_cycle.", show_default="all")
    ] = None,
    late_system: Annotated[
        str | None,
        typer.Option(
            help="System messages behind the beginning: auto (folded into a user's where the template refuses them), "
            "fold, keep or refuse.",
            show_default="auto",
        ),
    ] = None,
    special_tokens_in_text: Annotated[
        str | None,
        typer.Option(help="Special tokens that users and tools type: text or token.", show_default="text"),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            help="What counts as the same message: strict, loose_tool_call or role_content.", show_default="strict"
        ),
    ] = None,
    require_token_in: Annotated[
        bool | None,
        typer.Option("--require-token-in", help="A fallback to message-in is a failure.", show_default="no"),
    ] = None,
    require_reader: Annotated[
        bool | None,
        typer.Option("--require-reader", help="A model whose calls nothing here reads is refused.", show_default="no"),
    ] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify", help="Check the invariants while running.", show_default="no")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the environment's tasks.", show_default="0")] = None,
    success_at: Annotated[
        float | None,
        typer.Option(help="The reward from which a task counts as solved, for pass@k.", show_default="1.0"),
    ] = None,
    request_timeout_s: Annotated[
        float | None, typer.Option("--request-timeout", help="Seconds for one completion.", show_default="600")
    ] = None,
    step_timeout_s: Annotated[
        float | None, typer.Option("--step-timeout", help="Seconds for one reset or step.", show_default="no limit")
    ] = None,
    episode_timeout_s: Annotated[
        float | None, typer.Option("--episode-timeout", help="Seconds for a whole rollout.", show_default="no limit")
    ] = None,
    score_timeout_s: Annotated[
        float | None,
        typer.Option("--score-timeout", help="Seconds for the environment's score.", show_default="--step-timeout"),
    ] = None,
    close_timeout_s: Annotated[
        float | None,
        typer.Option("--close-timeout", help="Seconds that an environment's close may take.", show_default="60"),
    ] = None,
    max_abandoned_threads: Annotated[
        int | None,
        typer.Option(help="Environments' calls that may hang for ever before the run ends.", show_default="256"),
    ] = None,
    straggler_timeout_s: Annotated[
        float | None,
        typer.Option(
            "--straggler-timeout", help="Seconds for the rest of a group once half have ended.", show_default="no limit"
        ),
    ] = None,
    server_wait_s: Annotated[
        float | None,
        typer.Option(
            "--server-wait", help="Seconds to wait where no server is there.", show_default="at the start 0, later 300"
        ),
    ] = None,
    worker_start_s: Annotated[
        float | None,
        typer.Option("--worker-start", help="Seconds until a process of --processes must play.", show_default="300"),
    ] = None,
    worker_silence_s: Annotated[
        float | None,
        typer.Option(
            "--worker-silence", help="Seconds after which a process that hangs is replaced.", show_default="20"
        ),
    ] = None,
    weights_timeout_s: Annotated[
        float | None,
        typer.Option("--weights-timeout", help="Seconds that loading weights may take.", show_default="600"),
    ] = None,
    rollout_retries: Annotated[
        int | None, typer.Option(help="Play a failed rollout again so often.", show_default="0")
    ] = None,
    http_retries: Annotated[
        int | None, typer.Option(help="Send a request again so often where another try may help.", show_default="4")
    ] = None,
    max_failures: Annotated[
        str | None,
        typer.Option(
            help="Failed rollouts that end the run: a number, or a rate such as 50%.", show_default="no limit"
        ),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="The first failed rollout ends the run.", show_default="no")
    ] = False,
    stop_grace_s: Annotated[
        float | None,
        typer.Option("--stop-grace", help="Seconds for running turns to end after a signal.", show_default="25"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The run folder.", show_default="runs/ENV--MODEL--TIME")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in -o, with its settings.", show_default="a new run")
    ] = False,
    json: Json = False,
    config: Annotated[
        str | None, typer.Option(help="A TOML file with these settings; flags beat it.", show_default="none")
    ] = None,
) -> None:
    """Play rollouts of an environment."""
    flags = dict(locals())
    for name in ("context", "output", "resume", "json", "config", "temperature", "fail_fast"):
        flags.pop(name)
    the = command_of(context)

    def go() -> int:
        from rollout.cli.failure_limit import failure_limit_of
        from rollout.cli.logs import EventLog
        from rollout.cli.resume import resumed_settings
        from rollout.cli.run import Run
        from rollout.store.settings import concurrency_of, key_values, read_settings

        flags["env_args"] = key_values(env_args, "-a", as_json=False) or None
        flags["base_url"] = base_url or None
        flags["concurrency"] = concurrency_of(concurrency)
        flags["sampling"] = key_values(sampling, "-s", as_json=True)
        if temperature is not None:
            flags["sampling"]["temperature"] = temperature
        flags["template_args"] = key_values(template_args, "--template-arg", as_json=True) or None
        flags["sampling"] = flags["sampling"] or None
        flags["max_failures"] = failure_limit_of(max_failures, fail_fast=fail_fast)
        if resume and output is None:
            raise UsageError("--resume needs -o DIR, the folder of the run to go on with")

        async def play() -> int:
            with EventLog() as log:
                given: frozenset[str] = frozenset()
                if resume and output is not None:
                    settings, given = resumed_settings(output, config, flags)
                else:
                    settings = read_settings(config, flags)
                if settings.api_key_env is None:
                    settings.api_key_env = _default_key_env()
                played = await Run(settings, output, resume, log, the, given).play()
                return the.tell(played, as_json=json)

        return the.run(play)

    the.do(go)


@app.command()
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
        from rollout.config import EngineConfig
        from rollout.probe.probe import probe as ask
        from rollout.probe.probe import rows

        config = EngineConfig(
            base_url=url,
            model=model,
            transport=transport or "auto",
            tokenizer=tokenizer,
            renderer=renderer or "auto",
            reader=reader or "auto",
            api_key_env=api_key_env or _default_key_env(),
        )

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


@app.command()
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
        from rollout.config import EngineConfig

        config = EngineConfig(
            base_url=base_url or None,
            model=model,
            transport=transport or "auto",
            tokenizer=tokenizer,
            renderer=renderer or "auto",
            reader=reader or "auto",
            api_key_env=api_key_env or _default_key_env(),
            processes=1 if processes is None else processes,
        )
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


@app.command()
def export(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    format: Annotated[str, typer.Option(help="jsonl, parquet or safetensors.")] = "jsonl",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file.", show_default="samples.FORMAT in the run's folder")
    ] = None,
    advantage: Annotated[str, typer.Option(help="grpo, leave_one_out or none.")] = "grpo",
    json: Json = False,
) -> None:
    """Write a run's training samples as a file that a trainer reads."""

    the = command_of(context)

    def go() -> int:
        from rollout.store.export import export as write

        done = write(run, output, format, advantage)
        if json:
            the.print_json(msgspec.to_builtins(done))
        else:
            tokens = f"{done.tokens} tokens, {done.trained_tokens} trained on"
            the.output.write(f"{done.path}: {done.samples} samples, {tokens}\n")
        return 0

    the.do(go)


@app.command()
def show(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    worst: Annotated[
        int | None, typer.Option(help="The N finished rollouts with the lowest rewards.", show_default="the first ones")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only rollouts that failed.", show_default="all")] = False,
    task: Annotated[
        str | None, typer.Option(help="One task, by id or index, or one rollout by its id.", show_default="all")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", help="Rollouts at most; 0 is all.", show_default="3; all with --json")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Long texts whole.", show_default="cut in their middle")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object per rollout and line.", show_default="conversations")
    ] = False,
) -> None:
    """Print rollouts of a run as conversations."""
    the = command_of(context)

    def go() -> int:
        from rollout.cli.show import DEFAULT_LIMIT, Choice
        from rollout.cli.show import show as text_of

        most = (None if json else DEFAULT_LIMIT) if limit is None else limit or None
        choice = Choice(worst=worst, failed=failed, task=task, limit=most)
        for text in text_of(run, choice, full=full, as_json=json):
            the.output.write(text)
            if the.output.unread:  # such as by `| head`
                break
        return 0

    the.do(go)


@app.command()
def envs(context: typer.Context, json: Json = False) -> None:
    """List the environments with their arguments and defaults."""

    the = command_of(context)

    def go() -> int:
        from rollout.registry import listed_envs

        listed = listed_envs()
        if json:
            the.print_json(msgspec.to_builtins(listed))
            return 0
        for entry in listed:
            the.output.write(f"{entry.name}   {entry.error or entry.summary}\n")
            for argument in entry.arguments:
                default = "(required)" if argument.required else f"= {argument.default!r}"
                the.output.write(f"    -a {argument.name}: {argument.type} {default}\n")
        return 0

    the.do(go)


@app.command()
def model(context: typer.Context) -> None:
    """Print the embedded model's folder, ready to be served by vLLM or Dynamo."""

    the = command_of(context)

    def go() -> int:
        from rollout.registry import load_entry

        the.output.write(f"{load_entry('rollout.models', 'embedded')}\n")
        return 0

    the.do(go)


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    dialect: Annotated[str, typer.Option(help="vllm or dynamo.")] = "vllm",
    model_dir: Annotated[
        Path | None, typer.Option(help="The model's folder.", show_default="the embedded model's")
    ] = None,
    served_model_name: Annotated[str, typer.Option(help="The name that clients ask for.")] = "rollout-tiny",
    logprobs_mode: Annotated[
        str, typer.Option(help="Logprobs before temperature and filters (raw_logprobs), or processed_logprobs.")
    ] = "raw_logprobs",
) -> None:
    """Serve the embedded model on a port, in vLLM's or Dynamo's dialect."""

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
                say=the.say,
            )
        except KeyboardInterrupt:
            the.say("stopped serving")
        return 0

    the.do(go)


def _default_key_env() -> str | None:
    return DEFAULT_KEY_ENV if os.environ.get(DEFAULT_KEY_ENV) else None


def main() -> NoReturn:
    """The console script."""
    command.main(app)
