"""Installs real servers without a GPU, and real agents, each in an environment of its own under `.servers`.

    python -m tests.live.install vllm sglang dynamo ray agents programs envs verifiers openenv nemo-gym loggers

A finished environment has a marker with the hash of what made it; without that it is made anew. Versions are
in constraints-NAME.txt beside this file.

    vllm     vLLM 0.32
    sglang   SGLang 0.5.23, beside the torch of GPUs (7 GB in all), which it does not import without
    dynamo   Dynamo's frontend and mocker, and vLLM 0.31: by itself, and as Dynamo's worker
    train    this project with torch and TRL, for the examples that train, and what the trainers' tests need
    ray      this project with Ray, and what its tests need: they run there
    agents   agents in Python: mini-swe-agent, openai-agents, LangGraph, and the official SDKs
    programs agents that npm has: Claude Code and Codex; node 20 or newer must be there
    envs     this project with other packages' environments: reasoning-gym, textarena, gymnasium, mcp, datasets
    loggers  this project with what logs it (TensorBoard, W&B, MLflow, Trackio), and Debian's Prometheus
    verl     this project in verl 0.9, with Ray and what importing its agent loop needs; no server of its own
    verifiers this project with verifiers 0.4, which pins versions that the others do not take
    openenv  this project with OpenEnv 0.10, which wants an mcp below 2, and without the pages that it shows people
    nemo-gym NeMo Gym 0.4 by itself, on a Python 3.12 or newer that is looked for; its rows need none of it installed
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
ROOT = PROJECT / ".servers"

#: What one call installs is unpacked once: environments hold links to the same files. Both are gone when it ends.
_CACHE, _WHEELS = ROOT / f".cache-{os.getpid()}", ROOT / f".wheels-{os.getpid()}"

#: What installs into the environments: it unpacks in parallel and compiles nothing, which takes a third of the time.
#: A server's first start compiles what it imports, a tenth of the files.
_UV = "uv==0.13.9"

_TRAINS_ON = "torch==2.13.0"

#: Looked for by pip, which knows where builds of these lie; uv does not look there.
_BY_PIP = re.compile(r"(torch|torchvision|nvidia-[\w-]+)==")

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


def _install_pinned(name: str, constraints: Path) -> None:
    """Every package of the constraints, and none beside them: some of the servers ask for what a CPU cannot have."""
    _environment(name)
    pinned = [line for line in constraints.read_text().splitlines() if line]
    by_pip = [line for line in pinned if _BY_PIP.match(line)]
    if by_pip:
        _by_pip(name, by_pip)
    _uv(name, "--no-deps", *(line for line in pinned if line not in by_pip))


def _by_pip(name: str, pinned: list[str]) -> None:
    _pip(name, "download", "--no-cache-dir", "--no-deps", "-d", str(_WHEELS), *pinned)
    _uv(name, "--no-deps", "--no-index", "--find-links", str(_WHEELS), *pinned)


def _install_agents(name: str, constraints: Path) -> None:
    """Compiled: what starts for every conversation, and may write no bytecode, would be compiled each time."""
    _install_pinned(name, constraints)
    _compile(name)


def _install_server(name: str, constraints: Path) -> None:
    _system_libraries()
    _install_pinned(name, constraints)


def _install_train(name: str, constraints: Path) -> None:
    _environment(name)
    _by_pip(name, [_TRAINS_ON])
    tests = ["pytest", "pytest-asyncio", "pytest-xdist", "hypothesis", "markdown-it-py"]
    _uv(name, "-c", str(constraints), _TRAINS_ON, *tests, "-e", f"{PROJECT}[serve,train,trl]")
    _compile(name)


def _install_envs(name: str, constraints: Path) -> None:
    _install_pinned(name, constraints)
    _uv(name, "--no-deps", "-e", str(PROJECT))


def _install_verifiers(name: str, constraints: Path) -> None:
    """Compiled: a rollout's tools are programs that import the whole package."""
    _install_envs(name, constraints)
    _compile(name)


def _install_nemo_gym(name: str, constraints: Path) -> None:
    _environment(name, newer_python())
    _uv(name, "--no-deps", *constraints.read_text().split())


