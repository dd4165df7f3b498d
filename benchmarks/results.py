"""Token-in against message-in on real servers: starts each, runs `rollout bench` on it, writes RESULTS.md.

    python -m tests.live.install vllm dynamo      # once: the servers, each in an environment of its own
    python -m benchmarks.results [NAME ...]       # all of them take three quarters of an hour on two cores

What is measured lies in `runs/results/NAME`; RESULTS.md is written from what lies there, and keeps its own section of
what does not, so one server can be measured again by itself. `--only-write` measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.families import commit
from rollout.bench.report import RESULTS, Results, faults, lines, ratio_table, table
from tests.live.random_model import write_random_model
from tests.live.servers import dynamo_mocker, vllm_server
from transports.embedded import MODEL_DIR

ROOT = Path("runs/results")
PAGE = Path(__file__).with_name("RESULTS.md")
COMMIT = "commit"

#: vLLM's cache blocks on CPU are of 128 tokens, Dynamo's mocker's of 64.
_LONG = ("--max-model-len", "8192")


class Bench(NamedTuple):
    """One server, and what is played on it."""

    name: str
    title: str
    note: str
    grids: Sequence[Sequence[str]]
    """Arguments of `rollout bench`, a call each."""
    server: str
    """How people start it. The word before the first colon says which of `_SERVERS` starts it here."""
    random_weights: bool = False
    router: Sequence[str] = ()
    workers: int = 1


_FOUR = [["--turns", "8,32", "-c", "64"]]
BENCHES = (
    Bench(
        "vllm",
        "vLLM 0.32 on CPU, the embedded model",
        "A model of one million parameters: its prompts cost next to nothing, so a cache saves next to nothing, and "
        "message-in's are shorter, since the template drops earlier reasoning. What differs is what the trainer gets.",
        [["--turns", "8", "-c", "16,64"], ["--turns", "32", "-c", "16"]],
        "vllm: python -m vllm.entrypoints.openai.api_server --model $(rollout model) --served-model-name tiny "
        "--max-model-len 8192 --enforce-eager --enable-scale-out --enable-prompt-tokens-details --dtype float32 "
        "--max-num-seqs 64",
    ),
    Bench(
        "vllm-random",
        "vLLM 0.32 on CPU, the same model with random weights",
        "Every token is about as likely as any other, so hardly a completion comes back as the ids that were sampled: "
        "the worst case for message-in.",
        [["--turns", "8", "-c", "16,64"]],
        "vllm: the same, with --model DIR: a folder that tests/live/random_model.py writes",
        random_weights=True,
    ),
    Bench(
        "mocker",
        "Dynamo 1.6.1, one mocker at speed 1",
        "The frontend is the real one, with its tokenizer, template and router; the mocker behind it models a GPU's "
        "prefill and decode times, its batching and its prefix cache, and answers random ids.",
        [
            ["--turns", "8,32", "-c", "16,64,256"],
            ["--turns", "128", "-c", "16"],
            ["--turns", "128", "-c", "64", "--repeats", "1"],
        ],
        "mocker: python -m dynamo.frontend --router-mode kv; python -m dynamo.mocker --speedup-ratio 1.0",
        router=("--router-mode", "kv"),
    ),
    Bench(
        "round-robin",
        "Dynamo, four mockers, routed in turn",
        "No affinity of any kind: a conversation's next turn lands on another worker three times of four.",
        _FOUR,
        "mocker: python -m dynamo.frontend --router-mode round-robin; python -m dynamo.mocker --num-workers 4 "
        "--speedup-ratio 1.0",
        router=("--router-mode", "round-robin"),
        workers=4,
    ),
    Bench(
        "kv",
        "Dynamo, four mockers, KV router, session affinity off",
        "The router looks for the worker whose cache has most of the prompt.",
        _FOUR,
        "mocker: python -m dynamo.frontend --router-mode kv; python -m dynamo.mocker --num-workers 4 "
        "--speedup-ratio 1.0",
        router=("--router-mode", "kv"),
        workers=4,
    ),
    Bench(
        "affinity",
        "Dynamo, four mockers, KV router, session affinity on",
        "A session stays where its first turn went, by the header that we send with every turn.",
        _FOUR,
        "mocker: python -m dynamo.frontend --router-mode kv --router-session-affinity-ttl-secs 600; "
        "python -m dynamo.mocker --num-workers 4 --speedup-ratio 1.0",
        router=("--router-mode", "kv", "--router-session-affinity-ttl-secs", "600"),
        workers=4,
    ),
    Bench(
        "embedded",
        "The embedded model, in process",
        "The client's CPU has the model's own in it.",
        [["--turns", "4,16", "-c", "16"]],
        "embedded: none",
    ),
)


@contextlib.contextmanager
def served(bench: Bench, folder: Path) -> Iterator[Sequence[str]]:
    """Starts the server; gives the arguments that name it."""
    model = write_random_model(folder / "model") if bench.random_weights else MODEL_DIR
    kind = bench.server.partition(":")[0]
    if kind == "embedded":
        yield []
        return
    started = (
        vllm_server(model, folder, extra_args=_LONG)
        if kind == "vllm"
        else dynamo_mocker(
            model,
            folder,
            speedup_ratio=1.0,
            frontend_args=bench.router,
            extra_args=["--num-workers", str(bench.workers)],
        )
    )
    with started as server:
        yield ["--base-url", server.url, "--tokenizer", str(model)]


def run(bench: Bench) -> None:
    """Plays a server's grids. A comparison with a fault is kept and says so; one that cannot be made ends it all."""
    (ROOT / bench.name).mkdir(parents=True, exist_ok=True)
    (ROOT / bench.name / COMMIT).write_text(commit())
    with tempfile.TemporaryDirectory() as folder, served(bench, Path(folder)) as where:
        for number, grid in enumerate(bench.grids):
            command = [
                sys.executable,
                "-m",
                "rollout",
                "bench",
                *where,
                *grid,
                "-o",
                str(ROOT / bench.name / str(number)),
            ]
            print(f"{bench.name}: rollout bench {shlex.join(grid)}", flush=True)
            if (status := subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode) > 1:
                sys.exit(f"{bench.name}: rollout bench ended with status {status}")


