"""What the cases of run folders share: an environment's file, and the command in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from rollout.cli.app import app


def env_file(folder: Path, source: str) -> str:
    """Writes an environment `E`; returns its name. A file is run once in a process, so each is another."""
    path = folder / f"env_of_{folder.name}.py"
    path.write_text(f"import asyncio, math, random\nfrom rollout import Env, Step, user\n{source}")
    return f"{path}:E"


def command(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_bytes().splitlines()]
