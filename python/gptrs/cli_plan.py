"""`gptrs plan`: what a model counts, computes, stores and costs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

_PEAK_TFLOPS, _MFU = 989.0, 0.4
_Preset = Annotated[str, typer.Argument(help="A model by name: gpt2-small, deepseek-v3, …", metavar="PRESET")]
_Overrides = Annotated[list[str] | None, typer.Argument(help="Sizes that differ.", metavar="[KEY=VALUE…]")]


def plan(
    preset: _Preset,
    overrides: _Overrides = None,
    *,
    layers: Annotated[bool, typer.Option("--layers", help="A table by layer too.")] = False,
    seq_len: Annotated[
        int | None, typer.Option(help="Positions of FLOPs and activations. [default: max_seq_len, at most 4096]", min=1)
    ] = None,
    data_parallel: Annotated[int, typer.Option(help="Ranks that divide the batch.", min=1)] = 1,
    expert_parallel: Annotated[int, typer.Option(help="Ranks that divide routed experts, and the batch.", min=1)] = 1,
    tensor_parallel: Annotated[int, typer.Option(help="Ranks that divide every matrix.", min=1)] = 1,
    micro_batch: Annotated[int, typer.Option(help="Sequences that a rank computes at a time.", min=1)] = 1,
    tokens: Annotated[float | None, typer.Option(help="Tokens of a run whose hours are asked for: 14.8e12.")] = None,
    gpus: Annotated[int | None, typer.Option(help="Its GPUs. [default: the ranks of the split]", min=1)] = None,
    peak_tflops: Annotated[float, typer.Option(help="TFLOP/s of a GPU, dense; 989: H100, bfloat16.")] = _PEAK_TFLOPS,
    mfu: Annotated[float, typer.Option(help="The share of the peak that the run reaches.")] = _MFU,
    price: Annotated[float | None, typer.Option(help="Of a GPU's hour.")] = None,
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
    config = plans.find(preset, overrides or ())
    split = plans.Split(data=data_parallel, expert=expert_parallel, tensor=tensor_parallel, micro_batch=micro_batch)
    training = None
    if tokens is not None:
        training = plans.Training(
            tokens=tokens, gpus=gpus or split.world, peak_tflops=peak_tflops, mfu=mfu, price=price
        )
    elif gpus is not None or price is not None or (peak_tflops, mfu) != (_PEAK_TFLOPS, _MFU):
        raise typer.BadParameter("--gpus, --peak-tflops, --mfu and --price need --tokens")
    found = plans.make(config, name=preset, seq_len=seq_len, split=split, training=training, is_released=released)
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
