"""The console script, and `python -m rollout`: the command line, or one line that says what it needs."""

from __future__ import annotations

import sys
from importlib.util import find_spec

#: What the command line imports, of the extra `cli`: a trainer that embeds the engine has none of it.
NEEDED = ("typer", "rich", "structlog", "tomli_w")


def main() -> None:
    """Leaves with the command's status."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        named = ", ".join(missing)
        print(f"rollout: the command line needs {named}: pip install 'rollout-engine[all]'", file=sys.stderr)
        sys.exit(2)
    from rollout.cli.app import main as command

    command()


if __name__ == "__main__":
    main()
