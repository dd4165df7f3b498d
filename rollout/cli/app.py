"""The command line: argv and TOML -> settings -> engine -> exit status (see `rollout.cli.command`)."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from rollout.cli import command
from rollout.cli.folder_commands import envs, export, show
from rollout.cli.new_command import new
from rollout.cli.proxy_command import proxy
from rollout.cli.run_command import EXIT_STATUS, run
from rollout.cli.server_commands import bench, model, probe, serve

app = typer.Typer(
    name="rollout",
    help="Multi-turn rollouts for reinforcement learning, token-in from turn 2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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


app.command(epilog=EXIT_STATUS)(run)
for _command in (probe, bench, export, show, envs, new, model, serve, proxy):
    app.command()(_command)


def main() -> NoReturn:
    """The console script."""
    command.main(app)
