"""`rollout proxy`: a recorder in front of a server. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rollout.cli.command import Command, Played, command_of
from rollout.cli.options import (
    BaseUrls,
    Json,
    KeyEnv,
    MaxTokens,
    MetricsHost,
    MetricsPort,
    Model,
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

if TYPE_CHECKING:
    from rollout.cli.summary import Summary
    from rollout.errors import RolloutError
    from rollout.observe.outcomes import Outcomes
    from rollout.observe.stats import Stats
    from rollout.proxy.recorder import RecorderSettings
    from rollout.proxy.recording import Recording
    from rollout.records import Rollout
    from rollout.store.settings import RunSettings

#: How long turns under way may take to end after a signal. Slurm and Kubernetes kill after 30 s.
_GRACE_S = 20.0


def proxy(
    context: typer.Context,
    model: Model = None,
    base_url: BaseUrls = None,
    transport: TransportName = None,
    tokenizer: Tokenizer = None,
    renderer: Renderer = None,
    reader: Reader = None,
    api_key_env: KeyEnv = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The folder of what is recorded; one that is there goes on.",
            show_default="runs/proxy--MODEL--TIME",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; beyond this machine only with a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8080,
    address: Annotated[
        str | None, typer.Option(help="The address that agents are told.", show_default="where it listens")
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(help="Variable that holds a token, which /sessions then asks for.", show_default="none"),
    ] = None,
    agent_sampling: Annotated[
        str, typer.Option(help="Whose sampling holds: the agent's (keep), or the one given here (run).")
    ] = "keep",
    sampling: SamplingArgs = None,
    max_tokens: MaxTokens = None,
    routed_experts: RoutedExperts = None,
    sampling_mask: SamplingMask = None,
    max_turns: Annotated[int | None, typer.Option(help="Turns of a session at most.", show_default="no limit")] = None,
    idle: Annotated[float, typer.Option(help="Seconds after which a session that nobody uses has ended.")] = 3600.0,
    max_sessions: Annotated[int, typer.Option(help="Sessions that have not ended, at most.")] = 10_000,
    keepalive: Annotated[
        float, typer.Option(help="Seconds until a stream begins whose answer is not there, and between its comments.")
    ] = 15.0,
    fsync: Annotated[
        bool,
        typer.Option("--fsync", help="Have each turn on the disk before it is answered.", show_default="flushed only"),
    ] = False,
    server_wait_s: ServerWait = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every trajectory's invariants.", show_default="off")
    ] = False,
    json: Json = False,
) -> None:
    """Record whatever agent is pointed at it, in front of a server: each API key's turns are a rollout."""

    the = command_of(context)

    def go() -> int:
        from rollout.errors import ConfigError
        from rollout.play.connect import api_key
        from rollout.store.settings import key_values, read_settings

        try:
            from rollout.proxy.recorder import RecorderSettings
        except ImportError as error:
            why = f"to record over HTTP {error.name} is needed: pip install 'rollout-engine[proxy]'"
            raise ConfigError(why) from error

        flags = {
            "env": "proxy",
            "base_url": base_url or None,
            "model": model,
            "transport": transport,
            "tokenizer": tokenizer,
            "renderer": renderer,
            "reader": reader,
            "api_key_env": api_key_env or default_key_env(),
            "proxy_host": host,
            "proxy_port": port,
            "proxy_address": address,
            "proxy_keepalive_s": keepalive,
            "agent_sampling": agent_sampling,
            "sampling": key_values(sampling, "-s", as_json=True) or None,
            "max_tokens": max_tokens,
            "routed_experts": routed_experts,
            "sampling_mask": sampling_mask,
            "max_turns": max_turns,
            "server_wait_s": server_wait_s,
            "verify": verify,
            "metrics_port": metrics_port,
            "metrics_host": metrics_host,
        }
        _check(idle, max_sessions, keepalive)
        settings = read_settings(None, flags)
        recorder = RecorderSettings(fsync=fsync, idle_s=idle, most_sessions=max_sessions)
        token = api_key(token_env)
        return the.run(lambda: _record(the, settings, recorder, output, token, json))

    the.do(go)


