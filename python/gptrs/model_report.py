"""Sections of a run's report for what only some models have: experts, a small cache, further tokens; and two runs."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from gptrs import chart
from gptrs.page import Markup, bar, percent, table

if TYPE_CHECKING:
    from gptrs.model.memory import CacheKind
    from gptrs.trace import Further, Load, Usage
    from gptrs.train.rundir import Outcome

_HEAT_OF_MEAN = 35  # per cent of colour for an expert with the mean load


def experts(usage: "Usage", lines: Sequence[dict[str, Any]]) -> str:
    """The share of each expert in each layer at the end, and how uneven loads were on the way."""
    n_experts = len(usage.loads[0].counts)
    rows = [
        (load.layer, *(Markup(_heat(load, i)) for i in range(n_experts)), f"{violation(load.counts):.2f}")
        for load in usage.loads
    ]
    head = ("layer", *(f"expert {i}" for i in range(n_experts)), "MaxVio")
    curve = [(line["step"], line["max_violation"]) for line in lines if "max_violation" in line]
    intro = (
        f"<p>Where the choices of {usage.n_tokens:,} held-out tokens fell, at the end; equal load would be "
        f"{percent(1 / n_experts)} each. MaxVio says how far the busiest expert is above that: 0 is equal, 1 twice.</p>"
    )
    out = intro + table(head, rows, numbers=range(1, n_experts + 2))
    if curve:
        line = chart.Line(label="largest MaxVio of a layer", points=chart.means(curve), color="var(--train)")
        out += "<h3>On the way, in each update's own tokens</h3>" + chart.svg([line], x_label="step", y_label="MaxVio")
    return out


def cache(kinds: "Sequence[CacheKind]") -> str:
    """Bytes that a token leaves in the cache, beside other kinds of attention with as many heads."""
    largest = max(kind.n_bytes for kind in kinds)
    (own,) = (kind for kind in kinds if kind.is_own)
    rows = [
        (
            kind.kind + " (this model)" * kind.is_own,
            kind.formula,
            f"{kind.n_bytes:,}",
            Markup(bar(kind.n_bytes / largest)),
        )
        for kind in kinds
    ]
    intro = (
        f"<p>A token leaves <b>{own.n_bytes:,} bytes</b> in this model's cache in bfloat16, "
        f"{largest / own.n_bytes:.3g} times less than with keys and values of every head.</p>"
    )
    return intro + table(("attention", "numbers in a layer", "bytes a token", "of the largest"), rows, numbers=(2,))


def further(found: "Sequence[Further]") -> str:
    """How well the tokens behind the next are predicted, and how often such a guess would be taken."""
    rows = [
        (
            f"{one.depth + 1}",
            f"{one.loss:.4f}",
            Markup(bar(one.right)),
            Markup(bar(one.next_right)),
            Markup(bar(one.accepted)),
            f"{one.n_targets:,}",
        )
        for one in found
    ]
    head = ("token behind a position", "loss, nats", "guess is the text's", "main model's there", "accepted", "guesses")
    intro = (
        "<p>On held-out text. Accepted: the likeliest further token is the one that the main model finds likeliest a "
        "step later, so that decoding may keep it without a step of its own.</p>"
    )
    return intro + table(head, rows, numbers=(1, 5))


def beside(own: "Outcome", other: "Outcome | str") -> str:
    """Two runs' results and curves, or why there are none to compare."""
    if isinstance(other, str):
        return f"<p>{escape(other)}</p>"
    rows = [
        (
            run.name,
            f"{run.result['val_loss']:.4f}",
            f"{run.result['bits_per_byte']:.3f}",
            f"{run.result['n_params']:,}",
            f"{run.result['steps']:,}",
            f"{run.result['seconds']:.0f} s",
        )
        for run in (own, other)
    ]
    head = ("run", "validation loss", "bits per byte", "parameters", "updates", "training time")
    lines = [*_curves(own, "var(--val)"), *_curves(other, "var(--other)")]
    difference = own.result["val_loss"] - other.result["val_loss"]
    intro = (
        f"<p>Same text, same tokenizer: this run's validation loss is {abs(difference):.4f} nats "
        f"{'above' if difference > 0 else 'below'} that of {escape(other.name)}.</p>"
    )
    shown = chart.svg(lines, x_label="seconds of training", y_label="loss, nats per token")
    return intro + table(head, rows, numbers=range(1, 6)) + shown


def violation(counts: Sequence[int]) -> float:
    """How far the busiest expert is above the mean load: (2, 1, 1) gives 0.5."""
    return max(counts) * len(counts) / sum(counts) - 1


def _curves(run: "Outcome", color: str) -> list[chart.Line]:
    train = [(x["time_s"], x.get("next_loss", x["loss"])) for x in run.lines if x["kind"] == "train"]
    val = [(x["time_s"], x["val_loss"]) for x in run.lines if x["kind"] == "eval"]
    return [
        chart.Line(label=f"{run.name}, training", points=chart.means(train), color=color, is_dashed=True),
        chart.Line(label=f"{run.name}, validation", points=val, color=color, has_dots=True),
    ]


def _heat(load: "Load", expert: int) -> str:
    share = load.counts[expert] / sum(load.counts)
    heat = min(100.0, _HEAT_OF_MEAN * share * len(load.counts))
    color = f"color-mix(in srgb, var(--train) {heat:.0f}%, transparent)"
    return f'<span class="heat" style="background:{color}">{percent(share)}</span>'