def newer_python() -> str:
    """A Python 3.12 or 3.13: on the path, or one of pyenv's, whose commands only work where it is chosen.

    Pyenv's lie beside the Python that runs this, whatever the environment says, where that is one of them.
    """
    named = [os.environ.get("NEWER_PYTHON", ""), "python3.12", "python3.13"]
    pyenv = {Path(sys.base_prefix).parent, Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"}
    found = sorted(place for versions in pyenv for place in versions.glob("3.1[23]*/bin/python"))
    places = [str(place) for place in found]
    for python in [name for name in named if name] + places:
        asked = [python, "-c", "import sys; sys.exit(not (3, 12) <= sys.version_info < (3, 14))"]
        if shutil.which(python) and not subprocess.run(asked, capture_output=True, check=False).returncode:
            return python
    raise InstallError(
        "nemo-gym wants Python 3.12 or 3.13, and none was found on the path or among pyenv's: install one, or name it "
        "by NEWER_PYTHON=/path/to/python"
    )


def _install_programs(name: str, constraints: Path) -> None:
    """By npm, in a folder of their own. Without a lock file: it would name the registry's host."""
    if shutil.which("npm") is None:
        raise InstallError("npm is missing: install node 20 or newer first")
    (ROOT / name).mkdir(parents=True)
    packages = constraints.read_text().split()
    # Claude Code's own install step puts its program where the package says.
    quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--no-save", "--ignore-scripts=false", "--silent"]
    # npm trusts its own list of authorities; what this Python trusts is added, as uv is told to.
    trusted = ssl.get_default_verify_paths().cafile
    variables = {"NODE_EXTRA_CA_CERTS": trusted, **os.environ} if trusted else None
    _run(["npm", "install", "--prefix", str(ROOT / name), *quiet, *packages], variables=variables)
    for program in PROGRAMS:
        _run([str(program_of(program)), "--version"])


def _install_ray(name: str, constraints: Path) -> None:
    """With `ip`, by which a test gives two hosts addresses of their own."""
    if shutil.which("ip") is None:
        _system_packages(["iproute2"])
    _install_pinned(name, constraints)
    _uv(name, "--no-deps", "-e", str(PROJECT))


def _install_loggers(name: str, constraints: Path) -> None:
    """Prometheus is one program of its package: unpacked, not installed, so that no service is started."""
    _install_envs(name, constraints)
    if not any(Path("/var/lib/apt/lists").glob("*Packages*")):
        _run(["apt-get", "update", "-q"])
    with tempfile.TemporaryDirectory(dir=ROOT / name) as folder:
        _run(["apt-get", "download", "-q", "prometheus"], folder)
        (package,) = Path(folder).glob("prometheus_*.deb")
        _run(["dpkg-deb", "-x", str(package), folder])
        shutil.move(Path(folder) / "usr" / "bin" / "prometheus", python_of(name).with_name("prometheus"))


_RECIPES = {
    "vllm": _install_server,
    "sglang": _install_server,
    "dynamo": _install_server,
    "ray": _install_ray,
    "train": _install_train,
    "agents": _install_agents,
    "programs": _install_programs,
    "envs": _install_envs,
    "loggers": _install_loggers,
    "verl": _install_envs,
    "verifiers": _install_verifiers,
    "openenv": _install_envs,
    "nemo-gym": _install_nemo_gym,
}


def _constraints(name: str) -> Path:
    """The versions of an environment: the project's own where it holds the project."""
    return PROJECT / "constraints.txt" if name == "train" else HERE / f"constraints-{name}.txt"


def _environment(name: str, python: str = sys.executable) -> None:
    _run([python, "-m", "venv", str(ROOT / name)])
    _pip(name, "install", _UV)


def _pip(name: str, *args: str) -> None:
    _run([str(python_of(name)), "-m", "pip", *args, "--quiet", "--disable-pip-version-check", "--no-input"])


def _compile(name: str) -> None:
    """Not all of it compiles: some packages have files of other Pythons."""
    command = [str(python_of(name)), "-m", "compileall", "-q", "-j", "0", str(ROOT / name / "lib")]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _uv(name: str, *args: str) -> None:
    into = ["--quiet", "--cache-dir", str(_CACHE), "--no-config", "--system-certs", "--python", str(python_of(name))]
    _run([str(ROOT / name / "bin" / "uv"), "pip", "install", *into, *args])


def _run(command: list[str], folder: str | None = None, variables: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise InstallError(f"{' '.join(command[:6])} ... failed:\n{done.stdout[-3000:]}")


def _system_libraries() -> None:
    """Installs shared libraries that are missing, where we may."""
    cache = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    missing = [package for library, package in _SYSTEM.items() if library not in cache]
    if missing:
        _system_packages(missing)


def _system_packages(missing: list[str]) -> None:
    if os.geteuid() != 0:
        raise InstallError(f"system packages are missing: {' '.join(missing)}; install them first")
    print(f"system packages: installing {' '.join(missing)} ...", flush=True)
    _run(["apt-get", "update", "-q"])
    _run(["apt-get", "install", "-y", "-q", *missing])


def _recipe_hash(name: str) -> str:
    parts = [Path(__file__).read_bytes(), _constraints(name).read_bytes(), sys.version.encode()]
    if name in ("envs", "verifiers", "openenv", "loggers", "verl"):  # this project is found there by its entry points
        parts.append((PROJECT / "pyproject.toml").read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def main(names: list[str]) -> int:
    try:
        for name in names:
            install(name)
    except InstallError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(_CACHE, ignore_errors=True)
        shutil.rmtree(_WHEELS, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
