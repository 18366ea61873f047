"""The routed experts of a layer on the CPU, with a backward pass that keeps little.

    tokens of expert e ─gather─▶ x (n, C) ─up─▶ (gate | value) (n, 2·m) ─silu(gate)·value─▶ h ─down─▶ out ─·weight─▶ y

Unusual here: of all this only (gate | value) is kept for the backward pass. h is computed again, x is gathered again,
and the gradient of a weight needs no out, since dy·down(h) = (dy·down)·h. Where products go by tiles, the core has an
expert's products on one thread each (`rust/gptrs-core/src/experts`), keeps nothing, and may move its matrices as soon
as it has their gradient (`moving`). Elsewhere experts come one after the other, and what stands between their products
is held channels first, (2·m, n): gate and value are then two solid halves, and the products are faster (docs/log.md).
To torch.compile each pass is one operator: how many rows an expert has is known only when it runs.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gptrs import _core
from gptrs.model.feed_forward import gated_backward, gated_forward
from gptrs.model.matmul import has_tiles, is_plain, mm, mm_into, region
from gptrs.model.moving import Step, no_gradient, step_of

_LEAST_WIDTH = 64  # of states and experts: below, splitting costs more than it saves
_LEAST_ROWS = 32  # of an expert, in the mean


def expert_by_expert(x: Tensor, up: Tensor, down: Tensor, weights: Tensor, order: Tensor, loads: Tensor) -> Tensor:
    """Σ weight·down(silu(gate(x))·value(x)) over the experts of each token, (N, C).

    Args:
        x: (N, C). up: (E, 2·m, C), rows (gate | value). down: (E, C, m). weights: (N, A).
        order: (N·A,), the places of (token, choice) in reading order, sorted by expert. loads: (E,), places of each.
    """
    keeps = torch.is_grad_enabled() and any(given.requires_grad for given in (x, up, down, weights))
    y: Tensor = _ExpertByExpert.apply(x, up, down, weights, order, loads, keeps, _goes_by_tiles(x, up, down, weights))
    return y


def _goes_by_tiles(x: Tensor, up: Tensor, down: Tensor, weights: Tensor) -> bool:
    given = (x, up, down, weights)
    is_large = min(x.shape[1], down.shape[2]) >= _LEAST_WIDTH and weights.numel() >= _LEAST_ROWS * len(up)
    return is_large and all(map(has_tiles, given)) and is_plain(*given)


class _ExpertByExpert(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        down: Tensor,
        weights: Tensor,
        order: Tensor,
        loads: Tensor,
        keeps: bool,
        by_tiles: bool,
    ) -> Tensor:
        y: Tensor
        y, high = torch.ops.gptrs.experts(x, up, down, weights, order, loads, keeps, by_tiles)
        ctx.save_for_backward(x, up, down, weights, order, loads, high)
        ctx.by_tiles = by_tiles
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        _, needs_up, needs_down, *_ = ctx.needs_input_grad
        gradients = torch.ops.gptrs.experts_backward(dy, *ctx.saved_tensors, needs_up, needs_down, ctx.by_tiles)
        d_x, d_up, d_down, d_weights = gradients
        return d_x, d_up if needs_up else None, d_down if needs_down else None, d_weights, *(None,) * 4


_library = torch.library.Library("gptrs", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGUMENTS = "Tensor x, Tensor up, Tensor down, Tensor weights, Tensor order, Tensor loads"
_library.define(f"experts({_ARGUMENTS}, bool keeps, bool by_tiles) -> (Tensor, Tensor)")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"experts_backward(Tensor dy, {_ARGUMENTS}, Tensor high, bool needs_up, bool needs_down, bool by_tiles)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(_library, "experts", "CPU")
def _experts(
    x: Tensor, up: Tensor, down: Tensor, weights: Tensor, order: Tensor, loads: Tensor, keeps: bool, by_tiles: bool
) -> tuple[Tensor, Tensor]:
    """The output, and (gate | value) of all experts, one behind the other, if it is kept."""
    if by_tiles:
        y, rows = torch.empty_like(x), x.new_empty(len(order), x.shape[1])
        arrays = [*_arrays(x, up, down, weights, order, loads, rows, y), *_threads()]
        _core.experts_forward(*arrays)
        return y, x.new_empty(0)
    A, width, y, kept = weights.shape[1], up.shape[1], torch.zeros_like(x), x.new_empty(0)
    for expert, places, (start, end) in _busy(order, loads):
        tokens = places // A  # (n,)
        high = mm(up[expert], x[tokens].T)  # (2·m, n)
        out = mm(gated_forward(high, dim=0).T, down[expert].T)  # (n, C)
        y.index_add_(0, tokens, out.mul_(_weights_of(weights, places, out).unsqueeze(-1)))
        if keeps:
            kept = kept if len(kept) else high.new_empty(len(order) * width)  # of the type that autocast gives
            kept[start * width : end * width] = high.flatten()
    return y, kept


@torch.library.impl(_library, "experts_backward", "CPU")
def _experts_backward(
    dy: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    weights: Tensor,
    order: Tensor,
    loads: Tensor,
    kept: Tensor,
    needs_up: bool,
    needs_down: bool,
    by_tiles: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, up, down and weights; empty where not needed, zeros where the matrices moved by them."""
    if by_tiles:
        return _by_tiles(dy, x, up, down, weights, order, loads, needs_up, needs_down)
    A, width = weights.shape[1], up.shape[1]
    d_x, d_weights = torch.zeros_like(x), torch.zeros_like(weights)
    d_up, d_down = (
        _gradient(of, loads) if is_needed else of.new_empty(0) for of, is_needed in ((up, needs_up), (down, needs_down))
    )
    for expert, places, (start, end) in _busy(order, loads):
        tokens = places // A  # (n,)
        high = kept[start * width : end * width].view(width, -1)  # (2·m, n)
        d_out = dy[tokens]  # (n, C)
        h, d_h = gated_forward(high, dim=0), mm(down[expert].T, d_out.T)  # (m, n) each, d_h without the weight
        d_weights.view(-1)[places] = (d_h * h).sum(dim=0).to(weights.dtype)
        weight = _weights_of(weights, places, h)  # (n,)
        if needs_down:
            mm_into(d_down[expert], d_out.T, h.mul_(weight).T)
        d_high = gated_backward(d_h.mul_(weight), high, dim=0)  # (2·m, n)
        if needs_up:
            mm_into(d_up[expert], d_high, x[tokens])
        d_x.index_add_(0, tokens, mm(d_high.T, up[expert]))
    return d_x, d_up, d_down, d_weights


