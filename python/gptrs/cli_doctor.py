"""`gptrs doctor`: what this machine is, what it can do, and what fits on it."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gptrs.doctor import Finding, Fit
    from gptrs.model.config import ModelConfig

_MODELS = ("deepseek-tiny", "gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl", "deepseek-small", "deepseek-v2-lite")
_LONGEST = 4096  # row of a preset


def doctor_command(
    model: Annotated[list[str] | None, typer.Option(help="A preset that may fit; may be repeated.")] = None,
    config: Annotated[str | None, typer.Option(help="A config of a run by name or path, as gptrs train takes.")] = None,
    folder: Annotated[str, typer.Option("--dir", help="Where runs are to be: its disk is measured.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Look at this machine: processor, memory, GPUs, disk, packages, what works, and which models fit."""
    from gptrs import doctor

    asked = _models(model, config)  # a wrong name before the seconds that looking takes
    found = list(doctor.findings(Path(folder)))
    fits = doctor.fits(asked, found)
    if as_json:
        lines = [dataclasses.asdict(finding) | {"state": finding.state} for finding in found]
        typer.echo(json.dumps({"findings": lines, "fits": [dataclasses.asdict(fit) for fit in fits]}, indent=1))
        return
    _show(found, fits)


def _models(presets: list[str] | None, config: str | None) -> "dict[str, tuple[ModelConfig, int]]":
    """The models that are asked about and the length of their rows."""
    from gptrs.model.config import ModelConfig
    from gptrs.train import config as train_config

    found = {}
    if config is not None:
        run = train_config.load(config)
        length = run.train.seq_len
        found[config] = run.model.resolve(vocab_size=run.tokenizer.vocab_size, seq_len=length), length
    for name in presets or (() if config is not None else _MODELS):
        preset = ModelConfig.preset(name)
        found[name] = preset, min(preset.max_seq_len, _LONGEST)
    return found


def _show(found: "list[Finding]", fits: "list[Fit]") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:  # a file has no width
        console = Console(highlight=False, width=140)
    group = ""
    for finding in found:
        if finding.group != group:
            group = finding.group
            console.print(f"\n{group}", style="bold")
        color = "green" if finding.state == "ok" else "yellow"
        console.print(f"  [{color}]{finding.state:<8}[/]{finding.name:<16}", end="")
        console.print(finding.text, markup=False, soft_wrap=True)
        if finding.cure:
            console.print(f"{'':26}→ {finding.cure}", markup=False, soft_wrap=True)
    out = Table(title="\nwhat fits, by gptrs plan's formulas", title_justify="left", title_style="bold", box=None)
    for name in (
        "model",
        "parameters",
        "row",
        "fixed GB",
        "MB a row",
        "micro_batch",
        "… checkpointed",
        "dtype",
        "compile",
    ):
        out.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for fit in fits:
        out.add_row(
            fit.name,
            f"{fit.n_params:,}",
            f"{fit.seq_len:,}",
            f"{fit.fixed_bytes / 1e9:.1f}",
            f"{fit.row_bytes / 1e6:,.0f}",
            f"{fit.micro_batch:,}" if fit.micro_batch else "no",
            f"{fit.micro_batch_checkpointed:,}" if fit.micro_batch_checkpointed else "no",
            fit.dtype,
            "yes" if fit.is_compiled else "no",
        )
    console.width = max(console.width, Console(width=1000).measure(out).maximum)  # a narrow terminal breaks lines
    console.print(out)
    n_warnings = sum(finding.state == "warning" for finding in found)
    console.print(f"\n{n_warnings} warning{'s' * (n_warnings != 1)}")
