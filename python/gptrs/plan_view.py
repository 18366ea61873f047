"""A plan as tables on the terminal or as a picture; reads the plain values of `plan.make` and `scaling.suggest`."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gptrs.files import write_atomic

_GIB = 1 << 30
_COLORS = ("#4c72b0", "#7a9cc6", "#dd8452", "#8172b3", "#937860", "#c44e52", "#da8bc3", "#55a868", "#8c8c8c", "#64b5cd")


def show(plan: dict[str, Any], *, has_layers: bool = False) -> None:
    """Prints the plan as tables on standard output."""
    console = _console()
    console.print(_parameter_table(plan))
    if has_layers:
        console.print(_layer_table(plan))
    for title, rows in _sections(plan):
        console.print(_table(title, ("", ">", ""), [(name, value, note) for name, value, note in rows], has_head=False))


def show_scaling(found: dict[str, Any]) -> None:
    """Prints what `scaling.suggest` found, with the hours of a "training" where there is one."""
    law, best, rule, model, hint = (found[k] for k in ("law", "optimum", "rule_of_thumb", "model", "suggested"))
    config = model["config"]
    formula = (
        f"{law['irreducible']:g} + {law['of_size']:g} / N^{law['size']:g} + {law['of_data']:g} / D^{law['data']:g}"
    )
    point_rows = [
        (name, f"{p['n_params']:.4g}", f"{p['tokens']:.4g}", f"{p['tokens'] / p['n_params']:.1f}", f"{p['loss']:.4f}")
        for name, p in (("least loss", best), ("20 tokens for each parameter", rule), ("the model below", model))
    ]
    shape = f"dim {config['dim']:,}, {config['n_layers']} layers, {config['n_heads']} heads"
    model_rows = [
        ("model", f"{model['n_params']:,}", f"parameters of {model['kind']}'s kind: {shape}, vocabulary "
         f"{config['vocab_size']:,}"),
        ("tokens", f"{model['tokens']:.4g}", f"{model['flops']:.4g} FLOP as this package counts, attention included"),
        ("batch", f"{hint['global_batch']:,}", f"rows of {hint['seq_len']:,} tokens, {hint['steps']:,} steps"),
        ("learning rate", f"{hint['lr']:.2e}", f"and that batch by {hint['source']}"),
    ]  # fmt: skip
    console = _console()
    title = f"{found['compute']:.4g} FLOP = 6·N·D"
    console.print(_table(title, ("", ">parameters N", ">tokens D", ">D / N", ">expected loss"), point_rows))
    console.print(
        f"Expected loss: {formula}, {law['source']}.\nIt is that of its data and tokenizer; N and D hold more widely."
    )
    console.print(_table("a model to train", ("", ">", ""), model_rows, has_head=False))
    if found.get("training") is not None:
        console.print(_table("run", ("", ">", ""), _run_rows(found["training"]), has_head=False))


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:  # a file has no width
        console = Console(highlight=False, width=140)
    return console


def _parameter_table(plan: dict[str, Any]) -> Table:
    found = plan["parameters"]
    rows = [
        (p["name"], p["formula"], f"{p['n_params']:,}", f"{p['share']:.2%}", "yes" if p["is_trainable"] else "no")
        for p in found["parts"]
    ]
    rows.append(("total", "", f"{found['total']:,}", "100.00%", f"{found['trainable']:,}"))
    head = ("part", "formula", ">parameters", ">share", ">trainable")
    return _table(f"{plan['preset']} parameters".strip(), head, rows)


def _layer_table(plan: dict[str, Any]) -> Table:
    """A group of rows for each stretch of layers that are alike."""
    out = _table("by layer", ("layers", "part", ">parameters of one", ">of all"), [])
    for _, found in groupby(plan["layers"], key=lambda layer: (layer["layer"].isdigit(), layer["parts"])):
        alike = list(found)
        first, last = alike[0]["layer"], alike[-1]["layer"]
        name = first if len(alike) == 1 else f"{first} to {last}"
        for part, n in alike[0]["parts"].items():
            out.add_row(name, part, f"{n:,}", f"{n * len(alike):,}")
            name = ""
        n = alike[0]["n_params"]
        out.add_row("", "sum", f"{n:,}", f"{n * len(alike):,}", end_section=True)
    out.add_row("total", "", "", f"{sum(layer['n_params'] for layer in plan['layers']):,}")
    return out


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, has_head: bool = True) -> Table:
    """Columns whose name begins with > are numbers; the last row is a sum where there is a head."""
    out = Table(title=title, title_justify="left", title_style="bold", show_header=has_head)
    for name in head:
        is_number = name.startswith(">")
        out.add_column(
            name.removeprefix(">"), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    for i, row in enumerate(rows):
        out.add_row(*row, end_section=has_head and i == len(rows) - 2)
    return out


def _sections(plan: dict[str, Any]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Titles with rows of name, value and note."""
    flops, rank = plan["flops_per_token"], plan["rank"]
    sections = [
        ("sums", _sum_rows(plan)),
        (
            f"training FLOP per token at {flops['seq_len']:,} positions (forward and backward)",
            [
                ("parameters", _giga(flops["parameters"]), "6 · those that multiply; of routed experts the activated"),
                (
                    "attention",
                    _giga(flops["attention"]),
                    "6·n_layers·n_heads·(head_dim + value_dim)·positions, the full square",
                ),
                ("main model", _giga(flops["main"]), "nothing is halved for causality"),
                (
                    "halved",
                    _giga(flops["main_causal_halved"]),
                    "main model with half of attention, as causal kernels compute",
                ),
                ("training", _giga(flops["training"]), "main model and further tokens"),
            ],
        ),
        (
            "cache bytes per token: n_layers · 2 · what is kept of it",
            [
                (k["kind"], f"{k['n_bytes']:,}", k["formula"] + (", this model" if k["is_own"] else ""))
                for k in plan["cache"]
            ],
        ),
        (
            f"memory of each of {rank['split']['world']:,} ranks, {_unit(rank)[0]}",
            _rank_rows(rank, flops["seq_len"]),
        ),
    ]
    if plan["training"] is not None:
        sections.append(("run", _run_rows(plan["training"])))
    if plan["released"] is not None:
        sections.append(("files as DeepSeek-V3 was released", _released_rows(plan["released"])))
    return sections