def measured_at(bench: Bench) -> str:
    """The commit that was measured."""
    path = ROOT / bench.name / COMMIT
    return path.read_text() if path.exists() else "unknown"


def found(bench: Bench) -> Results | None:
    """What was measured of a server, all its grids together."""
    whole: Results | None = None
    for number in range(len(bench.grids)):
        path = ROOT / bench.name / str(number) / RESULTS
        if not path.exists():
            return None
        part = msgspec.json.decode(path.read_bytes(), type=Results)
        if whole is None:
            whole = part
        else:
            whole.runs += part.runs
    return whole


HEAD = """# Token-in against message-in, measured

Made by `python -m benchmarks.results`, which starts each server and runs `rollout bench` on it: the same conversations
in both modes, in turn, each run with a cache salt of its own; messages of the environment of 400 characters and
completions of exactly 32 tokens. Tables have medians over three runs of each mode (one where the command says
`--repeats 1`); ratios are of pairs that ran one after the other. Client and server shared the machine's two cores, so
read the ratios, not the speeds.

{machine}

How to read the columns: *breaks* are turns whose prompt, as the server had it, did not start with what was sampled
before; *samples per rollout* are the training samples that one conversation becomes; *never sampled* are tokens in
later prompts that stand for the model's own words and that it never sampled. *First token* is by the server's own
histogram, to the width of its buckets. Message-in's prompts may be shorter or longer than token-in's: templates drop
reasoning, and text that was sampled in odd pieces comes back in fewer or more.
"""


def sections() -> tuple[str, dict[str, str]]:
    """What RESULTS.md says of the machine, and its sections by their titles."""
    before, *others = PAGE.read_text().split("\n## ") if PAGE.exists() else [""]
    machine = next((line for line in before.splitlines() if line.startswith("Machine: ")), "")
    return machine, {text.partition("\n")[0]: text.partition("\n")[2].strip() for text in others}


def write() -> None:
    """Writes RESULTS.md from what has been measured; what has not been stays as it was."""
    parts: list[str] = []
    machine: dict[str, str] = {}
    before, kept = sections()
    for bench in BENCHES:
        results = found(bench)
        parts += [f"\n## {bench.title}\n"] if results is not None or bench.title in kept else []
        if results is None:
            parts += [kept[bench.title]] if bench.title in kept else []
            continue
        machine = machine or results.machine
        parts += [f"{bench.note}\n", f"Measured at commit {measured_at(bench)}.\n"]
        parts += [f"Server: `{bench.server.partition(': ')[2]}`\n"] if "none" not in bench.server else []
        named = "" if bench.name == "embedded" else " --base-url URL --tokenizer $(rollout model)"
        parts += [*(f"    rollout bench{named} {shlex.join(grid)}" for grid in bench.grids), ""]
        parts += ["Token-in over message-in, median of the pairs (least to most):\n", *lines(*ratio_table(results)), ""]
        parts += lines(*table(results))
        parts += [f"\n**{fault}**" for fault in faults(results.runs)]
    others = [title for title in kept if title not in {bench.title for bench in BENCHES}]
    parts += [line for title in others for line in (f"\n## {title}\n", kept[title])]
    said = ". ".join(f"{name.capitalize()}: {value}" for name, value in machine.items()) or before
    PAGE.write_text("\n".join([HEAD.format(machine=said), *parts]).replace("\n\n\n", "\n\n") + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [bench.name for bench in BENCHES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all if not given")
    parser.add_argument("--only-write", action="store_true", help="measure nothing; write the page from what there is")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(names):
        parser.error(f"no server {sorted(unknown)[0]!r}; there are: {', '.join(names)}")
    for bench in BENCHES:
        if not options.only_write and (not options.names or bench.name in options.names):
            run(bench)
            write()
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
