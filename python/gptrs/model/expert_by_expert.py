"""The routed experts of a layer on the CPU, one after the other, with a backward pass that keeps little.

    tokens of expert e ─gather─▶ x (n, C) ─up─▶ (gate | value) (2·m, n) ─silu(gate)·value─▶ h ─down─▶ out ─·weight─▶ y

Unusual here: of all this only (gate | value) is kept for the backward pass. h is computed again, x is gathered again,
and the gradient of a weight needs no out, since dy·down(h) = (dy·down)·h. What stands between the products is held
channels first, (m, n): gate and value are then two solid halves, and the products are faster (docs/log.md).
"""

from typing import Any

import torch
from torch import Tensor

from gptrs.model.feed_forward import gated_backward, gated_forward
from gptrs.model.matmul import mm, mm_into


def expert_by_expert(x: Tensor, up: Tensor, down: Tensor, weights: Tensor, order: Tensor, loads: Tensor) -> Tensor:
    """Σ weight·down(silu(gate(x))·value(x)) over the experts of each token, (N, C).

    Args:
        x: (N, C). up: (E, 2·m, C), rows (gate | value). down: (E, C, m). weights: (N, A).
        order: (N·A,), the places of (token, choice) in reading order, sorted by expert. loads: (E,), places of each.
    """
    y: Tensor = _ExpertByExpert.apply(x, up, down, weights, order, loads)
    return y


class _ExpertByExpert(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, weights: Tensor, order: Tensor, loads: Tensor) -> Tensor:
        A = weights.shape[1]
        y, kept = torch.zeros_like(x), []
        for expert, places in _busy(order, loads):
            tokens = places // A  # (n,)
            high = mm(up[expert], x[tokens].T)  # (2·m, n)
            out = mm(gated_forward(high, dim=0).T, down[expert].T)  # (n, C)
            y.index_add_(0, tokens, out.mul_(_weights_of(weights, places, out).unsqueeze(-1)))
            kept.append(high)
        if any(ctx.needs_input_grad[:4]):
            ctx.save_for_backward(x, up, down, weights, order, loads, *kept)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, weights, order, loads, *kept = ctx.saved_tensors
        A = weights.shape[1]
        needs_up, needs_down = ctx.needs_input_grad[1:3]
        d_x, d_weights = torch.zeros_like(x), torch.zeros_like(weights)
        d_up, d_down = _gradient(up, loads) if needs_up else None, _gradient(down, loads) if needs_down else None
        for high, (expert, places) in zip(kept, _busy(order, loads), strict=True):
            tokens = places // A  # (n,)
            d_out = dy[tokens]  # (n, C)
            h, d_h = gated_forward(high, dim=0), mm(down[expert].T, d_out.T)  # (m, n) each, d_h without the weight
            d_weights.view(-1)[places] = (d_h * h).sum(dim=0).to(weights.dtype)
            weight = _weights_of(weights, places, h)  # (n,)
            if d_down is not None:
                mm_into(d_down[expert], d_out.T, h.mul_(weight).T)
            d_high = gated_backward(d_h.mul_(weight), high, dim=0)  # (2·m, n)
            if d_up is not None:
                mm_into(d_up[expert], d_high, x[tokens])
            d_x.index_add_(0, tokens, mm(d_high.T, up[expert]))
        return d_x, d_up, d_down, d_weights, None, None


def _busy(order: Tensor, loads: Tensor) -> list[tuple[int, Tensor]]:
    """The experts that have tokens, and their places."""
    counts = loads.tolist()
    return [(expert, places) for expert, places in enumerate(torch.split(order, counts)) if counts[expert]]


def _gradient(matrices: Tensor, loads: Tensor) -> Tensor:
    """Memory for the gradient of an expert's matrices, zero where no token came by."""
    gradient = torch.empty_like(matrices)
    for expert in (loads == 0).nonzero().flatten().tolist():
        gradient[expert].zero_()
    return gradient


def _weights_of(weights: Tensor, places: Tensor, like: Tensor) -> Tensor:
    return weights.view(-1)[places].to(like.dtype)  # (n,)
