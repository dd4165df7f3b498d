"""The command in a process of its own, and environments in files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROLLOUT = Path(sys.executable).with_name("rollout")

IMPORTS = "import asyncio, atexit, logging, math, os, random, signal, subprocess, sys, threading, time\n"


def env_file(folder: Path, source: str) -> str:
    """An environment `E` in a file; gives its name for the command."""
    path = folder / "case_env.py"
    path.write_text(f"{IMPORTS}from rollout import Env, Step, user\n{source}")
    return f"{path}:E"


def command(*arguments: object) -> list[str]:
    return [str(ROLLOUT), *map(str, arguments)]


def ran(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`rollout` with these arguments, to its end."""
    options.setdefault("env", {**os.environ, "COLUMNS": "140"})
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The rollouts of a run folder, as they are written."""
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_bytes().splitlines()]


def kinds(folder: Path) -> list[str | None]:
    """What each rollout failed of; None for those that did not."""
    return [(line.get("failure") or {}).get("kind") for line in lines(folder)]
