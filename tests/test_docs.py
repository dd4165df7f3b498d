"""README and docs are true: what they print runs, what they name is there."""

from __future__ import annotations

import pydoc
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import typer

import rollout
from rollout.cli.app import app
from rollout.records import FailureKind, StopReason
from rollout.tokens.prefix import FallbackReason
from tests import docs_kit, moves
from tests.docs_kit import PAGES, PROJECT, Player, blocks, commands, sections

README = PROJECT / "README.md"
BLOCKS = [block for page in PAGES for block in blocks(page)]
TEXTS = {page: page.read_text("utf-8") for page in PAGES}

MARKS = {"", "add", "serves", "elsewhere", "live", "skip"}

#: Groups of entry points, which are named like modules.
ENTRY_POINTS = set(tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"])

#: Options of other programs, and of our benchmarks and examples: they are parsed where they are run.
OTHERS_OPTIONS = frozenset(
    {
        *(
            "--enable-scale-out",
            "--engine-type",
            "--sglang-generate",
            "--enable-prompt-tokens-details",
            "--served-model-name",
            "--dtype",
            "--logprobs-mode",
            "--generation-config",
            "--limit-mm-per-prompt",
            "--enable-return-routed-experts",
            "--return-sampling-mask",
            "--sampling-mask-max-tokens",
        ),
        *("--enable-priority-scheduling", "--schedule-low-priority-values-first", "--enable-metrics"),
        *("--agents", "--tools", "--system-prompt", "--output-format", "--dangerously-skip-permissions"),
        *("--exit-immediately", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        *("--head", "--address", "--working-dir"),
        *("--nproc-per-node", "--custom-reward-post-process-path"),
        *("--server", "--write-model", "--picture-of", "--shape", "--write", "--full", "--at-once", "--contexts"),
    }
)


def _played() -> list[Any]:
    found = []
    for page in PAGES:
        for section in sections(page):
            name = page.relative_to(PROJECT).as_posix()
            found.append(pytest.param(page, section, id=f"{name}: {section}"))
    return found


@pytest.fixture(scope="session")
def player() -> Iterator[Player]:
    """One stand-in for each host, started when a page first names it."""
    started: dict[str, str] = {}
    with ExitStack() as servers:

        def address_of(host: str) -> str:
            if host not in started:
                command = [docs_kit.ROLLOUT, "serve", "--port", "0"]
                started[host] = servers.enter_context(docs_kit.serving(command))
            return started[host]

        yield Player(address_of)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "section"), _played())
def test_what_a_section_prints_runs(page: Path, section: str, player: Player, tmp_path: Path) -> None:
    """Every script and command of the section succeeds, in order, as it is printed."""
    player.play(page, section, tmp_path)


def test_a_block_that_cannot_be_run_fails(player: Player, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that raises, a command that fails and a language that nobody runs are each named by page and line."""
    page = tmp_path / "page.md"
    monkeypatch.setattr(docs_kit, "PROJECT", tmp_path)
    for language, text in (("python", "1 / 0"), ("bash", "false\ntrue"), ("ruby", "puts 1")):
        page.write_text(f"# Broken\n\n```{language}\n{text}\n```\n")
        folder = tmp_path / language
        folder.mkdir()
        with pytest.raises(AssertionError, match=r"page\.md:3"):
            player.play(page, "Broken", folder)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark], ids=repr)
def test_a_mark_says_what_it_must(block: docs_kit.Block) -> None:
    """What is skipped has a reason, and what is run elsewhere is named in the file that runs it."""
    assert block.mark in MARKS
    assert block.said or block.mark == "serves"
    if block.mark == "live":
        assert f'"{block.section}"' in (PROJECT / block.said).read_text("utf-8")
    if block.mark == "elsewhere":
        runner = (PROJECT / block.said).read_text("utf-8")
        for command in commands(block.text):
            program = re.search(r"-m (\S+)|make (\S+)", command)
            assert program is not None, command
            assert next(filter(None, program.groups())) in runner, command


def test_readme_is_short() -> None:
    """README has 130 lines at most: the rest is in docs/."""
    assert len(TEXTS[README].splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Every path into the project and every relative link leads somewhere."""
    named = re.findall(r"\b((?:rollout|transports|envs|benchmarks|tests|docs)/[\w./-]*\w)", TEXTS[page])
    missing = [name for name in named if not (PROJECT / name).exists()]
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", TEXTS[page])
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    """Every `rollout.x.y` in a page's prose is a module, or a name of one, and has not moved."""
    prose = re.sub(r"```.*?```", "", TEXTS[page].partition(moves.BEGIN)[0], flags=re.DOTALL)
    named = set(re.findall(r"(?<![\w./-])((?:rollout|transports|envs|benchmarks)(?:\.\w+)+)", prose))
    assert [name for name in sorted(named - ENTRY_POINTS) if not _is_there(name)] == []


def _is_there(name: str) -> bool:
    file = PROJECT.joinpath(*name.split("."))
    return file.is_dir() or file.with_suffix(".py").exists() or pydoc.locate(name) is not None


def _cli() -> Any:
    """The command line as click has it, or as the newer typer's own click does."""
    return typer.main.get_command(app)


@pytest.mark.slow
def test_commands_are_ones_that_the_command_line_takes() -> None:
    """Every `rollout` command in a block parses: its options exist, and have values of the right kind."""
    lines = [line for block in BLOCKS if block.language == "bash" for line in commands(block.text)]
    for line in lines:
        words = shlex.split(line.partition(" | ")[0], comments=True)
        if words[0] == "rollout" and words[1:] != ["--version"]:
            command = _cli().commands[words[1]]
            command.make_context(words[1], words[2:], resilient_parsing=False)


def test_options_in_texts_exist() -> None:
    """Every option that a page names is one of the command line, or is known to be another program's."""
    ours = {option for command in _cli().commands.values() for each in command.params for option in each.opts}
    ours |= {"--version", "--help"}
    for program in (PROJECT / "benchmarks").rglob("*.py"):
        ours |= set(re.findall(r"\"(--[a-z][a-z-]+)\"", program.read_text("utf-8")))
    named = {option for text in TEXTS.values() for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]+[a-z])", text)}
    assert named - ours - OTHERS_OPTIONS == set()