def _sum_rows(plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    found, config = plan["parameters"], plan["config"]
    E, A = config["n_routed_experts"], config["n_activated_experts"]
    rows = [("main model", f"{found['main']:,}", "without further tokens")]
    if found["further"]:
        rows.append(("further tokens", f"{found['further']:,}", "embedding and head are the main model's"))
    rows += [
        (
            "activated",
            f"{found['activated']:,}",
            f"by one token: {A} of {E} routed experts" if E else "by one token: all",
        ),
        ("without lookup", f"{found['activated_without_lookup']:,}", "less the tables of which a token reads one row"),
    ]
    return rows


def _rank_rows(rank: dict[str, Any], seq_len: int) -> list[tuple[str, str, str]]:
    split, kept = rank["split"], rank["activation_bytes_per_token"]
    tokens = f"{split['micro_batch']} × {seq_len:,} tokens"
    size = {name: f"{n / _unit(rank)[1]:,.2f}" for name, n in rank.items() if isinstance(n, int)}
    return [
        ("split", f"{split['data']} × {split['expert']} × {split['tensor']}", "data × expert × tensor; no pipeline"),
        (
            "parameters",
            f"{rank['n_params']:,}",
            "routed experts / (expert · tensor), other matrices / tensor, the rest whole",
        ),
        ("weights", size["weights"], "bfloat16, 2 bytes; router biases float32"),
        ("gradients", size["gradients"], "bfloat16, 2 bytes"),
        (
            "optimizer",
            size["optimizer"],
            "master and AdamW's moments, float32, 12 bytes / (data · expert), experts' / data",
        ),
        ("activations", size["activations"], f"{kept['kept']:,} bytes · {tokens}"),
        (
            "… checkpointed",
            size["activations_checkpointed"],
            f"{kept['checkpointed']:,} bytes · {tokens}: blocks' inputs, one block",
        ),
        ("total", size["total"], "all activations kept"),
        ("… checkpointed", size["total_checkpointed"], "every block of the main model checkpointed"),
    ]


def _run_rows(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = [
        ("tokens", f"{run['tokens']:.4g}", f"{run['flops']:.4g} FLOP in all"),
        ("GPU hours", f"{run['gpu_hours']:,.0f}", f"at {run['mfu']:.1%} of {run['peak_tflops']:g} TFLOP/s"),
        ("hours", f"{run['hours']:,.1f}", f"on {run['gpus']:,} GPUs, {run['tokens_per_s']:,.0f} tokens/s"),
    ]
    if run["cost"] is not None:
        rows.append(("cost", f"{run['cost']:,.0f}", f"at {run['price']:g} for a GPU's hour"))
    return rows


def _released_rows(found: dict[str, int]) -> list[tuple[str, str, str]]:
    return [
        ("F8_E4M3", f"{found['fp8']:,}", "matrices of attention, feed-forward and experts"),
        (
            "BF16",
            f"{found['bf16']:,}",
            f"the rest; {found['duplicated']:,} are further tokens' copies of embedding and head",
        ),
        ("F32", f"{found['fp32']:,}", f"{found['scales']:,} scales of 128 × 128 blocks, and router biases"),
        ("total", f"{found['total']:,}", f"{found['n_bytes']:,} bytes"),
    ]


def _giga(n: int) -> str:
    return f"{n / 1e9:,.2f} G" if n >= 1e8 else f"{n / 1e6:,.2f} M"


def _unit(rank: dict[str, Any]) -> tuple[str, int]:
    """The unit of a rank's memory, and its bytes."""
    return ("GiB", _GIB) if rank["total"] >= _GIB else ("MiB", _GIB >> 10)


def draw(path: Path, plan: dict[str, Any]) -> None:
    """Writes a picture of where the parameters are: shares of the parts, and every layer.

    Raises: ModuleNotFoundError when matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib, which is not installed; hint: pip install 'gptrs[train]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1)
    names = list(dict.fromkeys(name for layer in plan["layers"] for name in layer["parts"]))
    colors = dict(zip(names, _COLORS * 2, strict=False))
    _draw_parts(above, plan["parameters"], colors)
    _draw_layers(below, plan["layers"], colors)
    found = plan["parameters"]
    figure.suptitle(f"{plan['preset']}: {found['total']:,} parameters, {found['activated']:,} activated")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def draw_scaling(path: Path, found: dict[str, Any]) -> None:
    """Writes a picture of the law: lines of equal expected loss over parameters and tokens, and the budget across.

    Raises: ModuleNotFoundError when matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib, which is not installed; hint: pip install 'gptrs[train]'")
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    law, best = found["law"], found["optimum"]
    figure = Figure(figsize=(8.0, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    n, d = (np.logspace(-1.5, 1.5, 200) * best[key] for key in ("n_params", "tokens"))
    across, up = np.meshgrid(n, d)  # (D, N) each
    loss = law["irreducible"] + law["of_size"] / across ** law["size"] + law["of_data"] / up ** law["data"]
    lines = axes.contour(across, up, loss, levels=14, cmap="viridis", linewidths=0.9)
    axes.clabel(lines, fmt="%.2f", fontsize=7)
    axes.plot(
        n, found["compute"] / (6 * n), "--", color="#555555", lw=1.3, label=f"6·N·D = {found['compute']:.3g} FLOP"
    )
    for name, point, mark in (
        ("least loss", best, "o"),
        ("20 tokens for each parameter", found["rule_of_thumb"], "s"),
        ("the model", found["model"], "^"),
    ):
        axes.plot(point["n_params"], point["tokens"], mark, ms=7, label=f"{name}: {point['loss']:.4f}")
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="tokens", ylim=(d[0], d[-1]))
    axes.set_title("expected loss, nats per token of the law's data", fontsize=10)
    axes.legend(fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def _draw_parts(axes: Any, found: dict[str, Any], colors: dict[str, str]) -> None:
    parts = [part for part in found["parts"] if part["n_params"]][::-1]
    bars = axes.barh([part["name"] for part in parts], [part["n_params"] / 1e6 for part in parts])
    for bar, part in zip(bars, parts, strict=True):
        bar.set_color(colors.get(part["name"], "#555555"))
    labels = [f"{p['n_params']:,}  {p['share']:.2%}{'' if p['is_trainable'] else ', not trained'}" for p in parts]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.margins(x=0.35)
    axes.set_xlabel("million parameters")
    axes.xaxis.set_major_formatter("{x:,.4g}" if found["total"] < 1e9 else "{x:,.0f}")


def _draw_layers(axes: Any, layers: Sequence[dict[str, Any]], colors: dict[str, str]) -> None:
    at = range(len(layers))
    low = [0.0] * len(at)
    for name, color in colors.items():
        heights = [layer["parts"].get(name, 0) / 1e6 for layer in layers]
        axes.bar(at, heights, bottom=low, width=0.85, color=color, label=name)
        low = [a + b for a, b in zip(low, heights, strict=True)]
    step = max(1, len(at) // 12)
    numbers = [i for i in at if layers[i]["layer"].isdigit() and int(layers[i]["layer"]) % step == 0]
    ticks = [i for i in at if not layers[i]["layer"].isdigit()]
    ticks += [i for i in numbers if all(abs(i - j) >= step for j in ticks)]
    axes.set_xticks(ticks, [layers[i]["layer"] for i in ticks], fontsize=8)
    axes.set(xlabel="layer", ylabel="million parameters")
    axes.yaxis.set_major_formatter("{x:,.4g}" if max(low) < 1e4 else "{x:,.0f}")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
