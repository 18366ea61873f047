"""`gptrs runs`: runs beside each other."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer


def runs_command(
    folders: Annotated[
        list[str] | None,
        typer.Argument(help="Runs, and folders that hold some.", metavar="DIR", show_default="runs"),
    ] = None,
    sort: Annotated[
        str, typer.Option(help="A column (val_loss, step, tokens_per_s, …) or a setting to sort by.")
    ] = "name",
    is_reversed: Annotated[bool, typer.Option("--reverse", help="The largest first.")] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only runs with KEY=PATTERN, as state=finished or optim.lr=0.00*; may be repeated."),
    ] = None,
    x: Annotated[Literal["step", "tokens", "time"], typer.Option(help="What curves are drawn over.")] = "step",
    as_json: Annotated[bool, typer.Option("--json", help="The records as JSON.")] = False,
    html: Annotated[str | None, typer.Option(help="Write a page with table, curves and settings, *.html.")] = None,
    png: Annotated[str | None, typer.Option(help="Draw the curves, *.png.")] = None,
) -> None:
    """Compare training runs, finished or not: state, losses, pace, and the settings in which they differ."""
    from gptrs.files import write_atomic
    from gptrs.train import runs, runs_view

    for option, path, suffix in (("--html", html, ".html"), ("--png", png, ".png")):
        if path is not None and (Path(path).suffix != suffix or not Path(path).resolve().parent.is_dir()):
            raise ValueError(f"{option} must be a {suffix} file in a folder that exists, got {path}")
    if x != "step" and html is None and png is None:
        raise typer.BadParameter("--x says what curves are drawn over and goes with --html or --png")
    if png is not None and find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--png needs matplotlib, which is not installed; hint: pip install 'gptrs[train]'")
    places = folders or ["runs"]
    found = runs.where(runs.find(*map(Path, places)), where or ())
    if not found:
        text = " ".join(places)
        raise ValueError(f"no run in {text} has {' and '.join(where or ())}; hint: gptrs runs {text}")
    found = runs.by(found, sort, is_reversed=is_reversed)
    if html is not None:
        write_atomic(Path(html), runs_view.html(found, x).encode())
    if png is not None:
        runs_view.draw(Path(png), found, x)
    if as_json:
        typer.echo(runs_view.as_json(found))
    else:
        runs_view.show(found)
