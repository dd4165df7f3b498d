"""The command line: argv and TOML -> settings -> engine -> exit status.

Exit status: 0 all played, 1 some rollouts failed, 2 wrong use, 3 the server could not be reached or refused.
Heavy imports are inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from rollout.errors import RolloutError, ServerError, UsageError

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
    str | None, typer.Option("-m", "--model", help="Served model name; the server's only one if not given.")
]
BaseUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--base-url", help="The server's address; several share the work. Without it the embedded model plays."
    ),
]
TransportName = Annotated[str | None, typer.Option("--transport", help="auto, vllm, dynamo, embedded.")]
Tokenizer = Annotated[str | None, typer.Option(help="Name or folder of the model's tokenizer.")]
Renderer = Annotated[str | None, typer.Option(help="A family of `renderers`, template, server, or auto.")]
KeyEnv = Annotated[
    str | None, typer.Option("--api-key-env", help=f"Variable that holds the API key [{DEFAULT_KEY_ENV}].")
]
Processes = Annotated[
    int | None, typer.Option("--processes", help="Processes that play, where one core is not enough [1].")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else there.")]


@app.command()
def run(
    env: Annotated[str | None, typer.Argument(help="Name, package.module:Name, or path/to/file.py:Name.")] = None,
    model: Model = None,
    base_url: BaseUrls = None,
    transport: TransportName = None,
    tokenizer: Tokenizer = None,
    renderer: Renderer = None,
    api_key_env: KeyEnv = None,
    num_tasks: Annotated[int | None, typer.Option("-n", "--num-tasks", help="Tasks to play [8].")] = None,
    rollouts_per_task: Annotated[int | None, typer.Option("-r", "--rollouts-per-task")] = None,
    concurrency: Annotated[
        str | None, typer.Option("-c", "--concurrency", help="Rollouts at once [64], or auto: as the servers keep up.")
    ] = None,
    processes: Processes = None,
    env_args: Annotated[
        list[str] | None, typer.Option("-a", "--env-arg", help="KEY=VALUE for the environment.")
    ] = None,
    sampling: Annotated[list[str] | None, typer.Option("-s", "--sampling", help="KEY=VALUE for the server.")] = None,
    template_args: Annotated[
        list[str] | None, typer.Option("--template-arg", help="KEY=VALUE for the template.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="A JSONL file with one task per line.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Completion length per turn at most.")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    max_turns: Annotated[int | None, typer.Option()] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Context length; asks the server if not given.")] = None,
    mode: Annotated[str | None, typer.Option(help="tito (token-in) or mito (message-in).")] = None,
    token_route: Annotated[str | None, typer.Option(help="Force a token-in route by its path.")] = None,
    thinking_retention: Annotated[str | None, typer.Option(help="all or tool_cycle.")] = None,
    match: Annotated[
        str | None, typer.Option(help="What counts as the same message: strict, loose_tool_call or role_content.")
    ] = None,
    require_token_in: Annotated[
        bool | None, typer.Option("--require-token-in", help="A fallback is a failure.")
    ] = None,
    verify: Annotated[bool | None, typer.Option("--verify", help="Check the invariants while running.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the environment's tasks.")] = None,
    request_timeout_s: Annotated[float | None, typer.Option("--request-timeout")] = None,
    step_timeout_s: Annotated[float | None, typer.Option("--step-timeout")] = None,
    episode_timeout_s: Annotated[float | None, typer.Option("--episode-timeout")] = None,
    score_timeout_s: Annotated[float | None, typer.Option("--score-timeout")] = None,
    close_timeout_s: Annotated[
        float | None, typer.Option("--close-timeout", help="Seconds that an environment's close may take [60].")
    ] = None,
    max_abandoned_threads: Annotated[
        int | None, typer.Option(help="Environments' calls that may hang for ever before the run ends [256].")
    ] = None,
    straggler_timeout_s: Annotated[
        float | None, typer.Option("--straggler-timeout", help="Seconds for the rest of a group once half have ended.")
    ] = None,
    server_wait_s: Annotated[
        float | None,
        typer.Option("--server-wait", help="Seconds to wait where no server is there [at the start 0, later 300]."),
    ] = None,
    worker_start_s: Annotated[
        float | None, typer.Option("--worker-start", help="Seconds until a process of --processes must play [300].")
    ] = None,
    worker_silence_s: Annotated[
        float | None,
        typer.Option("--worker-silence", help="Seconds after which a process that hangs is replaced [20]."),
    ] = None,
    weights_timeout_s: Annotated[
        float | None, typer.Option("--weights-timeout", help="Seconds that loading weights may take [600].")
    ] = None,
    rollout_retries: Annotated[int | None, typer.Option(help="Play a failed rollout again so often [0].")] = None,
    http_retries: Annotated[int | None, typer.Option()] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in -o, with its settings.")] = False,
    json: Json = False,
    config: Annotated[str | None, typer.Option(help="A TOML file with these settings; flags beat it.")] = None,
) -> None:
    """Play rollouts of an environment."""
    flags = dict(locals())
    for name in ("output", "resume", "json", "config", "temperature"):
        flags.pop(name)

    def go() -> int:
        import anyio

        from rollout.logs import EventLog
        from rollout.play import Run
        from rollout.resume import resumed_settings
        from rollout.settings import concurrency_of, key_values, read_settings

        flags["env_args"] = key_values(env_args, "-a", as_json=False) or None
        flags["base_url"] = base_url or None
        flags["concurrency"] = concurrency_of(concurrency)
        flags["sampling"] = key_values(sampling, "-s", as_json=True)
        if temperature is not None:
            flags["sampling"]["temperature"] = temperature
        flags["template_args"] = key_values(template_args, "--template-arg", as_json=True) or None
        flags["sampling"] = flags["sampling"] or None
        if resume and output is None:
            raise UsageError("--resume needs -o DIR, the folder of the run to go on with")
        with EventLog() as log:
            given: frozenset[str] = frozenset()
            if resume and output is not None:
                settings, given = resumed_settings(output, config, flags)
            else:
                settings = read_settings(config, flags)
            if settings.api_key_env is None:
                settings.api_key_env = _default_key_env()
            played = anyio.run(Run(settings, output, resume, log, given).play)
        if json:
            _print_json(played.result)
        return 0 if played.complete else 1

    _guarded(go)


@app.command()
def probe(
    url: Annotated[str | None, typer.Argument(help="The server's address; the embedded model if not given.")] = None,
    model: Model = None,
    transport: TransportName = None,
    tokenizer: Tokenizer = None,
    renderer: Renderer = None,
    api_key_env: KeyEnv = None,
    json: Json = False,
) -> None:
    """Tell what a server can do, and the command line to use."""

    def go() -> int:
        import anyio

        from rollout import progress
        from rollout.config import EngineConfig
        from rollout.logs import EventLog
        from rollout.probe import probe as ask
        from rollout.probe import rows

        config = EngineConfig(
            base_url=url,
            model=model,
            transport=transport or "auto",
            tokenizer=tokenizer,
            renderer=renderer or "auto",
            api_key_env=api_key_env or _default_key_env(),
        )
        with EventLog():
            found = anyio.run(ask, config)
        if json:
            _print_json(msgspec.to_builtins(found))
        else:
            progress.print_rows(progress.make_console(), found.url, rows(found))
        return 0

    _guarded(go)


@app.command()
def bench(
    model: Model = None,
    base_url: BaseUrls = None,
    transport: TransportName = None,
    tokenizer: Tokenizer = None,
    renderer: Renderer = None,
    api_key_env: KeyEnv = None,
    turns: Annotated[
        str | None,
        typer.Option(help="Turns of a conversation; several with commas [8,32,128; 4,16 on the embedded model]."),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "-c", "--concurrency", help="Rollouts at once; several with commas [16,64,256; 16 on the embedded model]."
        ),
    ] = None,
    processes: Processes = None,
    replay: Annotated[
        Path | None, typer.Option(help="A run's folder: play its environment's side again, with its lengths.")
    ] = None,
    rollouts: Annotated[int | None, typer.Option("-n", "--rollouts", help="Of each run [the concurrency].")] = None,
    env_chars: Annotated[int, typer.Option(help="Characters of each message of the environment.")] = 400,
    max_tokens: Annotated[int, typer.Option(help="Tokens of every completion.")] = 32,
    repeats: Annotated[int, typer.Option(help="Runs of each mode.")] = 3,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of results.json, results.md, report.html.")
    ] = Path("runs/bench"),
    json: Json = False,
) -> None:
    """Compare token-in with message-in on the same conversations."""

    def go() -> int:
        import anyio

        from rollout.bench import bench as compare
        from rollout.bench import faults, markdown, said, settings_of
        from rollout.config import EngineConfig
        from rollout.logs import EventLog

        config = EngineConfig(
            base_url=base_url or None,
            model=model,
            transport=transport or "auto",
            tokenizer=tokenizer,
            renderer=renderer or "auto",
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
        with EventLog():
            results = anyio.run(compare, settings, output, lambda run: print(said(run), file=sys.stderr, flush=True))
        if json:
            _print_json(msgspec.to_builtins(results))
        else:
            typer.echo(markdown(results), nl=False)
        return 1 if faults(results.runs) else 0

    _guarded(go)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    format: Annotated[str, typer.Option(help="jsonl, parquet or safetensors.")] = "jsonl",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file; in the run's folder if not given.")
    ] = None,
    advantage: Annotated[str, typer.Option(help="grpo, leave_one_out or none.")] = "grpo",
    json: Json = False,
) -> None:
    """Write a run's training samples as a file that a trainer reads."""

    def go() -> int:
        from rollout.export import export as write

        done = write(run, output, format, advantage)
        if json:
            _print_json(msgspec.to_builtins(done))
        else:
            typer.echo(f"{done.path}: {done.samples} samples, {done.tokens} tokens, {done.trained_tokens} trained on")
        return 0

    _guarded(go)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    worst: Annotated[int | None, typer.Option(help="The N finished rollouts with the lowest rewards.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only rollouts that failed.")] = False,
    task: Annotated[str | None, typer.Option(help="One task, by id or index, or one rollout by its id. [all]")] = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", help="Rollouts at most; 0 is all. [3; all with --json]")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Long texts whole. [cut in their middle]")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per rollout and line. [conversations]")] = False,
) -> None:
    """Print rollouts of a run as conversations."""

    def go() -> int:
        from rollout.show import DEFAULT_LIMIT, Choice
        from rollout.show import show as text_of

        most = (None if json else DEFAULT_LIMIT) if limit is None else limit or None
        choice = Choice(worst=worst, failed=failed, task=task, limit=most)
        try:
            for text in text_of(run, choice, full=full, as_json=json):
                typer.echo(text, nl=False)
        except BrokenPipeError:  # such as by `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

    _guarded(go)


