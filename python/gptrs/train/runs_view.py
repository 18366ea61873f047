"""Runs beside each other: a table on the terminal, a page, a picture, JSON."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from gptrs import chart, page
from gptrs.config import short
from gptrs.files import write_atomic
from gptrs.train import runs
from gptrs.train.runs import Run

X = Literal["step", "tokens", "time"]
_X_LABELS = {"step": "step", "tokens": "tokens", "time": "seconds of training"}
_COLORS = (
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd",
)  # fmt: skip
MOST_CURVES = len(_COLORS)  # runs that a picture can tell apart
_HEAD = ("run", "state", "step", "val loss", "best", "bits/byte", "tokens/s", "MFU", "time", "parameters", "memory")
_LEAST_SETTINGS = 24  # characters for the settings that differ
_N_TEXTS = 2  # of these columns at the left; the others are numbers


def as_json(found: Sequence[Run]) -> str:
    """Returns the records without their lines, and what differs."""
    records = [{f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name != "lines"} for run in found]
    return json.dumps({"runs": records, "differing": runs.differing(found)}, indent=1)


def show(found: Sequence[Run]) -> None:
    """Prints the table, and what could not be read. A number is never cut: a narrow terminal breaks the lines."""
    rows = [cells(run) for run in found]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:  # a file has no width
        console = Console(highlight=False, width=200)
    console.width = max(console.width, sum(widths) + 2 * len(widths) + _LEAST_SETTINGS)
    out = Table(box=None, pad_edge=False, header_style="bold")
    for i, (name, width) in enumerate(zip(_HEAD, widths, strict=True)):
        out.add_column(name, justify="left" if i < _N_TEXTS else "right", no_wrap=True, min_width=width)
    out.add_column("differs", overflow="fold")
    for row, settings in zip(rows, _settings(found), strict=True):
        out.add_row(*row, settings)
    console.print(out, markup=False)
    for run in found:
        for problem in run.problems:
            console.print(f"warning: {run.path}: {problem}", markup=False, soft_wrap=True)


def cells(run: Run) -> tuple[str, ...]:
    """Returns a run's row; what is not known is a dash."""

    def of(number: float | None, form: str) -> str:
        return "–" if number is None else format(number, form)

    return (
        run.name,
        run.state,
        "–" if run.step is None else f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else ""),
        of(run.val_loss, ".4f"),
        of(run.best_val_loss, ".4f"),
        of(run.bits_per_byte, ".3f"),
        of(run.tokens_per_s, ",.0f"),
        of(run.mfu, ".1%"),
        "–" if run.seconds is None else _clock(run.seconds),
        of(run.n_params, ","),
        "–" if run.memory_bytes is None else f"{run.memory_bytes / 1e9:.1f} GB",
    )


def html(found: Sequence[Run], x: X) -> str:
    """Returns a page with the table, the curves, and the settings that differ."""
    rows = [cells(run) for run in found]
    sections = [("Runs", page.table(_HEAD, rows, numbers=range(_N_TEXTS, len(_HEAD))))]
    drawn = [run for run in found if runs.curve(run, x, "eval") or runs.curve(run, x, "train")][:MOST_CURVES]
    if drawn:
        left_out = len(found) - len(drawn)
        note = f"<p>{left_out} more without losses or beyond {MOST_CURVES} are not drawn.</p>" if left_out else ""
        curves = [
            *(_line(run, x, "eval", color) for run, color in zip(drawn, _COLORS, strict=False)),
            *(_line(run, x, "train", color) for run, color in zip(drawn, _COLORS, strict=False)),
        ]
        shown = chart.svg(curves, x_label=_X_LABELS[x], y_label="loss, nats per token")
        sections.append(("Loss: validation, and training dashed", note + shown))
    if differing := runs.differing(found):
        head = ("setting", *(run.name for run in found))
        settings = [(key, *("" if v is None else short(v) for v in row)) for key, row in differing.items()]
        sections.append(("Settings that differ", page.table(head, settings)))
    problems = [(run.path, problem) for run in found for problem in run.problems]
    if problems:
        sections.append(("What could not be read", page.table(("directory", "problem"), problems)))
    return page.page(f"{len(found)} runs", sections)


def draw(path: Path, found: Sequence[Run], x: X) -> None:
    """Writes a PNG of the curves: validation losses with dots, training losses pale.

    Raises: ValueError when no run has a loss yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = [run for run in found if runs.curve(run, x, "eval") or runs.curve(run, x, "train")][:MOST_CURVES]
    if not drawn:
        raise ValueError("expected a run with losses to draw, got none")
    for run, color in zip(drawn, _COLORS, strict=False):
        train, val = chart.means(runs.curve(run, x, "train")), runs.curve(run, x, "eval")
        axes.plot([at for at, _ in train], [loss for _, loss in train], lw=1, alpha=0.45, color=color)
        axes.plot([at for at, _ in val], [loss for _, loss in val], "o-", ms=3, lw=1.5, color=color, label=_label(run))
    axes.set(xlabel=_X_LABELS[x], ylabel="loss, nats per token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def _line(run: Run, x: X, kind: Literal["train", "eval"], color: str) -> chart.Line:
    points = runs.curve(run, x, kind)
    if kind == "eval":
        return chart.Line(label=run.name, points=points, color=color, has_dots=True)
    label = "" if runs.curve(run, x, "eval") else run.name  # a run is in the legend once
    return chart.Line(label=label, points=chart.means(points), color=color, is_dashed=True)


def _label(run: Run) -> str:
    """A line of the picture's legend, for which "$" begins a formula and "_" what is not shown."""
    name = run.name.replace("$", r"\$")
    name = f" {name}" if name.startswith("_") else name
    return name if run.val_loss is None else f"{name}  {run.val_loss:.4f}"


def _settings(found: Sequence[Run]) -> list[str]:
    """For each run the settings in which they differ."""
    differing = runs.differing(found)
    return [
        ", ".join(f"{key}={_plain(row[i])}" for key, row in differing.items() if row[i] is not None)
        for i in range(len(found))
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 40 else short(value)


def _clock(seconds: float) -> str:
    """Returns 0:00:45 for 45 seconds."""
    whole = math.floor(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
