"""Where each token of a text looks: the weights of every attention head, as numbers, as words and as a picture.

The fused attention that models run on never holds its weights. They are computed once more here, from the input that
each layer had.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptrs.files import write_atomic
from gptrs.model import Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Where a head looks, as means over the queries from the third token on, for which the three places differ."""

    layer: int
    head: int
    first: float  # weight on the first token
    previous: float  # on the token before
    own: float  # on the token itself
    entropy: float  # of the weights over the entropy of an even look at all: 0 one token, 1 all alike


def attention_weights(model: Transformer, tokens: Tensor) -> list[Tensor]:
    """The weights of each layer, first layer first: (B, T) ids → (B, H, T, T) each, query by key.

    Rows sum to 1, and later positions have weight 0. The model is left in the mode it was in, and dropout is off.
    Raises: ValueError when there is no token.
    Example: `attention_weights(model, torch.tensor([ids]))[0][0, 3]` is head 3 of the first layer.
    """
    if tokens.shape[1] == 0:
        raise ValueError("expected a text of one token or more, got none")
    weights: list[Tensor] = []

    def look(layer: Any, inputs: tuple[Tensor], given: dict[str, Any]) -> None:
        weights.append(layer.weights(inputs[0], turns=given["turns"]))

    handles = [block.attn.register_forward_pre_hook(look, with_kwargs=True) for block in model.layers]  # type: ignore[union-attr]
    try:
        with torch.no_grad(), _evaluating(model):
            model.hidden(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return weights


def heads(weights: Sequence[Tensor]) -> list[Head]:
    """Where each head looks on average over all rows; (B, H, T, T) for each layer.

    Raises: ValueError when T is below 3.
    """
    found = []
    for layer, all_heads in enumerate(weights):
        _, _, T, _ = all_heads.shape
        if T < 3:
            raise ValueError(f"expected at least 3 tokens, the first, the one before and the token itself, got {T}")
        late = all_heads[:, :, 2:].double()  # (B, H, T - 2, T)
        even = torch.arange(3, T + 1, device=late.device, dtype=late.dtype).log()  # (T - 2,)
        entropy = torch.special.entr(late).sum(dim=-1) / even  # (B, H, T - 2)
        places = (late[..., 0], late.diagonal(1, -2, -1), late.diagonal(2, -2, -1), entropy)  # (B, H, T - 2) each
        means = torch.stack([place.mean(dim=(0, -1)) for place in places], dim=-1)  # (H, 4)
        for head, (first, previous, own, spread) in enumerate(means.tolist()):
            found.append(Head(layer=layer, head=head, first=first, previous=previous, own=own, entropy=spread))
    return found


def draw(path: Path, weights: Sequence[Tensor], labels: Sequence[str]) -> None:
    """Writes a picture with a square for each head, a row for each layer: queries down, keys across, dark is 1.

    The tokens stand at the left of the first squares and below the last ones; their numbers do where there are many.
    Args: weights: (H, T, T) of each layer; labels: the T tokens as text; a space is drawn as "·".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_rows, n_columns, T = len(weights), len(weights[0]), len(labels)
    stride = T + 1 + T // 12  # cells from one square to the next
    n_down, n_across = (n * stride - (stride - T) for n in (n_rows, n_columns))
    # Inches: a square's name needs 1.3, a token of 7 points 0.13, and a side has 65,536 pixels at most.
    cell = min(max(0.16, 1.3 / T) if T <= 48 else 8.0 / T, 90.0 / max(n_down, n_across))
    shown = [_visible(label) for label in labels]
    if cell < 0.13:
        step = max(1, T // 8)
        shown = [str(i) if i % step == 0 else "" for i in range(T)]
    margin = min(0.3 + 0.07 * max(map(len, shown)), 3.0)
    width, height = n_across * cell, n_down * cell
    whole = (margin + width + 1.1, margin + height + 0.5)
    figure = Figure(figsize=whole, dpi=110)
    FigureCanvasAgg(figure)
    # One picture of all squares: an axis for each, with labels of its own, takes minutes for a dozen heads.
    axes = figure.add_axes((margin / whole[0], margin / whole[1], width / whole[0], height / whole[1]))
    squares = np.full((n_down, n_across), np.nan, dtype=np.float32)
    for layer, of_layer in enumerate(weights):
        for head, square in enumerate(of_layer):
            top, left = layer * stride, head * stride
            squares[top : top + T, left : left + T] = square.float().cpu().numpy()
            axes.text(left - 0.5, top - 0.8, f"layer {layer}, head {head}", fontsize=9)
    image = axes.imshow(squares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for axis, n in ((axes.xaxis, n_columns), (axes.yaxis, n_rows)):
        named = [(i * stride + t, label) for i in range(n) for t, label in enumerate(shown) if label]
        axis.set_ticks([at for at, _ in named], [label for _, label in named])
    axes.tick_params(length=0, labelsize=7)
    axes.tick_params(axis="x", rotation=90)
    axes.spines[:].set_visible(False)
    bar = figure.add_axes((1 - 0.9 / whole[0], margin / whole[1], 0.15 / whole[0], min(height, 3.0) / whole[1]))
    figure.colorbar(image, cax=bar, label="weight")
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def lines(found: Sequence[Head]) -> list[str]:
    """One line a head, the sharpest habits readable at a glance."""
    rows = [
        f"{h.layer:5}  {h.head:4}  {h.first:5.2f}  {h.previous:8.2f}  {h.own:4.2f}  {h.entropy:7.2f}" for h in found
    ]
    return ["layer  head  first  previous   own  entropy", *rows]


def _visible(label: str) -> str:
    """The label on one line, spaces seen, and "$" not the beginning of a formula."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in label.replace(" ", "·"))
    return text.replace("$", r"\$")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True
