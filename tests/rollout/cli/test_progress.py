"""What a run shows."""

from __future__ import annotations

import io

from rich.console import Console

from rollout.cli.progress import print_rows, state_line, table_text
from rollout.cli.summary import Summary
from rollout.observe.stats import Stats


def test_texts_of_others_are_no_markup() -> None:
    """What a server said may hold brackets and control characters; it is shown, and ends nothing."""
    text = table_text(
        "[/title]", [("failed: transport", "the prompt has [/INST] and [red] and \x1b[31m")], terminal=False
    )
    assert "[/INST] and [red] and \\x1b[31m" in text
    assert text.startswith("[/title]\n")


def test_long_values_are_folded_and_never_cut() -> None:
    """Every character of a value is in the table, and no line ends in spaces."""
    text = table_text("t", [("name", "x" * 500), ("short", "y")], terminal=False)
    assert text.count("x") == 500
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_table_for_people_goes_to_the_console_that_is_given() -> None:
    """As probe and run print them."""
    file = io.StringIO()
    print_rows(Console(file=file, width=60), "t", [("a", "b")])
    assert file.getvalue().split() == ["t", "a", "b"]


def test_the_line_of_a_run_before_its_first_turn() -> None:
    """Nothing is divided by nothing."""
    assert state_line(Stats(), Summary(env="e"), 0.0) == "0 running, 0 turns, 0 tok/s, reward -"
