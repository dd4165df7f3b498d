"""The documentation's blocks, as tests play them: README.md and every page under docs/.

A page is read by a Markdown parser and cut into sections at its headings. A section is played in a folder of its own,
its blocks in their order:

    python    A script. One whose first line is a comment with a file's name (`# double.py`) is written under that name,
              and any section of the page finds it; every script is run.
    toml      The same for files; one without a name is only read, as TOML.
    bash      A script of the shell, every command of which must succeed. `rollout` and `python` are this
              environment's; servers' addresses are those of stand-ins, which serve the embedded model; runs are made
              small (see `_SMALL`); of `make` only the targets in `PLAYED` do their work, others are looked up.
    text      Output, pictures, layouts: shown, not run. So are Sphinx's directives, in braces.

A comment before a block says where it is treated in another way, and is not shown to readers:

    <!-- test: add ARGUMENTS -->      the block's last command gets these too, so that it ends soon
    <!-- test: serves -->             the block's command serves, as long as the section's other blocks take, which may
                                      name it by localhost and its port
    <!-- test: elsewhere FILE -->     another test runs it: FILE has the command's name in it
    <!-- test: live FILE -->          a live test plays its section: FILE has the section's name in it
    <!-- test: skip REASON -->        it cannot be run here
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from markdown_it import MarkdownIt

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md")), PROJECT / ".github" / "CONTRIBUTING.md"]

ROLLOUT = str(Path(sys.executable).with_name("rollout"))

#: Targets of the Makefile whose commands are played here. The others are the test suite itself, or take too long.
PLAYED = frozenset({"rollout"})

#: Made smaller, by options that come last and win.
_SMALL = {
    r"rollout run (?!.*--resume)": "-n 2 -r 2",
    r"rollout bench (?!.*--replay)": "--turns 2 -c 2 --repeats 1 --max-tokens 4",
    r"rollout bench .*--replay": "-c 2 --repeats 1",
    r"rollout run .*--processes": "--processes 2",
}

_MARK = re.compile(r"<!--\s*test:\s*(\w+)\s*(.*?)\s*-->", re.DOTALL)
_FILE = re.compile(r"#\s*([\w.-]+\.(?:py|toml|jsonl))\s*$")
_ADDRESS = re.compile(r"http://(gpu-\d+|localhost):(\d+)")

#: Seconds for one block.
_LIMIT_S = 300


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A block of a page."""

    page: str
    line: int
    section: str
    language: str
    text: str
    mark: str = ""
    """add, serves, elsewhere, live, skip, or nothing."""
    said: str = ""
    """What the mark says beside its name."""

    @property
    def shown(self) -> bool:
        """Whether there is nothing to run."""
        return self.language == "text" or self.language.startswith("{")

    @property
    def file(self) -> str | None:
        """The name under which it is written."""
        found = _FILE.match(self.text.partition("\n")[0])
        return found[1] if found else None

    def __repr__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """A page's fenced blocks. Raises ValueError for one that is only indented: it names no language."""
    found: list[Block] = []
    name, section, mark = page.relative_to(PROJECT).as_posix(), "", ("", "")
    tokens = MarkdownIt().enable("table").parse(page.read_text("utf-8"))
    for at, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "heading_open":
            section = tokens[at + 1].content
        elif token.type == "html_block" and (said := _MARK.search(token.content)):
            mark = said[1], said[2]
        elif token.type == "code_block":
            raise ValueError(f"{name}:{line}: a block without a fence names no language")
        elif token.type == "fence":
            kinds = {"mark": mark[0], "said": mark[1]}
            language = token.info.strip()
            found.append(Block(page=name, line=line, section=section, language=language, text=token.content, **kinds))
            mark = "", ""
    return found


def sections(page: Path) -> Mapping[str, list[Block]]:
    """A page's sections that have something to run."""
    found: dict[str, list[Block]] = {}
    for block in blocks(page):
        if not block.shown and block.mark not in ("skip", "elsewhere", "live"):
            found.setdefault(block.section, []).append(block)
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell's block, a line each, without comments."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


