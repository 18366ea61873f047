"""How far a long call of the core has come, as a bar on a terminal and as nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, int, int], None]


@contextmanager
def bar(is_shown: bool = True) -> Iterator[Report | None]:
    """A callback `report(stage, done, total)` that draws a bar on stderr, or None when there is no terminal.

    The last word of `stage` is the unit ("count bytes"); a new stage starts a new bar; `total` 0 means unknown.
    Drawing happens only inside the callback: no thread runs.
    """
    if not is_shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage.rsplit(" ", 1)[0], amount="")
            amount = f"{short(done)} of {short(total)}" if total else short(done)
            unit = stage.rsplit(" ", 1)[-1]
            progress.update(tasks[stage], completed=done, total=total or None, amount=f"{amount} {unit}")
            progress.refresh()

        yield report


def short(n: int) -> str:
    """A count in at most five characters and a prefix: 12, 3.4 k, 56.7 M, 890 G."""
    size = float(n)
    for prefix in ("", " k", " M", " G"):
        if size < 1000:
            return f"{size:.0f}{prefix}" if size >= 100 or not prefix else f"{size:.1f}{prefix}"
        size /= 1000
    return f"{size:.1f} T"
