"""What a layer does when ranks share its heads, inner widths or experts; without such ranks all of this is nothing.

    x ─enter─▶ a rank's heads or widths ─▶ its part of the sum ─leave─▶ y          the same x and y on each of them
    x ─exchange─▶ the ranks whose experts the tokens chose ─exchange─▶ y           other x and y on each of them

`enter` and `leave` are each other's gradient: a copy for all ranks, whose gradients add up, and a sum, whose gradient
is everyone's.
Source: arXiv 1909.08053, section 3 (f and g there); exchange: arXiv 2006.16668, section 3.2.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that ranks share; any other as it is."""
    return part(tensor) if hasattr(tensor, "to_local") else tensor


def part(weight: Tensor) -> Tensor:
    """This rank's part of a weight that ranks share. A compiled layer asks nothing of the weight's type."""
    own: Tensor = weight.to_local()  # type: ignore[attr-defined]
    return own


def enter(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """x, for a part that each rank of the group computes another share of."""
    if group is None:
        return x
    y: Tensor = _Enter.apply(x, group)
    return y


def leave(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of the ranks' shares."""
    if group is None:
        return x
    y: Tensor = _Leave.apply(x, group)
    return y


def exchange(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """The rows that the ranks of the group have for this one, in their order: (Σ sent, C) → (Σ received, C).

    Args: sent, received: rows for and from each rank.
    """
    y: Tensor = _Exchange.apply(x, sent, received, group)
    return y


class Columns(nn.Linear):
    """A linear layer of which each rank has some outputs."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else part(self.bias).to(x.dtype)
        return F.linear(enter(x, self.group), part(self.weight), bias)


class Rows(nn.Linear):
    """A linear layer of which each rank has some inputs; the bias is added once."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        y = leave(F.linear(x, part(self.weight)), self.group)
        return y if self.bias is None else y + self.bias


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _sum(dy, ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(dy, ctx.received, ctx.sent, ctx.group), None, None, None


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _all_to_all(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    y = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(y, x.contiguous(), received, sent, group=group)
    return y