class Player:
    """Plays sections of pages, with stand-ins for the servers that they name."""

    def __init__(self, address_of: Callable[[str], str]) -> None:
        """`address_of` gives the stand-in for a host."""
        self._address_of = address_of
        self._served: dict[str, str] = {}
        """What a section serves, by the host and port that it names."""

    def play(self, page: Path, section: str, folder: Path) -> dict[Block, str]:
        """Standard output of each block of a section. Raises AssertionError, naming the block that failed."""
        for block in blocks(page):
            if block.file is not None:
                (folder / block.file).write_text(self._with_stand_ins(block.text), "utf-8")
        (folder / ".venv").symlink_to(sys.prefix)
        with ExitStack() as servers:
            return {block: self._play(block, folder, servers) for block in sections(page)[section]}

    def _play(self, block: Block, folder: Path, servers: ExitStack) -> str:
        if block.language == "toml":
            tomllib.loads(block.text)
            return ""
        if block.language == "python":
            file = folder / (block.file or f"block_{block.line}.py")
            file.write_text(self._with_stand_ins(block.text), "utf-8")
            return _ran(block, [sys.executable, file.name], folder)
        assert block.language == "bash", (
            f"{block}: a block of {block.language or 'no language'!r} is not run: see docs_kit"
        )
        if block.mark == "serves":
            (command,) = commands(block.text)
            port = re.search(r"--port (\d+)", command)
            arguments = re.sub(r"--port \d+", "--port 0", command).split()
            address = servers.enter_context(serving(arguments, folder))
            if port is not None:
                self._served[f"localhost:{port[1]}"] = address
                servers.callback(self._served.pop, f"localhost:{port[1]}")
            return _got(f"{address}/v1/models")
        lines = [self._small(line) for line in commands(block.text)]
        if block.mark == "add":
            lines[-1] += f" {block.said}"
        return _ran(block, ["bash", "-euo", "pipefail", "-c", "\n".join(lines)], folder)

    def _small(self, command: str) -> str:
        """A command as it is played."""
        if command.startswith("make "):
            return _make(command)
        more = [options for pattern, options in _SMALL.items() if re.match(pattern, command)]
        body, pipe, rest = self._with_stand_ins(command).partition(" | ")
        return " ".join([body, *more]) + pipe + rest

    def _with_stand_ins(self, text: str) -> str:
        def stand_in(found: re.Match[str]) -> str:
            return self._served.get(f"{found[1]}:{found[2]}") or self._address_of(found[1])

        return _ADDRESS.sub(stand_in, text)


def _make(command: str) -> str:
    """`make TARGET`, done where it is short, in the section's folder; elsewhere only looked up."""
    target = command.split()[1]
    if target not in PLAYED:
        return f"make -n -C {PROJECT} {command.removeprefix('make ')} > /dev/null"
    paths = f"VENV={sys.prefix} INSTALLED=installed"
    return f"touch pyproject.toml constraints.txt installed && make -f {PROJECT / 'Makefile'} {paths} {target}"


def _environment() -> dict[str, str]:
    """This environment's programs, and this project's packages from whatever folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT), "COLUMNS": "120"}


def _ran(block: Block, arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        arguments, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    assert done.returncode == 0, f"{block}: status {done.returncode}\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _got(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return str(answer.read(), "utf-8")


@contextmanager
def serving(command: list[str], folder: Path | None = None) -> Iterator[str]:
    """The address at which `rollout serve` or `proxy` says that it listens; interrupted, it must end well."""
    server = subprocess.Popen(command, cwd=folder, env=_environment(), stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    first = server.stderr.readline()
    try:
        found = re.search(r"http://\S+", first)
        assert found, f"{command}: {first}{server.stderr.read()}"
        yield found[0]
    finally:
        server.send_signal(signal.SIGINT)
        rest = server.communicate(timeout=_LIMIT_S)[1]
    assert server.returncode == 0, f"{command}: status {server.returncode}\n{first}{rest}"
