"""The section of a run's report about what went on inside the model: a heat map for each kind, layers by updates."""

import math
from collections.abc import Sequence
from typing import Any

from gptrs import chart

MOST_COLUMNS = 40  # updates shown, evenly spread
_OUTSIDE = "outside"
# kind in metrics.jsonl: title, how the parts of a layer become one number
_KINDS = {
    "grad_norm": ("Norm of the gradient behind clipping", True),
    "update_ratio": ("Norm of a step over the weights' norm, the largest of a layer's parts", False),
    "weight_norm": ("Norm of the weights", True),
    "act_std": ("Spread of a block's output", False),
    "act_max": ("Largest absolute value of a block's output", False),
    "logit_max": ("Largest attention score before the softmax", False),
    "max_violation": ("MaxVio of the experts' loads", False),
}


def statistics(lines: Sequence[dict[str, Any]]) -> str:
    """Returns the section of the "stats" lines of metrics.jsonl; nothing when there are none."""
    found = [line for line in lines if line["kind"] == "stats"]
    if not found:
        return ""
    shown = _spread(found)
    steps = [line["step"] for line in shown]
    intro = (
        f"<p>{len(found):,} looks, from update {steps[0]:,} to {steps[-1]:,}; darker is more, on a logarithmic scale "
        "from the least to the most of each map. Numbers appear under the pointer; metrics.jsonl has them by part.</p>"
    )
    maps = []
    for kind, (title, is_joint) in _KINDS.items():
        rows = _rows(shown, kind, is_joint=is_joint)
        if rows:
            values = [v for _, row in rows for v in row if v is not None]
            ends = f"<small>{min(values):.3g} to {max(values):.3g}</small>"
            maps.append(f"<h3>{title} {ends}</h3>{chart.heat(rows, columns=steps, x_label='update')}")
    return intro + "".join(maps)


def _spread(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MOST_COLUMNS of them, the first and the last always."""
    n = len(lines)
    if n <= MOST_COLUMNS:
        return list(lines)
    return [lines[round(i * (n - 1) / (MOST_COLUMNS - 1))] for i in range(MOST_COLUMNS)]


def _rows(lines: Sequence[dict[str, Any]], kind: str, *, is_joint: bool) -> list[tuple[str, list[float | None]]]:
    """A row for each layer; `is_joint`: its parts' norms are those of one vector, else the largest counts."""
    layers: dict[str, list[float | None]] = {}
    for column, line in enumerate(lines):
        by_layer: dict[str, list[float]] = {}
        for name, value in line.items():
            first, _, place = name.partition("/")
            if first == kind and value is not None:
                by_layer.setdefault(place.partition("/")[0], []).append(value)
        for layer, values in by_layer.items():
            row = layers.setdefault(layer, [None] * len(lines))
            row[column] = math.sqrt(sum(v * v for v in values)) if is_joint else max(values)
    order = sorted(layers, key=lambda layer: (layer == _OUTSIDE, not layer.isdigit(), layer.zfill(8)))
    return [(f"layer {layer}" if layer.isdigit() else layer, layers[layer]) for layer in order]
