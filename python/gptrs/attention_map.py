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

    Args: weights: (H, T, T) of each layer; labels: the T tokens as text; a space is drawn as "·".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_rows, n_columns, T = len(weights), len(weights[0]), len(labels)
    shown = [_visible(label) for label in labels]
    side = 1.2 + 0.16 * T  # inches: room for a label of 7 points at each row
    figure = Figure(figsize=(side * n_columns + 0.6, side * n_rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for layer, of_layer in enumerate(weights):
        for head, square in enumerate(of_layer):
            axes = grid[layer][head]
            image = axes.imshow(square.float().cpu().numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
            axes.set_title(f"layer {layer}, head {head}", fontsize=9)
            axes.set_xticks(range(T), shown, rotation=90, fontsize=7)
            axes.set_yticks(range(T), shown, fontsize=7)
            axes.tick_params(length=0)
    figure.colorbar(image, ax=grid, shrink=0.5, label="weight")
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
