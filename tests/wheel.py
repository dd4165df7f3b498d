"""A clean wheel, by itself and with each extra, installed into a fresh environment and used: `make wheel`.

    python -m tests.wheel             # without extras, and with each that users install
    python -m tests.wheel parquet     # only this one

Versions are those of constraints.txt. Nothing of the checkout is on the path of what is tried: a file that the wheel
lacks is missing there, too. Needs an index of packages, so it is no part of `make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

#: Extras for whoever works on a checkout.
TOOLS = frozenset({"dev", "docs"})

#: Extras that an extra is tried beside: the command plays on the embedded model.
BESIDE = {"parquet": "cli,serve", "plot": "cli,serve"}

#: Extras that are tried in another's environment, which spares one of their own, unless they are asked for.
WITHIN = {
    **{"metrics": "all", "plot": "parquet", "trl": "train"},
    **dict.fromkeys(("otel", "tensorboard", "wandb", "mlflow"), "trackio"),
}

#: Extras whose packages do not agree with our own versions: those of the environment where they are tested.
VERSIONS = dict.fromkeys(("tensorboard", "wandb", "mlflow", "trackio", "otel"), "tests/live/constraints-loggers.txt")

#: What the wheel without an extra is called here.
ALONE = "none"

#: What an extra is for, tried in its environment.
USES = {
    ALONE: [["python", "-c", "from rollout import Engine, EngineThread; import transports.auto, transports.scripted"]],
    "cli": [["rollout", "--version"], ["rollout", "envs"], ["rollout", "new", "env", "word-game"]],
    "serve": [["python", "-c", "import transports.embedded.transport, transports.embedded.serve"]],
    "proxy": [["python", "-c", "import rollout.proxy.app, uvicorn"]],
    "metrics": [["python", "-c", "from rollout.observe.prometheus import StatsCollector, serve"]],
    "tensorboard": [["python", "-c", "from rollout.observe.trackers.tensorboard import TensorBoard"]],
    "wandb": [["python", "-c", "from rollout.observe.trackers.wandb import WandB"]],
    "mlflow": [["python", "-c", "from rollout.observe.trackers.mlflow import Mlflow"]],
    "trackio": [["python", "-c", "from rollout.observe.trackers.trackio import Trackio"]],
    "otel": [["python", "-c", "from rollout.observe.exporting import export_spans; export_spans()()"]],
    "ray": [["python", "-c", "import ray; from rollout.workers.ray import RayLaunch"]],
    "all": [["rollout", "run", "guess_number", "-n", "1", "-o", "run"], ["rollout", "export", "run"]],
    "parquet": [
        ["rollout", "run", "guess_number", "-n", "1", "-o", "run"],
        ["rollout", "export", "run", "--format", "parquet"],
    ],
    "plot": [["rollout", "bench", "--turns", "2", "-c", "2", "--repeats", "1", "--max-tokens", "4", "-o", "bench"]],
    "trl": [["python", "-c", "from trl import GRPOTrainer; from rollout.trainers import trl; trl.rollout_func"]],
    "train": [["python", "-c", "import torch; from rollout.tokens.batch import to_torch"]],
}

#: What an environment lacks, and says in one line, with the extra to install.
LACKS = {
    ALONE: [["rollout", "--version"], ["python", "-m", "rollout"]],
    "cli": [["rollout", "run", "guess_number", "-n", "1"]],
    "all": [["rollout", "run", "guess_number", "-n", "1", "--launch", "ray"]],
}


def extras() -> list[str]:
    """Those of pyproject.toml that users install."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    return sorted(set(project.get("optional-dependencies", {})) - TOOLS)


def ran(command: list[str], folder: Path, *, path: Path | None = None, lacks: bool = False) -> None:
    """Runs a command. Raises SystemExit where it fails, with what it said; or where it should, and does not."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if lacks:
        said = done.stderr.strip().splitlines()
        if done.returncode != 2 or len(said) != 1 or "pip install 'rollout-engine[" not in said[0]:
            sys.exit(f"{' '.join(command)} should say in one line what it lacks\n{done.stdout}{done.stderr}")
    elif done.returncode:
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")


def build(folder: Path) -> Path:
    """The wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    ran([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(PROJECT)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def try_out(wheel: Path, extra: str, folder: Path) -> None:
    """Installs the wheel with an extra into an environment of its own, and uses it."""
    ran([sys.executable, "-m", "venv", "venv"], folder)
    programs = folder / "venv" / "bin"
    guests = [guest for guest, host in WITHIN.items() if host == extra]
    named = ",".join(one for one in (extra, BESIDE.get(extra), *guests) if one and one != ALONE)
    what = f"rollout-engine[{named}] @ {wheel.as_uri()}" if named else f"rollout-engine @ {wheel.as_uri()}"
    pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-cache-dir"]
    ran([*pip, "-c", str(PROJECT / VERSIONS.get(extra, "constraints.txt")), what], folder)
    for command in [command for one in (extra, *guests) for command in USES[one]]:
        ran([str(programs / command[0]), *command[1:]], folder, path=programs)
    for command in LACKS.get(extra, []):
        ran([str(programs / command[0]), *command[1:]], folder, path=programs, lacks=True)


def main(chosen: list[str]) -> None:
    """Tries each, and says how long it took."""
    if unknown := set(chosen) - {ALONE, *extras()}:
        sys.exit(f"no extra {', '.join(sorted(unknown))}; there are: {', '.join(extras())}")
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(scratch))
        for extra in chosen or [ALONE, *(one for one in extras() if one not in WITHIN)]:
            folder, started = Path(scratch) / extra, time.monotonic()
            folder.mkdir()
            try_out(wheel, extra, folder)
            shutil.rmtree(folder)  # environments are large, and disk is scarce
            print(f"{wheel.name}, extra {extra}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
