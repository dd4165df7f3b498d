"""The report as one HTML page that needs nothing beside it: tables, and plots as SVG in the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment

from rollout.bench.measure import BenchRun
from rollout.bench.report import (
    CACHED,
    FIRST_TOKEN,
    SAMPLES,
    TURNS_PER_S,
    Column,
    Results,
    faults,
    median,
    ratio_table,
    table,
)
from rollout.bench.settings import MODES

PLOTTED: tuple[Column, ...] = (
    TURNS_PER_S,
    Column("cached, % of prompt tokens", lambda run: None if (share := CACHED.of(run)) is None else 100 * share),
    FIRST_TOKEN,
    SAMPLES,
)
NAMES = {"tito": "token-in", "mito": "message-in"}
COLORS = {"tito": "#0b6e4f", "mito": "#c8553d"}

NO_PLOTS = "Plots need matplotlib: 'pip install matplotlib', then run the benchmark again."

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Token-in against message-in: {{ results.server }}</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1c2321; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #dde3e0; white-space: nowrap; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tr.tito td:nth-child(3) { color: {{ colors.tito }}; font-weight: 600; }
tr.mito td:nth-child(3) { color: {{ colors.mito }}; font-weight: 600; }
.fault { background: #fff1ed; border-left: 4px solid {{ colors.mito }}; padding: .5rem 1rem; }
svg { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .86rem; }
dt { color: #5c6b66; } dd { margin: 0; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Token-in against message-in: {{ results.server }}</h1>
<p>The same conversations in both modes, in turn, each run with a cache salt of its own. Read the ratios: they are of
pairs that ran one after the other, so that a slow moment of the machine or of the server strikes both.</p>
{% for fault in faults %}
<p class="fault">{{ fault }}</p>
{% endfor %}
<h2>Token-in over message-in: median of the pairs (least to most)</h2>
<div class="wide"><table>
<tr>{% for head in ratios[0] %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in ratios[1] %}
<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% for title, picture in pictures %}
<h2>{{ title }}</h2>
{{ picture | safe }}
{% else %}
<p>{{ no_plots }}</p>
{% endfor %}
<h2>Medians over the repeats</h2>
<div class="wide"><table>
<tr>{% for head in rows[0] %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows[1] %}
<tr class="{{ row[2] }}">{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<h2>How it was made</h2>
<dl>
{% for name, value in facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
</body>
</html>
""")


def page(results: Results) -> str:
    """The whole page. Plots are left out, and the page says so, where matplotlib is not installed."""
    settings = {key: value for key, value in results.settings.items() if key != "config" and value is not None}
    config = {key: value for key, value in results.settings.get("config", {}).items() if value not in (None, {}, [])}
    facts = [*results.machine.items(), *settings.items(), *config.items()]
    return _PAGE.render(
        results=results,
        faults=faults(results.runs),
        ratios=ratio_table(results),
        rows=table(results),
        pictures=_pictures(results.runs),
        no_plots=NO_PLOTS,
        facts=facts,
        colors=COLORS,
    )


def _pictures(runs: Sequence[BenchRun]) -> list[tuple[str, str]]:
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("svg")
    by_turns: dict[Any, list[BenchRun]] = {}
    by_concurrency: dict[Any, list[BenchRun]] = {}
    for run in runs:
        by_turns.setdefault(run.cell.concurrency, []).append(run)
        by_concurrency.setdefault(run.cell.turns, []).append(run)
    pictures = []
    if all(run.cell.turns is not None for run in runs):
        panels = {f"{at_once} at once": mine for at_once, mine in sorted(by_turns.items())}
        pictures.append(("By turns of a conversation", _picture(panels, "turns", lambda run: run.cell.turns or 0)))
    panels = {f"{turns or 'recorded'} turns": mine for turns, mine in sorted(by_concurrency.items(), key=str)}
    if len(by_turns) > 1 or not pictures:
        pictures.append(("By rollouts at once", _picture(panels, "at once", lambda run: run.cell.concurrency)))
    return pictures


def _picture(panels: dict[str, list[BenchRun]], axis: str, x_of: Any) -> str:
    """A row for each measure, a column for each panel: every run a dot, the modes' medians a line."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = [
        column for column in PLOTTED if any(column.of(run) is not None for mine in panels.values() for run in mine)
    ]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rollout", "font.size": 9, "font.family": "sans-serif"}):
        size = (max(4.2, 3.4 * len(panels)), 2.3 * len(columns))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(columns), len(panels), squeeze=False, sharex=True, sharey="row")
        for row, column in enumerate(columns):
            for at, (title, runs) in enumerate(panels.items()):
                axes = grid[row][at]
                _draw(axes, runs, column, x_of)
                if row == 0:
                    axes.set_title(title)
                if at == 0:
                    axes.set_ylabel(column.name)
                if row == len(columns) - 1:
                    axes.set_xlabel(axis)
            grid[row][0].set_ylim(bottom=0)  # shared by the row: once all of it is drawn
        grid[0][0].legend(frameon=False)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _draw(axes: Any, runs: Sequence[BenchRun], column: Column, x_of: Any) -> None:
    xs = sorted({x_of(run) for run in runs})
    for mode in MODES:
        mine = [run for run in runs if run.mode == mode and column.of(run) is not None]
        axes.scatter([x_of(run) for run in mine], [column.of(run) for run in mine], s=10, alpha=0.5, color=COLORS[mode])
        line = [(x, median([run for run in mine if x_of(run) == x], column.of)) for x in xs]
        line = [(x, y) for x, y in line if y is not None]
        axes.plot([x for x, _ in line], [y for _, y in line], color=COLORS[mode], label=NAMES[mode], marker="o", ms=4)
    if len(xs) > 1:
        axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [str(x) for x in xs], minor=False)
    axes.minorticks_off()
    axes.grid(axis="y", color="#e4e9e6")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
