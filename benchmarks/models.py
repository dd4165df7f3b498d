"""Is every prompt exact, and every call read, on the models that people train? On real templates and vocabularies.

    python -m benchmarks.models [--full] [--only NAME] [--write]

Plays conversations of three turns through the real session, prefix, bridges and reader, as `benchmarks.fidelity` does,
for each model of `benchmarks/kit/models.py`. The measure of a prompt is transformers' own `apply_chat_template` with
the model's tokenizer, or Mistral's own encoder. Three things are told for each:

    prompt exact   a whole conversation, rendered here, is the measure's, id for id
    tail exact     what a turn that went token-in has behind what was sampled is what the measure has there
    calls read     an answer is read as it was meant: text, reasoning, and calls to the last value

Ends with status 1 where anything is broken, a model has another reader than its own or none, or less than 95% of the
turns that its template can append to went token-in. `--full` samples in every way of `benchmarks.kit.completions` and
has the server's bridge play, too; `--write` puts the table into docs/models.md.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from benchmarks.kit.completions import kinds
from benchmarks.kit.models import MODELS, PACKAGES, Model
from benchmarks.kit.play import Outcome, Player
from benchmarks.kit.real import RealFamily
from benchmarks.kit.shapes import MORE_SHAPES, SHAPES, tools_at
from rollout.codec.types import make_context

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"

#: What of the page is written by hand stands before it.
MARK = "<!-- Behind this line everything is made by benchmarks/models.py. -->"

#: Of the turns that a template can append to, how many must go token-in.
LEAST = 0.95

#: The ways of sampling of the short form.
SHORT = ("canonical", "cut in text")

#: What a decline says that is the template's own doing: it cannot be appended to.
TEMPLATES_OWN = ("the template refuses", "the template does not show")


class Row(msgspec.Struct, kw_only=True):
    """What became of one model."""

    model: str
    bridge: str
    reader: str
    prompts: int = 0
    """Whole conversations that are the measure's, id for id."""
    extended: int = 0
    measured: int = 0
    """Of the turns that went token-in, those for which the measure has a rendering to compare with."""
    read: int = 0
    bridges: Counter[str] = msgspec.field(default_factory=Counter)
    declined: Counter[str] = msgspec.field(default_factory=Counter)
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    """Conversations that the measure itself refuses from the beginning."""
    broken: Counter[str] = msgspec.field(default_factory=Counter)

    @property
    def share(self) -> float:
        """Of the turns that the template can append to, those that went token-in."""
        ours = sum(n for what, n in self.declined.items() if not any(own in what for own in TEMPLATES_OWN))
        return self.extended / (self.extended + ours) if self.extended else 0.0

    def wrong(self, model: Model) -> list[str]:
        """What must not be."""
        found = [f"{count} times {what}" for what, count in self.broken.items()]
        if self.reader != str(model.reader):
            found.append(f"its reader is {self.reader}, and {model.reader} is right")
        if self.share < LEAST:
            found.append(f"{self.share:.0%} token-in: {dict(self.declined)}")
        return [f"{self.model}, {self.bridge} bridge: {what}" for what in found]


def play(job: tuple[str, bool]) -> list[Row]:
    """In a process of its own: one model after the other."""
    names, full = job
    by_name = {model.name: model for model in MODELS}
    return [row for name in names.split("|") for row in asyncio.run(play_model(by_name[name], full))]


async def play_model(model: Model, full: bool) -> list[Row]:
    """Plays every case of one model."""
    family = RealFamily(model)
    rows = []
    for by_server in (False, True) if full else (False,):
        player = Player(family, server_bridge=by_server)
        reader = family.lane().reader
        row = Row(model=model.name, bridge="server" if by_server else "local", reader=reader.name if reader else "None")
        for shape in [*SHAPES, *MORE_SHAPES]:
            if by_server and shape.markers:
                continue  # a server's /tokenize knows no text that is not to be taken for a marker
            for kind in kinds(player.stop_ids):
                if full or kind.name in SHORT:
                    outcome = await player.play(shape, kind, 0)
                    if outcome is not None:
                        take(row, outcome, f"{shape.name}, {kind.name}")
        if not by_server:
            compare_prompts(family, row)
        rows.append(row)
    return rows


def take(row: Row, outcome: Outcome, case: str) -> None:
    """Adds a case's outcome to a row."""
    row.extended += outcome.extended
    row.measured += outcome.extended - outcome.unmeasured
    row.read += outcome.read
    row.bridges += outcome.bridges
    row.declined += outcome.fallbacks
    row.refused += outcome.refusals
    row.broken += Counter(f"{case}: {what}" for what in outcome.broken)