def test_targets_of_make_exist() -> None:
    """Every `make TARGET` in a page is a target of the Makefile."""
    makefile = (PROJECT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    named = {target for text in TEXTS.values() for target in re.findall(r"`make ([a-z][\w-]*)", text)}
    named |= {line.split()[1] for block in BLOCKS for line in commands(block.text) if line.startswith("make ")}
    assert named <= targets


def test_targets_of_make_in_blocks_are_run() -> None:
    """CI runs every `make TARGET` that a block prints; of the others a test plays what they do, in a smaller form."""
    ci = "".join((PROJECT / name).read_text("utf-8") for name in (".ci/run", ".github/workflows/ci.yml"))
    run = set(re.findall(r"[\w-]+", " ".join(re.findall(r"\bmake (.*)", ci)))) | docs_kit.PLAYED
    run |= {f"test-{end}" for end in re.findall(r"end: \[(\w+), (\w+)\]", ci)[0]}
    printed = {line.split()[1] for block in BLOCKS for line in commands(block.text) if line.startswith("make ")}
    assert printed - run == {"check", "bench"}  # CI runs the parts of the first; `rollout bench` is played


def test_public_names_are_in_the_reference() -> None:
    """`docs/api.md` has every name of `rollout.__all__`."""
    reference = (PROJECT / "docs" / "api.md").read_text("utf-8")
    assert [name for name in rollout.__all__ if not re.search(rf"\b{name}\b", reference)] == []


@pytest.mark.parametrize(
    ("page", "values"), [("token-in.md", FallbackReason), ("faults.md", FailureKind), ("faults.md", StopReason)]
)
def test_every_reason_is_explained(page: str, values: type[StrEnum]) -> None:
    """Each way in which a turn falls back, and in which a rollout ends, has its line."""
    text = TEXTS[PROJECT / "docs" / page]
    assert [value for value in values if f"`{value}`" not in text] == []


def test_every_page_is_in_the_index() -> None:
    """No page of docs/ is left out of the table of contents."""
    index = (PROJECT / "docs" / "index.md").read_text("utf-8").split()
    assert [page.stem for page in PAGES if page.parent == PROJECT / "docs" and page.stem not in {"index", *index}] == []


def test_every_room_is_in_the_architecture() -> None:
    """`docs/architecture.md` names every folder and file at the top of `rollout/`."""
    said = set(re.findall(r"\w+", TEXTS[PROJECT / "docs" / "architecture.md"]))
    rooms = {path.stem for path in (PROJECT / "rollout").iterdir() if not path.stem.startswith(("_", "."))}
    assert rooms - said - {"py"} == set()


def test_names_in_the_table_of_places_are_in_the_files_beside_them() -> None:
    """Where a row of `docs/architecture.md` names a file and a name of it, the file has that name."""
    rows = [row for row in TEXTS[PROJECT / "docs" / "architecture.md"].splitlines() if row.startswith("| ")]
    for row in rows:
        said = re.findall(r"`([^`]+)`", row)
        files = [PROJECT / name for name in said if (PROJECT / name).is_file()]
        text = "".join(file.read_text("utf-8") for file in files)
        names = {part for name in said if re.fullmatch(r"[\w.]+", name) for part in name.split(".")}
        assert [name for name in sorted(names) if files and not re.search(rf"\b{name}\b", text)] == [], row


def test_moves_are_in_the_changelog() -> None:
    """Every name that moved has its line: `python -m tests.moves` writes the table anew."""
    assert moves.table() in (PROJECT / "CHANGELOG.md").read_text("utf-8")
