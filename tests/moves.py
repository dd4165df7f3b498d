"""The changelog's table of modules and names that moved, made from `rollout.moved`.

python -m tests.moves      # writes it into CHANGELOG.md
"""

from __future__ import annotations

from pathlib import Path

from rollout.moved import _METHODS, MOVED, MOVED_MEMBERS, MOVED_NAMES, places

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"

BEGIN, END = "<!-- moves: `python -m tests.moves` writes this table -->", "<!-- end of moves -->"

#: Arguments and calls that have another form now; each warns where it is taken.
FORMS = {
    "Engine(launch=)": "`EngineConfig.launch`",
    "EngineThread(launch=)": "`EngineConfig.launch`",
    "ThreadSubmission()": "`ThreadSubmission.result`",
}


def moves() -> dict[str, str]:
    """Old place -> new one, of modules, of single names and of what classes have."""
    found = {old: " and ".join(f"`{new}`" for new in places(old)) for old in MOVED}
    for module, names in MOVED_NAMES.items():
        for name, new in names.items():
            found[f"{module}.{name}"] = f"`{_METHODS.get(name, new.replace(':', '.'))}`"
    for kind, members in MOVED_MEMBERS.items():
        for name, path in members.items():
            found[f"{kind}.{name}"] = "the engine's own business" if path.startswith("_") else f"`{kind}.{path}`"
    return found | FORMS


def table() -> str:
    """Old and new places, one a line."""
    rows = [f"| `{old}` | {new} |" for old, new in sorted(moves().items())]
    return "\n".join([BEGIN, "", "| before | now |", "|---|---|", *rows, "", END])


def main() -> None:
    """Puts the table in the place of the one that is there."""
    text = CHANGELOG.read_text("utf-8")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    CHANGELOG.write_text(before + table() + after, "utf-8")


if __name__ == "__main__":
    main()
