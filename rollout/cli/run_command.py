"""`rollout run`: its options, which are a run's settings. What it does is in `rollout.cli.run`.

Heavy imports are inside, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rollout.cli.command import command_of
from rollout.cli.options import (
    BaseUrls,
    Json,
    KeyEnv,
    MaxTokens,
    MetricsHost,
    MetricsPort,
    Model,
    Processes,
    Reader,
    Renderer,
    RoutedExperts,
    SamplingArgs,
    SamplingMask,
    ServerWait,
    Tokenizer,
    TransportName,
    default_key_env,
)
from rollout.errors import UsageError

EXIT_STATUS = (
    "Exit status: 0 all was played; 1 a rollout failed, the run was stopped, or it left nothing to train on; 2 wrong "
    "use; 3 the server could not be reached, or refused; 4 too many rollouts failed (--fail-fast, --max-failures). "
    "Control-C once lets running turns end, twice ends at once, three times leaves; SIGTERM and SIGHUP do the same."
)


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
    launch: Annotated[
        str | None,
        typer.Option(
            help="How processes are started: local, ray, or a name of `rollout.launchers`.", show_default="local"
        ),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="The Ray cluster.", show_default="RAY_ADDRESS, else the one on this machine")
    ] = None,
    ray_num_cpus: Annotated[
        float | None, typer.Option(help="CPUs that Ray places a process by.", show_default="1")
    ] = None,
    ray_resources: Annotated[
        list[str] | None,
        typer.Option("--ray-resource", help="NAME=AMOUNT that a process's node must have.", show_default="none"),
    ] = None,
    ray_runtime_env: Annotated[
        str | None,
        typer.Option(
            help="Ray's runtime environment of the processes, as JSON or a file of it.", show_default="the cluster's"
        ),
    ] = None,
    ray_listen: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of this machine for the processes.", show_default="its node's address"),
    ] = None,
    env_args: Annotated[
        list[str] | None,
        typer.Option("-a", "--env-arg", help="KEY=VALUE for the environment.", show_default="its own defaults"),
    ] = None,
    sampling: SamplingArgs = None,
    template_args: Annotated[
        list[str] | None, typer.Option("--template-arg", help="KEY=VALUE for the chat template.", show_default="none")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="A JSONL file with one task per line.", show_default="the environment's own tasks"),
    ] = None,
    max_tokens: MaxTokens = None,
    routed_experts: RoutedExperts = None,
    sampling_mask: SamplingMask = None,
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
    proxy_host: Annotated[
        str | None,
        typer.Option(help="Where agents' programs find the model: 0.0.0.0 for containers.", show_default="127.0.0.1"),
    ] = None,
    proxy_address: Annotated[
        str | None,
        typer.Option(help="The address that such programs are told, where it is another.", show_default="the host"),
    ] = None,
    agent_sampling: Annotated[
        str | None,
        typer.Option(help="Whose sampling holds for such programs: run, or keep for their own.", show_default="run"),
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
    server_wait_s: ServerWait = None,
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
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            help="tensorboard:FOLDER, wandb:PROJECT, mlflow:EXPERIMENT or trackio:PROJECT; may be given again.",
            show_default="none",
        ),
    ] = None,
    tracing: Annotated[
        bool | None,
        typer.Option("--tracing", help="Spans over OTLP, as OTEL_ variables say.", show_default="no"),
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
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
        from rollout.store.settings import concurrency_of, json_object, key_values, read_settings

        flags["env_args"] = key_values(env_args, "-a", as_json=False) or None
        flags["base_url"] = base_url or None
        flags["log"] = log or None
        flags["concurrency"] = concurrency_of(concurrency)
        flags["sampling"] = key_values(sampling, "-s", as_json=True)
        flags["ray_resources"] = key_values(ray_resources, "--ray-resource", as_json=True) or None
        flags["ray_runtime_env"] = json_object(ray_runtime_env, "--ray-runtime-env")
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
                _check_launch(settings.launch, flags)
                if settings.api_key_env is None:
                    settings.api_key_env = default_key_env()
                played = await Run(settings, output, resume, log, the, given).play()
                return the.tell(played, as_json=json)

        return the.run(play)

    the.do(go)


def _check_launch(launch: Any, flags: Mapping[str, Any]) -> None:
    """Raises UsageError for an option of a Ray cluster's where processes are this machine's: it would do nothing."""
    ignored = next((name for name, value in flags.items() if name.startswith("ray_") and value is not None), None)
    if launch == "local" and ignored is not None:
        option = "--ray-resource" if ignored == "ray_resources" else f"--{ignored.replace('_', '-')}"
        raise UsageError(f"{option} is of a Ray cluster: add --launch ray, or leave it out")