def compare_prompts(family: RealFamily, row: Row) -> None:
    """Compares whole conversations, rendered here, with the measure's."""
    lane = family.lane()
    for shape in [*SHAPES, *MORE_SHAPES]:
        if shape.markers:
            continue  # which a server's rendering takes for tokens
        history, tools = family.opening(), tools_at(shape, shape.tools_from)
        context = make_context(tools, family.args)
        for turn in range(2):
            ours = rendered(functools.partial(lane.render, history, context))
            theirs = rendered(functools.partial(family.render, history, tools))
            if isinstance(theirs, str) or ours == theirs:
                row.prompts += not isinstance(theirs, str)
            elif isinstance(
                ours, str
            ):  # the template takes less than Mistral's own encoder: such a prompt is a server's
                row.refused[ours] += 1
            else:
                shown = [ids if isinstance(ids, str) else family.tokenizer.decode(ids) for ids in (theirs, ours)]
                row.broken[f"{shape.name}: the prompt is {parting(*shown)}"] += 1
            history = [*history, shape.says, *shape.answer(shape.says, turn)]


def parting(theirs: str, ours: str) -> str:
    """Two texts from where they part."""
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    seen = slice(max(0, at - 40), at + 80)
    return f"{theirs[seen]!r}, here {ours[seen]!r}"


def rendered(render: Callable[[], list[int]]) -> list[int] | str:
    """The ids; what was said where there are none."""
    try:
        return render()
    except Exception as error:  # templates refuse in ways of their own
        return f"{type(error).__name__}: {error}"


def jobs(models: Sequence[Model], full: bool) -> list[tuple[str, bool]]:
    """Models that share a vocabulary together, those that share a tokenizer one behind the other: the longest first."""
    alike: dict[str, list[Model]] = {}
    for model in models:
        alike.setdefault(model.name if model.vocabulary == "small" else model.vocabulary, []).append(model)
    for group in alike.values():
        group.sort(key=lambda model: (model.markers, model.stops, str(model.placed)))
    longest_first = sorted(alike.values(), key=len, reverse=True)
    return [("|".join(model.name for model in group), full) for group in longest_first]


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    by_name = {model.name: model for model in MODELS}
    heads = "model; template, vocabulary; reader; bridges; prompt exact; tail exact; calls read; token-in; broken"
    lines = [f"| {heads.replace(';', ' |')} |", "|---" * 9 + "|"]
    for row in rows:
        model = by_name[row.model]
        bridges = ", ".join(f"{name} {count}" for name, count in row.bridges.most_common())
        lines.append(
            f"| {row.model} | {model.template.replace(':', ' ')}, {model.vocabulary} | {row.reader} | {bridges} "
            f"| {row.prompts} | {row.measured} | {row.read} | {row.share:.0%} | {row.broken.total() or 'none'} |"
        )
    return "\n".join(lines)


def declines(rows: Sequence[Row]) -> str:
    """Why turns were not appended to, and for which models: the template's line, or the rule."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for what, count in row.declined.items():
            for reason in re.sub(r"^bridge_declined: ", "", what).split("; "):
                by_model = found.setdefault(re.sub(r"^(template|renderer|server): ", "", reason), {})
                by_model[row.model] = max(by_model.get(row.model, 0), count)
    lines = ["| declined | turns |", "|---|---|"]
    for reason, by_model in sorted(found.items()):
        lines.append(f"| {reason} | {', '.join(f'{name}: {count}' for name, count in by_model.items())} |")
    return "\n".join(lines)


def left_out() -> list[str]:
    """Templates of the installed package that no model here has. Those that it patched for training are its own."""
    there = {path.stem for path in (PACKAGES / "trl" / "chat_templates").glob("*.jinja")}
    played = {model.template.removeprefix("trl:") for model in MODELS}
    return sorted(name for name in there - played if not name.endswith("_training"))


def write_page(rows: Sequence[Row], full: bool) -> None:
    """Puts the tables into the manual's page, behind what is written there by hand."""
    head = PAGE.read_text().partition(MARK)[0]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    made = f"Made by `python -m benchmarks.models{' --full' if full else ''} --write` at commit {commit.strip()}."
    PAGE.write_text(f"{head}{MARK}\n\n{made}\n\n{table(rows)}\n\n## What was declined\n\n{declines(rows)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every way of sampling, and the server's bridge")
    parser.add_argument("--only", help="models whose name has this in it", metavar="NAME")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    args = parser.parse_args(argv)
    if not PACKAGES.is_dir():
        parser.error("the packages with the templates are not installed: make real")
    if args.write and args.only:
        parser.error("--write is for all models: without --only")
    models = [model for model in MODELS if (args.only or "") in model.name]
    started = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = [row for found in pool.map(play, jobs(models, args.full)) for row in found]
    order = {model.name: at for at, model in enumerate(MODELS)}
    rows.sort(key=lambda row: (order[row.model], row.bridge))
    print(f"{table(rows)}\n\n{declines(rows)}")
    if args.write:
        write_page(rows, args.full)
    wrong = [f"the template {name} is played for no model" for name in left_out()] if not args.only else []
    wrong += [line for row in rows for line in row.wrong(MODELS[order[row.model]])]
    for line in wrong:
        print(f"WRONG {line}", file=sys.stderr)
    broken = sum(row.broken.total() for row in rows)
    print(f"\n{len(models)} models, {broken} broken, {len(wrong)} wrong, {time.perf_counter() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
