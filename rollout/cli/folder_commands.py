"""Commands that read what there is: `rollout export`, `show`, `envs`.

Heavy imports are inside, so that `--help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from rollout.cli.command import command_of
from rollout.cli.options import Json


def export(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    format: Annotated[
        str, typer.Option(help="jsonl, parquet, safetensors, or a trainer's: openrlhf, prime-rl, skyrl, slime.")
    ] = "jsonl",
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
            unknown = f"; {done.unknown_rewards} of them without a reward" if done.unknown_rewards else ""
            the.output.write(f"{done.path}: {done.samples} samples, {tokens}{unknown}\n")
        return 0

    the.do(go)


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