def _by_tiles(
    dy: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    weights: Tensor,
    order: Tensor,
    loads: Tensor,
    needs_up: bool,
    needs_down: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x, d_weights, rows = torch.empty_like(x), torch.empty_like(weights), x.new_empty(len(order), x.shape[1])
    matrices = ((up, needs_up), (down, needs_down))
    steps = [step_of(of) if is_needed else None for of, is_needed in matrices]
    places = [
        torch.empty_like(of) if is_needed and step is None else None
        for (of, is_needed), step in zip(matrices, steps, strict=True)
    ]
    arrays = _arrays(dy, x, up, down, weights, order, loads, rows, d_x, d_weights, *places)
    arrays += [*map(_given, steps), *_threads()]
    squares = _core.experts_backward(*arrays)
    gradients = []
    for (of, _), step, place, found in zip(matrices, steps, places, squares, strict=True):
        if step is not None:
            step.squares = found
        gradients.append(place if place is not None else of.new_empty(0) if step is None else no_gradient(of))
    return d_x, gradients[0], gradients[1], d_weights


def _given(step: Step | None) -> tuple[Any, Any, list[float]] | None:
    return None if step is None else (step.first.numpy(), step.second.numpy(), step.numbers())


def _threads() -> tuple[Any, Any]:
    """How many, and whose."""
    return torch.get_num_threads(), region()


def _arrays(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.detach().contiguous().numpy() for tensor in tensors]


@torch.library.register_fake("gptrs::experts", lib=_library)  # type: ignore[untyped-decorator]
def _(
    x: Tensor, up: Tensor, down: Tensor, weights: Tensor, order: Tensor, loads: Tensor, keeps: bool, by_tiles: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(order.shape[0] * up.shape[1] if keeps and not by_tiles else 0)


@torch.library.register_fake("gptrs::experts_backward", lib=_library)  # type: ignore[untyped-decorator]
def _(
    dy: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    weights: Tensor,
    order: Tensor,
    loads: Tensor,
    kept: Tensor,
    needs_up: bool,
    needs_down: bool,
    by_tiles: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_up, d_down = (
        torch.empty_like(of) if is_needed else of.new_empty(0) for of, is_needed in ((up, needs_up), (down, needs_down))
    )
    return torch.empty_like(x), d_up, d_down, torch.empty_like(weights)


@register_flop_formula(torch.ops.gptrs.experts)
def _(x: Any, up: Any, down: Any, weights: Any, order: Any, *_: Any, **__: Any) -> int:
    return 2 * int(order[0]) * (_n_weights(up) + _n_weights(down))


@register_flop_formula(torch.ops.gptrs.experts_backward)
def _(
    dy: Any, x: Any, up: Any, down: Any, weights: Any, order: Any, loads: Any, kept: Any, needs_up: bool,
    needs_down: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return 2 * int(order[0]) * ((1 + needs_up) * _n_weights(up) + (1 + needs_down) * _n_weights(down))


def _n_weights(stacked: Any) -> int:
    """Of one expert's matrix, by the shape of all."""
    return int(stacked[1]) * int(stacked[2])


def _busy(order: Tensor, loads: Tensor) -> list[tuple[int, Tensor, tuple[int, int]]]:
    """The experts that have tokens, their places, and where these stand in `order`."""
    spans = enumerate(pairwise([0, *loads.cumsum(0).tolist()]))
    return [(expert, order[start:end], (start, end)) for expert, (start, end) in spans if start < end]


def _gradient(matrices: Tensor, loads: Tensor) -> Tensor:
    """Memory for the gradient of an expert's matrices, zero where no token came by."""
    gradient = torch.empty_like(matrices)
    for expert in (loads == 0).nonzero().flatten().tolist():
        gradient[expert].zero_()
    return gradient


def _weights_of(weights: Tensor, places: Tensor, like: Tensor) -> Tensor:
    return weights.view(-1)[places].to(like.dtype)  # (n,)
