"""Is every prompt exactly what was sampled plus what the environment added? For every family, shape and completion.

    python -m benchmarks.fidelity [--seeds 3] [--only FAMILY] [--markdown]

Plays conversations of three turns through the real session, prefix and bridge, and checks the four invariants and
the samples of each; where the family's own rendering of the whole conversation can be a measure, the prompt is
compared with it. What is sampled whole is read as it was meant: text, reasoning, and calls to the last value. Prints
how many later turns went token-in, family by shape. Ends with status 1 where anything is broken, or where a turn fell
back that `EXPECTED` does not explain.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

import msgspec

from benchmarks.kit.completions import kinds
from benchmarks.kit.families import all_families, make_family
from benchmarks.kit.play import Outcome, Player
from benchmarks.kit.shapes import SHAPES

#: Templates that are played through the server bridge too, as on a server without a local tokenizer.
BY_SERVER = ("chatml-tools", "stop-is-next-role", "separator-after-stop")

#: Families and shapes where only a fallback is right, and why.
EXPECTED = {
    ("template:numbered", "*"): "the template numbers its turns, so nothing that follows a turn is fixed",
    ("template:strict-alternation", "two users"): "the template refuses two user messages in a row",
}


class Cell(msgspec.Struct, kw_only=True):
    """One family and shape, over all completions and seeds. Counts of turns from the second on."""

    extended: int = 0
    exact: int = 0
    unmeasured: int = 0
    provoked: int = 0
    read: int = 0
    """Answers that were read as they were meant, to the last value."""
    fallbacks: Counter[str] = msgspec.field(default_factory=Counter)
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    broken: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, outcome: Outcome, kind: str) -> None:
        self.extended += outcome.extended
        self.exact += outcome.exact
        self.unmeasured += outcome.unmeasured
        self.provoked += outcome.provoked
        self.read += outcome.read
        for what, count in outcome.fallbacks.items():
            self.fallbacks[f"{kind}: {what}"] += count
        for what in outcome.refusals:
            self.refused[f"{kind}: {what}"] += 1
        for what in outcome.broken:
            self.broken[f"{kind}: {what}"] += 1

    def merge(self, other: Cell) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __str__(self) -> str:
        marks = ((self.provoked, "p"), (self.fallbacks.total(), "f"), (self.refused.total(), "r"))
        text = f"{self.extended or ''}" + "".join(f"+{count}{mark}" for count, mark in marks if count)
        return f"{text} {self.broken.total()}!" if self.broken.total() else text.removeprefix("+")


Row = Mapping[str, Cell]
"""A family's cells by shape."""


async def play_family(name: str, seeds: int) -> Row:
    """Plays every case of one family."""
    by_server = name.startswith("server:")
    player = Player(make_family(name.replace("server:", "template:")), server_bridge=by_server)
    row: dict[str, Cell] = {}
    for shape in SHAPES:
        if by_server and shape.markers:
            continue  # a server's /tokenize knows no text that is not to be taken for a marker
        cell = row[shape.name] = Cell()
        for kind in kinds(player.stop_ids):
            for seed in range(seeds if kind.by_chance else 1):
                outcome = await player.play(shape, kind, seed)
                if outcome is not None:
                    cell.add(outcome, kind.name)
    return row


def work(job: tuple[str, int]) -> Row:
    """In a process of its own."""
    return asyncio.run(play_family(*job))


def family_names() -> list[str]:
    every = all_families()
    return [*every["renderer"], *every["template"], *(f"server:{name}" for name in BY_SERVER)]


def unexplained(rows: Mapping[str, Row]) -> list[str]:
    """What must not be: everything broken, and fallbacks that are not expected."""
    wrong = []
    for name, row in rows.items():
        for shape, cell in row.items():
            found = Counter(cell.broken)
            if (name, shape) not in EXPECTED and (name, "*") not in EXPECTED:
                found += cell.fallbacks + cell.refused
            wrong += [f"{name}, {shape}: {count} times {what}" for what, count in found.items()]
    return wrong


def total(cells: Iterable[Cell]) -> Cell:
    out = Cell()
    for cell in cells:
        out.merge(cell)
    return out


def print_matrix(rows: Mapping[str, Row]) -> None:
    """Family by shape; shapes are numbered, and named below."""
    shapes = [shape.name for shape in SHAPES]
    print(f"{'':30}{'all':>6} " + "".join(f"{i + 1:>8}" for i in range(len(shapes))))
    for name, row in rows.items():
        cell = total(row.values())
        turns = cell.extended + cell.fallbacks.total()
        held = f"{100 * cell.extended / turns:.0f}%" if turns else ""
        print(f"{name:30}{held:>6} " + "".join(f"{row.get(shape, Cell())!s:>8}" for shape in shapes))
    print("\nTurns from the second on that went token-in; p: fallbacks that the shape provokes; f: other fallbacks;")
    print("r: conversations that the family's own template refuses; !: broken.")
    print("; ".join(f"{i + 1} {name}" for i, name in enumerate(shapes)))
    for (name, shape), why in EXPECTED.items():
        print(f"expected to fall back: {name}{'' if shape == '*' else f', {shape}'}: {why}")


def markdown(rows: Mapping[str, Row]) -> str:
    """The summary for the README."""
    kinds_of = {"renderers families": "", "chat templates": "template:", "templates, server bridge": "server:"}
    lines = [
        "| bridge over | families | later turns | token-in "
        "| equal to a full rendering: all of it, its end, none to compare | fallbacks | broken |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, prefix in kinds_of.items():
        names = [name for name in rows if (name.startswith(prefix) if prefix else ":" not in name)]
        cell = total(cell for name in names for cell in rows[name].values())
        turns = cell.extended + cell.fallbacks.total() + cell.provoked
        lines.append(
            f"| {title} | {len(names)} | {turns:,} | {cell.extended:,} | {cell.exact:,}, "
            f"{cell.extended - cell.exact - cell.unmeasured:,}, {cell.unmeasured:,} | "
            f"{cell.provoked:,} provoked, {cell.fallbacks.total():,} other | {cell.broken.total()} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="for completions that are made by chance")
    parser.add_argument("--only", help="one family", choices=family_names(), metavar="FAMILY")
    parser.add_argument("--markdown", action="store_true", help="print the README's table, too")
    args = parser.parse_args(argv)
    names = [args.only] if args.only else family_names()
    started = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = dict(zip(names, pool.map(work, [(name, args.seeds) for name in names]), strict=True))
    print_matrix(rows)
    if args.markdown:
        print(f"\n{markdown(rows)}")
    wrong = unexplained(rows)
    for line in wrong:
        print(f"WRONG {line}", file=sys.stderr)
    cell = total(cell for row in rows.values() for cell in row.values())
    print(
        f"\n{len(names)} families, {cell.extended} turns token-in, {cell.fallbacks.total()} fell back, "
        f"{cell.read} answers read as they were meant, "
        f"{cell.broken.total()} broken, {len(wrong)} unexplained, {time.perf_counter() - started:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
