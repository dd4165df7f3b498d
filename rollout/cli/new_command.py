"""`rollout new`: a package with an environment or an agent, which is played by its name once it is installed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rollout.cli.command import command_of
from rollout.cli.options import Json


class Kind(StrEnum):
    """What a package may hold."""

    ENV = "env"
    AGENT = "agent"


def new(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="env, which is driven, or agent, which drives.")],
    name: Annotated[str, typer.Argument(help="Its name: letters, digits, - and _.")],
    path: Annotated[Path, typer.Option(help="The folder in which the package's own is made.")] = Path("."),
    json: Json = False,
) -> None:
    """Make a package with an environment or an agent: entry point, README, and a test that passes."""

    the = command_of(context)

    def go() -> int:
        from rollout.cli.new_package import make

        made = make(kind.value, name, path)
        if json:
            the.print_json({"name": made.name, "folder": str(made.folder), "files": made.files})
            return 0
        the.output.write("".join(f"{made.folder / file}\n" for file in made.files))
        the.output.write(f"pip install -e {made.shown} && rollout run {made.name} -n 4\n")
        return 0

    the.do(go)
