"""`gptrs plan`: what a model counts, computes, stores and costs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gptrs.model.config import ModelConfig

_PEAK_TFLOPS, _MFU = 989.0, 0.4
_Preset = Annotated[
    str | None,
    typer.Argument(
        help="A model by name: gpt2-small, deepseek-v3, …; a run's config.toml or folder; with --compute its kind.",
        metavar="PRESET",
    ),
]
_Overrides = Annotated[list[str] | None, typer.Argument(help="Sizes that differ.", metavar="[KEY=VALUE…]")]


def plan(
    preset: _Preset = None,
    overrides: _Overrides = None,
    *,
    compute: Annotated[
        float | None, typer.Option(help="FLOP of a whole run, as 1e19: the best size and tokens for them.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="A table by layer too.")] = False,
    seq_len: Annotated[
        int | None,
        typer.Option(
            help="Positions of FLOPs and activations.", show_default="max_seq_len, at most 4096; a run's rows", min=1
        ),
    ] = None,
    data_parallel: Annotated[int, typer.Option(help="Ranks that divide the batch.", min=1)] = 1,
    expert_parallel: Annotated[int, typer.Option(help="Ranks that divide routed experts, and the batch.", min=1)] = 1,
    tensor_parallel: Annotated[int, typer.Option(help="Ranks that divide every matrix.", min=1)] = 1,
    micro_batch: Annotated[int, typer.Option(help="Sequences that a rank computes at a time.", min=1)] = 1,
    tokens: Annotated[float | None, typer.Option(help="Tokens of a run whose hours are asked for: 14.8e12.")] = None,
    gpus: Annotated[int | None, typer.Option(help="Its GPUs.", show_default="the ranks of the split", min=1)] = None,
    peak_tflops: Annotated[float, typer.Option(help="TFLOP/s of a GPU, dense; 989: H100, bfloat16.")] = _PEAK_TFLOPS,
    mfu: Annotated[float, typer.Option(help="The share of the peak that the run reaches.")] = _MFU,
    price: Annotated[float | None, typer.Option(help="Of a GPU's hour, in any currency.")] = None,
    released: Annotated[bool, typer.Option("--released", help="The size of files as DeepSeek-V3's, in fp8.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
    plot: Annotated[str | None, typer.Option(help="Draw where the parameters are, *.png.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Build the model without its memory and compare; needs PyTorch.")
    ] = False,
) -> None:
    """Count a model's parameters, FLOPs, memory, hours and cost before it is built."""
    from gptrs import plan as plans
    from gptrs import plan_view

    if plot is not None and (Path(plot).suffix != ".png" or not Path(plot).resolve().parent.is_dir()):
        raise ValueError(f"--plot must be a .png file in a folder that exists, got {plot}")
    if preset is None and compute is None:
        raise typer.BadParameter("expected PRESET or --compute FLOP")
    if preset is not None and "=" in preset:  # the kind may be left out
        overrides, preset = [preset, *(overrides or ())], None
    name = preset or "gpt2-small"
    if Path(name).suffix == ".toml" or (Path(name) / "config.toml").is_file():
        config, rows = _of_run(Path(name), overrides or ())
        seq_len = seq_len or (rows if compute is None else None)
    else:
        config = plans.find(name, overrides or ())
    split = plans.Split(data=data_parallel, expert=expert_parallel, tensor=tensor_parallel, micro_batch=micro_batch)
    if compute is not None:
        if tokens is not None or layers or released or check or split.world * micro_batch > 1 or seq_len:
            raise typer.BadParameter("--compute goes with a kind, sizes, --gpus, --peak-tflops, --mfu, --price alone")
        _compute(compute, config, name, (gpus or 1, peak_tflops, mfu, price), as_json=as_json, plot=plot)
        return
    training = None
    if tokens is not None:
        training = plans.Training(
            tokens=tokens, gpus=gpus or split.world, peak_tflops=peak_tflops, mfu=mfu, price=price
        )
    elif gpus is not None or price is not None or (peak_tflops, mfu) != (_PEAK_TFLOPS, _MFU):
        raise typer.BadParameter("--gpus, --peak-tflops, --mfu and --price need --tokens")
    found = plans.make(config, name=name, seq_len=seq_len, split=split, training=training, is_released=released)
    if plot is not None:
        plan_view.draw(Path(plot), found)
    checked = plans.check(config) if check else None
    if as_json:
        typer.echo(json.dumps(found | {"check": checked}, indent=2))
    else:
        plan_view.show(found, has_layers=layers)
    if checked is None:
        return
    for line in checked["differences"]:
        typer.echo(f"error: {line}", err=True)
    if checked["differences"]:
        sys.exit(1)
    if not as_json:
        typer.echo(
            f"checked: the {checked['n_tensors']} tensors of the built model agree, part by part and layer by layer"
        )


def _of_run(source: Path, overrides: Sequence[str]) -> "tuple[ModelConfig, int]":
    """The model of a run's config file or folder, whose vocabulary is its tokenizer's, and the length of its rows."""
    from gptrs.tokenizer import Tokenizer
    from gptrs.train import config as runs

    given = [text if "." in text.partition("=")[0] else f"model.{text}" for text in overrides]
    run = runs.load(source / "config.toml" if source.is_dir() else source, given)
    vocab_size = run.tokenizer.vocab_size
    kept = source / "tokenizer.json"  # of a run that has begun
    if kept.is_file() or run.tokenizer.path:
        vocab_size = Tokenizer.from_file(kept if kept.is_file() else str(run.tokenizer.path)).vocab_size
    return run.model.resolve(vocab_size=vocab_size, seq_len=run.train.seq_len), run.train.seq_len


def _compute(
    compute: float,
    kind: "ModelConfig",
    name: str,
    rented: tuple[int, float, float, float | None],
    *,
    as_json: bool,
    plot: str | None,
) -> None:
    """The size and the tokens for a number of FLOP, and what they cost on (GPUs, TFLOP/s, MFU, price)."""
    from gptrs import plan as plans
    from gptrs import plan_view, scaling
    from gptrs.model.config import ModelConfig

    found = scaling.suggest(compute, kind, name=name)
    gpus, peak_tflops, mfu, price = rented
    training = plans.Training(tokens=found["model"]["tokens"], gpus=gpus, peak_tflops=peak_tflops, mfu=mfu, price=price)
    made = plans.make(ModelConfig(**found["model"]["config"]), seq_len=kind.max_seq_len, training=training)
    found["training"] = made["training"]
    if plot is not None:
        plan_view.draw_scaling(Path(plot), found)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        plan_view.show_scaling(found)
