"""The oldest versions of our dependencies that pyproject.toml allows, as constraints for pip: see `make test-oldest`.

    python -m tests.oldest > build/oldest.txt

Only what the package itself needs, with its extras; the tools of the tests and of the manual stay as new as they are.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"

#: Extras for whoever works on it.
TOOLS = frozenset({"dev", "docs"})


def oldest(project: Mapping[str, Any]) -> dict[str, str]:
    """Name and lowest version of each dependency. Raises ValueError for one without a lower bound."""
    extras = project.get("optional-dependencies", {})
    named = [*project["dependencies"], *(one for name in sorted(set(extras) - TOOLS) for one in extras[name])]
    found: dict[str, str] = {}
    for requirement in named:
        if requirement.startswith("rollout-engine["):
            continue  # other extras of ours
        bound = re.match(r"([\w.-]+)(?:\[.*?\])?\s*>=\s*([\d.]+)", requirement)
        if bound is None:
            raise ValueError(
                f"{requirement!r} in pyproject.toml has no lower bound: give one, such as {requirement}>=1"
            )
        found[bound[1]] = bound[2]
    return found


def main() -> None:
    """Prints them."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    for name, version in sorted(oldest(project).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