@app.command()
def envs(json: Json = False) -> None:
    """List the environments with their arguments and defaults."""

    def go() -> int:
        from rollout.registry import arguments_of, env_names, find_env

        listed = []
        for name in env_names():
            env = find_env(name)
            summary = (env.__doc__ or "").strip().splitlines()[:1]
            arguments = [msgspec.to_builtins(argument) for argument in arguments_of(env)]
            listed.append({"name": name, "summary": summary[0] if summary else "", "arguments": arguments})
        if json:
            _print_json(listed)
            return 0
        for entry in listed:
            typer.echo(f"{entry['name']}   {entry['summary']}")
            for argument in entry["arguments"]:
                default = "(required)" if argument["required"] else f"= {argument['default']!r}"
                typer.echo(f"    -a {argument['name']}: {argument['type']} {default}")
        return 0

    _guarded(go)


@app.command()
def model() -> None:
    """Print the embedded model's folder, ready to be served by vLLM or Dynamo."""

    def go() -> int:
        from rollout.registry import load_entry

        typer.echo(str(load_entry("rollout.models", "embedded")))
        return 0

    _guarded(go)


@app.command()
def serve(
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
    dialect: Annotated[str, typer.Option(help="vllm or dynamo.")] = "vllm",
    model_dir: Annotated[Path | None, typer.Option(help="A folder in place of the embedded model's.")] = None,
    served_model_name: Annotated[str, typer.Option()] = "rollout-tiny",
) -> None:
    """Serve the embedded model on a port, in vLLM's or Dynamo's dialect."""

    def go() -> int:
        from rollout.registry import load_entry

        serve_embedded = load_entry("rollout.servers", "embedded")
        serve_embedded(host=host, port=port, dialect=dialect, model_dir=model_dir, served_name=served_model_name)
        return 0

    _guarded(go)


def _default_key_env() -> str | None:
    return DEFAULT_KEY_ENV if os.environ.get(DEFAULT_KEY_ENV) else None


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def _guarded(command: Callable[[], int]) -> None:
    """Runs a command; a user's mistake and a server's are one line and an exit status."""
    from rollout.registry import check_packages

    try:
        check_packages()
        status = command()
    except RolloutError as error:
        print(f"rollout: {error}", file=sys.stderr)
        status = 3 if isinstance(error, ServerError) else 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        status = 1
    raise typer.Exit(status)


def main() -> None:
    """The console script."""
    app()
