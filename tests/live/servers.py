"""Real servers for live tests: started on a free port, awaited over HTTP, ended by process id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from tests.live.install import python_of

#: vLLM without a GPU. The folder has what lets torchvision load, which Dynamo's worker and transformers import.
_ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "PYTHONPATH": str(Path(__file__).with_name("shim")),
}

#: SGLang without a GPU. One thread: its steps are small, and two that wait for each other cost a busy machine dearly.
_SGLANG = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).with_name("sglang_stub")),
}

#: Offline, and quiet: the servers load local folders only. They keep what they compile: see `install`.
_ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "",
}

_KV_ROUTER = ("--router-mode", "kv")

#: A frontend so started serves vLLM's generate route, and SGLang's, by those of its workers that can.
_GENERATES = {"DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE": "1", "DYN_SGLANG_ENABLE_GENERATE": "1"}

#: How the processes of one Dynamo deployment find each other.
_PLANES = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")


class Server:
    """A running server: its address, its processes, its log."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        """The root, without /v1."""
        self.log = log
        self.processes: list[subprocess.Popen[bytes]] = []
        self._commands: list[tuple[Sequence[str], Mapping[str, str]]] = []
        self._environ = dict(os.environ)
        """As it stood then: a process that is started again is started the same."""

    def __repr__(self) -> str:
        return f"<Server {self.url} {self.pids}>"

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def spawn(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Starts a process in a group of its own, which ends with it."""
        self._commands.append((command, env))
        self.processes.append(self._start(command, env))

    def command(self, index: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """How a process was started, and with which variables of its own."""
        return self._commands[index]

    def kill(self, index: int) -> None:
        """SIGKILL, to a process and all that it started."""
        _signal_group(self.processes[index], signal.SIGKILL)
        self.processes[index].wait()

    def respawn(self, index: int) -> None:
        """Starts a process that has ended again, with the same command and port."""
        self.processes[index] = self._start(*self._commands[index])

    def _start(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env={**self._environ, **_ENV, **env}, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, ready: Callable[[str], bool], deadline_s: float) -> None:
        """Asks until the server is ready. Raises RuntimeError with the log's end when it is not."""
        until = time.monotonic() + deadline_s
        while not ready(self.url):
            dead = next((p for p in self.processes if p.poll() is not None), None)
            if dead is not None or time.monotonic() > until:
                what = f"died with status {dead.returncode}" if dead else f"was not ready after {deadline_s:g} s"
                raise RuntimeError(f"{self.url} {what}:\n{self.tail()}")
            time.sleep(0.5)

    def tail(self, size: int = 4000) -> str:
        return self.log.read_bytes()[-size:].decode("utf-8", "replace")

    def end(self, grace_s: float = 20.0) -> None:
        """Ends every process group: politely, then not."""
        for process in reversed(self.processes):
            for sign in (signal.SIGTERM, signal.SIGKILL):
                _signal_group(process, sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace_s)
                if process.poll() is not None and not _group_alive(process.pid):
                    break


@contextlib.contextmanager
def vllm_server(
    model_dir: Path,
    log_dir: Path,
    *,
    name: str = "tiny",
    extra_args: Sequence[str] = (),
    server: str = "vllm",
    env: Mapping[str, str] = {},
) -> Iterator[Server]:
    """vLLM on CPU. `server` names the environment that it is installed in, `env` adds to its variables."""
    port = free_port()
    flags = [
        "--enforce-eager",
        "--enable-scale-out",
        "--enable-prompt-tokens-details",
        "--dtype",
        "float32",
        "--max-num-seqs",
        "64",
    ]
    command = [str(python_of(server)), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096"]
    with _running(Server(f"http://127.0.0.1:{port}", log_dir / f"vllm-{port}.log")) as running:
        running.spawn([*command, *flags, *extra_args], {"VLLM_SERVER_DEV_MODE": "1", **_ON_CPU, **env})
        running.wait(lambda url: _answers(url, name), 400)
        yield running


@contextlib.contextmanager
def sglang_server(
    model_dir: Path, log_dir: Path, *, name: str = "tiny", extra_args: Sequence[str] = (), experts: bool = False
) -> Iterator[Server]:
    """SGLang on CPU, in torch's own attention; a stand-in takes its kernels' place. `experts` has it report those."""
    port = free_port()
    command = [str(python_of("sglang")), "-m", "sglang.launch_server", "--model-path", str(model_dir)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--context-length", "4096"]
    command += ["--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"]
    command += ["--sampling-backend", "pytorch", "--disable-cuda-graph", "--disable-overlap-schedule"]
    command += [
        "--mem-fraction-static",
        "0.05",
        "--max-total-tokens",
        "65536",
        "--skip-server-warmup",
        "--sleep-on-idle",
    ]
    with _running(Server(f"http://127.0.0.1:{port}", log_dir / f"sglang-{port}.log")) as running:
        env = dict(_SGLANG)
        if experts:
            command.append("--enable-return-routed-experts")
            env["PYTHONPATH"] += os.pathsep + str(Path(__file__).with_name("sglang_unpinned"))
        running.spawn([*command, "--enable-metrics", *extra_args], env)
        running.wait(lambda url: _answers(url, name), 400)
        yield running


@contextlib.contextmanager
def embedded_server(model_dir: Path, log_dir: Path, *, name: str = "tiny") -> Iterator[Server]:
    """The embedded model on a port, in vLLM's dialect."""
    port = free_port()
    command = [sys.executable, "-m", "rollout", "serve", "--port", str(port), "--served-model-name", name]
    with _running(Server(f"http://127.0.0.1:{port}", log_dir / f"embedded-{port}.log")) as running:
        running.spawn([*command, "--model-dir", str(model_dir)], {})
        running.wait(lambda url: _answers(url, name), 60)
        yield running


@contextlib.contextmanager
def dynamo_mocker(
    model_dir: Path,
    log_dir: Path,
    *,
    name: str = "tiny",
    speedup_ratio: float = 0.0,
    extra_args: Sequence[str] = (),
    frontend_args: Sequence[str] = _KV_ROUTER,
) -> Iterator[Server]:
    """The Dynamo frontend with a mocker behind it: random ids, a real prefix cache's accounting."""
    worker = ["-m", "dynamo.mocker", "--model-path", str(model_dir), "--model-name", name]
    worker += ["--speedup-ratio", str(speedup_ratio), *extra_args]
    with _dynamo(worker, name, log_dir, {}, deadline_s=120, frontend_args=frontend_args) as running:
        yield running


@contextlib.contextmanager
def dynamo_vllm(
    model_dir: Path, log_dir: Path, *, name: str = "tiny", extra_args: Sequence[str] = ()
) -> Iterator[Server]:
    """The Dynamo frontend with a real vLLM worker on CPU behind it: what fills `engine_data`."""
    worker = ["-m", "dynamo.vllm", "--model", str(model_dir), "--served-model-name", name, "--enforce-eager"]
    worker += ["--max-model-len", "4096", "--dtype", "float32", "--max-num-seqs", "64", *extra_args]
    with _dynamo(worker, name, log_dir, _ON_CPU, deadline_s=400) as running:
        yield running


def beside_a_mocker(running: Server, model_dir: Path, *, name: str = "tiny") -> None:
    """Adds a mocker to a Dynamo deployment: workers of one component must be alike, so it is of another."""
    _, found = running.command(1)
    worker = ["-m", "dynamo.mocker", "--model-path", str(model_dir), "--model-name", name, "--speedup-ratio", "0"]
    endpoint = ["--endpoint", "dyn://dynamo.mocker.generate"]
    running.spawn([str(python_of("dynamo")), *worker, *endpoint, *_PLANES], {"DYN_FILE_KV": found["DYN_FILE_KV"]})


@contextlib.contextmanager
def _dynamo(
    worker: Sequence[str],
    name: str,
    log_dir: Path,
    env: Mapping[str, str],
    deadline_s: float,
    frontend_args: Sequence[str] = _KV_ROUTER,
) -> Iterator[Server]:
    """A frontend and a worker that find each other by a folder."""
    port = free_port()
    python = str(python_of("dynamo"))
    with (
        tempfile.TemporaryDirectory() as discovery,
        _running(Server(f"http://127.0.0.1:{port}", log_dir / f"dynamo-{port}.log")) as running,
    ):
        found = {"DYN_FILE_KV": discovery}
        listen = ["--http-host", "127.0.0.1", "--http-port", str(port)]
        running.spawn([python, "-m", "dynamo.frontend", *listen, *frontend_args, *_PLANES], {**found, **_GENERATES})
        running.spawn([python, *worker, *_PLANES], {**found, **env})
        running.wait(lambda url: _answers(url, name), deadline_s)
        yield running


@contextlib.contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.end()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(url: str, name: str) -> bool:
    """Whether the model is listed and completes something: a listed model may not be loaded yet."""
    # Greedy: SGLang refuses the embedded model's own top_k, 0, where it is looked at.
    body = {"model": name, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 1, "temperature": 0}
    try:
        models = httpx.get(f"{url}/v1/models", timeout=5).json().get("data", [])
        if name not in [model["id"] for model in models]:
            return False
        return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    except (httpx.HTTPError, ValueError):
        return False


def _signal_group(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