def _check(idle: float, max_sessions: int, keepalive: float) -> None:
    from rollout.errors import ConfigError

    for option, seconds in (("--idle", idle), ("--keepalive", keepalive)):
        if not seconds > 0:
            raise ConfigError(f"{option} must be above 0 seconds, not {seconds:g}")
    if max_sessions < 1:
        raise ConfigError(f"--max-sessions must be 1 or more, not {max_sessions}")


async def _record(
    the: Command,
    settings: RunSettings,
    recorder_settings: RecorderSettings,
    output: Path | None,
    token: str | None,
    as_json: bool,
) -> int:
    """Records until a signal comes, or the disk takes no more."""
    import anyio

    from rollout.cli.logs import EventLog
    from rollout.cli.metrics import serving_metrics
    from rollout.loop.collector import infrequent_full_gc
    from rollout.observe.outcomes import Outcomes
    from rollout.observe.stats import Stats
    from rollout.proxy.recording import recording_on
    from rollout.store.folder import EVENTS

    stop = anyio.Event()
    errors: list[RolloutError] = []

    def failed(error: RolloutError) -> None:
        errors.append(error)
        stop.set()

    with EventLog() as log, infrequent_full_gc():
        async with recording_on(settings, recorder_settings, output, token=token, on_failed=failed) as served:
            recorder, folder, started = served.recorder, served.recorder.folder, time.perf_counter()
            log.open(folder.path / EVENTS)
            the.log_path = log.path
            summary = _summary(served, settings)
            ended = Outcomes()

            def on_rollout(rollout: Rollout) -> None:
                summary.add(rollout)
                ended.add(rollout)

            folder.on_rollout = on_rollout
            left = f"; {len(recorder)} sessions go on" if len(recorder) else ""
            the.say(f"recording {summary.model} on {served.url} in {folder.path}{left}")
            stats_of = partial(_stats, served, ended)
            async with serving_metrics(stats_of, settings.metrics_port, settings.metrics_host, the.say):
                with the.signals.meaning(stop.set, patience_s=_GRACE_S):
                    await stop.wait()
                    the.say(f"stopping: turns under way have {_GRACE_S:g} s to end; control-C again stops at once")
                    with contextlib.suppress(UsageError):  # it is among the errors
                        await recorder.stop(0.0 if errors else _GRACE_S)
            stats = Stats()
            stats.add(served.played())
            played = _played(summary, folder.path, time.perf_counter() - started, stats)
            with contextlib.suppress(OSError):  # a full disk is said by what it stopped
                folder.write_summary(played.result)
    played.error = errors[0] if errors else None
    return the.tell(played, as_json=as_json)


def _stats(served: Recording, ended: Outcomes) -> Stats:
    """Where the recorder stands: its sessions are what runs."""
    from rollout.observe.stats import Stats, Tallies

    stats = Stats(running=len(served.recorder), servers=served.states())
    Tallies(ended=ended, rewards=ended.rewards).tell(stats)
    stats.add(served.played())
    return stats


def _summary(served: Recording, settings: RunSettings) -> Summary:
    """What is told at the end: of the sessions whose lines this process has written."""
    from rollout.cli.summary import Summary

    model = served.model
    summary = Summary(env=settings.env, mode=settings.mode, model=model.info.model, transport=model.info.dialect)
    if model.codec is not None:
        summary.bridges = model.codec.description
        summary.reader = model.codec.reader.name if model.codec.reader is not None else ""
    return summary


def _played(summary: Summary, folder: Path, wall_s: float, stats: Stats) -> Played:
    from rollout.cli.summary import table_rows

    result = summary.as_json(wall_s=wall_s, client_cpu_s=time.process_time(), run_dir=str(folder), stats=stats)
    title = f"recorded on {summary.model} ({summary.transport})"
    # How many are played at once is the agents' to say: there is no cap to tell of.
    rows = [row for row in table_rows(summary, wall_s, str(folder), stats) if row[0] != "client"]
    return Played(result, title=title, rows=rows, complete=True)
